"""The mixed-operation edge: the public function, and the op's fake, autograd and vmap halves."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sslfast._reference import mixed_edge as reference
from sslfast._reference.mixed_edge import SKIP, norm_count, saved_size, weight_shapes
from sslfast._reference.primitives import PRIMITIVES
from sslfast.ops._arguments import problems, require_count, require_number, require_tensors, under_autocast
from sslfast.ops._differentiable import quick

__all__ = ["PRIMITIVES", "mixed_edge"]


def mixed_edge(
    x: Tensor,
    alpha: Tensor,
    weights: Sequence[Tensor],
    running: Sequence[Tensor] | None,
    *,
    stride: int,
    k: int = 4,
    primitives: Sequence[str] = PRIMITIVES,
    training: bool,
    skip_dropout: float = 0.0,
    eps: float = 1e-5,
    momentum: float = 0.1,
    skip_mask: Tensor | None = None,
) -> Tensor:
    r"""Return what one edge of a DARTS, PC-DARTS or P-DARTS supernet makes of its input: all operations, mixed.

    With :math:`x_1` the first C / K channels of x, :math:`x_2` the others, and :math:`o` the operations, each on
    :math:`x_1` and ended by a batch normalisation without weights (but for the identity),

    .. math:: y = \operatorname{shuffle}_K \Big( \big[ \sum_o \alpha_o\, o(x_1),\; p(x_2) \big] \Big),

    where p is the identity for stride 1 and a max pool of 2 x 2 for stride 2, where skip_connect is a factorised
    reduce. K = 1 is DARTS. A gradient, its second derivatives, ``torch.compile`` and, without running statistics that
    are to be updated, ``torch.func`` transforms work. Liu et al., "DARTS: Differentiable Architecture Search", 2019;
    Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search", 2020, equation 2;
    Chen et al., "Progressive Differentiable Architecture Search", 2019 (subsets and ``skip_dropout``).

    Args:
        x: shape ``(B, C, H, W)``, float32 or float64. For stride 2, H and W are even (with K = 1 and without
            skip_connect, any).
        alpha: one number per primitive, shape ``(len(primitives),)``, already soft-maxed, in the dtype of x.
        weights: the convolutions' weights in the order of ``primitives``: of a separable convolution depthwise,
            pointwise, depthwise, pointwise; of a dilated one depthwise, pointwise; of a factorised reduce two of shape
            ``(C / K / 2, C / K, 1, 1)``. Depthwise ``(C / K, 1, s, s)``, pointwise ``(C / K, C / K, 1, 1)``.
        running: mean and variance of every batch normalisation in the order in which they are met, shape ``(C / K,)``
            each: updated in place where ``training`` is true, used where it is not. None: there are none, and a batch's
            own statistics always serve.
        stride: 1 or 2.
        k: the K of C / K; divides C.
        primitives: names from ``PRIMITIVES``, each at most once.
        training: whether statistics are the batch's, and entries of the identity are dropped.
        skip_dropout: share of the identity's entries that are dropped in training, from 0 to below 1; the others are
            divided by what is left. The factorised reduce drops nothing, as in the published code.
        eps: what the variances are enlarged by, > 0.
        momentum: how far running statistics move towards a batch's, from 0 to 1; running variances are unbiased.
        skip_mask: what the identity's entries are multiplied by in training, shape ``(B, C / K, H, W)``, in place of
            a drawn one. It gets no gradient.

    Returns:
        shape ``(B, C, H, W)``, for stride 2 ``(B, C, H / 2, W / 2)`` (rounded up), in the dtype of x. Under autocast
        half precision is computed, and returned, in float32.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device, name or number is out of range, or one number per channel is all that there is to
            normalise in training.
    """
    x, alpha, *weights = under_autocast(x, alpha, *_listed("weights", weights))
    statistics = [] if running is None else _listed("running", running)
    codes = _codes(primitives)
    _check(x, alpha, weights, running, stride, k, codes)
    dropped = _share(skip_dropout)
    eps = require_number("mixed_edge", "eps", eps)
    momentum = require_number("mixed_edge", "momentum", momentum, positive=False)
    if not 0 <= momentum <= 1:
        raise ValueError(f"mixed_edge: momentum must be from 0 to 1, got {momentum}")
    mask = None
    if training and stride == 1 and SKIP in codes:
        mask = _mask(x, k, skip_mask, dropped)
    batch = training or running is None
    norms = norm_count(codes, stride)
    count = x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
    if batch and count == 1 and norms:
        raise ValueError("mixed_edge: batch normalisation needs more than one number per channel in training, got 1")
    result, used = _edge(x, alpha, weights, [] if batch else statistics, mask, stride, k, codes, eps)
    if training and norms and running is not None:
        with torch.no_grad():
            torch.ops.sslfast.mixed_edge_track(statistics, used.detach(), momentum, count)
    return result


def _listed(name: str, tensors: Any) -> list[Tensor]:
    if isinstance(tensors, Tensor) or not isinstance(tensors, (list, tuple)):
        raise TypeError(f"mixed_edge: {name} must be a list of tensors, got {type(tensors).__name__}")
    return list(tensors)


def _codes(primitives: Any) -> list[int]:
    if isinstance(primitives, str) or not isinstance(primitives, (list, tuple)):
        raise TypeError(f"mixed_edge: primitives must be a list of names, got {type(primitives).__name__}")
    if not primitives:
        raise ValueError("mixed_edge: primitives must name at least one operation, got none")
    for name in primitives:
        if name not in PRIMITIVES:
            raise ValueError(f"mixed_edge: primitives must be among {', '.join(PRIMITIVES)}, got {name!r}")
    if len(set(primitives)) < len(primitives):
        raise ValueError(f"mixed_edge: primitives must differ, got {', '.join(primitives)}")
    return [PRIMITIVES.index(name) for name in primitives]


def _check(
    x: Tensor, alpha: Tensor, weights: list[Tensor], running: Any, stride: int, k: int, codes: list[int]
) -> None:
    """Hold every tensor against what the edge's form asks for."""
    named = {"x": x, "alpha": alpha} | {f"weights[{i}]": one for i, one in enumerate(weights)}
    held = named | {f"running[{i}]": one for i, one in enumerate(running or ())}
    require_tensors("mixed_edge", **held)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"mixed_edge: x must be float32 or float64, got {x.dtype}")
    if x.dim() != 4 or 0 in x.shape:
        raise ValueError(f"mixed_edge: x must be (B, C, H, W) and not empty, got {tuple(x.shape)}")
    require_count("mixed_edge", "k", k, least=1)
    if stride not in (1, 2):
        raise ValueError(f"mixed_edge: stride must be 1 or 2, got {stride!r}")
    _, channels, height, width = x.shape
    if channels % k:
        raise ValueError(f"mixed_edge: the number of channels must be divisible by k = {k}, got {channels}")
    c = channels // k
    if stride == 2 and (height % 2 or width % 2) and (k > 1 or SKIP in codes):
        raise ValueError(f"mixed_edge: stride 2 needs an even height and width, got {height} x {width}")
    if stride == 2 and SKIP in codes and c % 2:
        raise ValueError(f"mixed_edge: skip_connect with stride 2 needs an even number of channels, got C / k = {c}")
    if alpha.shape != (len(codes),):
        raise ValueError(
            f"mixed_edge: alpha must hold one number per primitive, ({len(codes)},), got {tuple(alpha.shape)}"
        )
    shapes = weight_shapes(codes, c, stride)
    if len(weights) != len(shapes):
        raise ValueError(f"mixed_edge: these primitives have {len(shapes)} weights, got {len(weights)}")
    for i, (one, shape) in enumerate(zip(weights, shapes, strict=True)):
        if one.shape != shape:
            raise ValueError(f"mixed_edge: weights[{i}] must be {shape}, got {tuple(one.shape)}")
    if running is None:
        return
    norms = norm_count(codes, stride)
    if len(running) != 2 * norms:
        raise ValueError(f"mixed_edge: running must hold a mean and a variance for {norms} norms, got {len(running)}")
    for i, one in enumerate(running):
        if one.shape != (c,):
            raise ValueError(f"mixed_edge: running[{i}] must be ({c},), got {tuple(one.shape)}")


def _share(value: Any) -> float:
    share = require_number("mixed_edge", "skip_dropout", value, positive=False)
    if not 0 <= share < 1:
        raise ValueError(f"mixed_edge: skip_dropout must be from 0 to below 1, got {share}")
    return share


def _mask(x: Tensor, k: int, given: Tensor | None, share: float) -> Tensor | None:
    shape = x.shape[0], x.shape[1] // k, *x.shape[2:]
    if given is None:
        # As torch.nn.Dropout draws it for the same channels.
        return functional.dropout(x.new_ones(shape), share, training=True) if share > 0 else None
    require_tensors("mixed_edge", x=x, skip_mask=given)
    if given.shape != shape:
        raise ValueError(f"mixed_edge: skip_mask must be {tuple(shape)}, got {tuple(given.shape)}")
    return given.detach()


def _edge(
    x: Tensor,
    alpha: Tensor,
    weights: list[Tensor],
    running: list[Tensor],
    mask: Tensor | None,
    stride: int,
    k: int,
    codes: list[int],
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the output, and the statistics that were used."""
    if torch.compiler.is_compiling():
        output, used, _ = torch.ops.sslfast.mixed_edge_fwd(x, alpha, weights, running, mask, stride, k, codes, eps)
        return output, used
    output, used, _ = _apply_forward(len(weights), stride, k, codes, eps, mask, x, alpha, *weights, *running)
    return output, used


def _forward_of(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    count, stride, k, codes, eps, mask, x, alpha, *rest = inputs
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.sslfast.mixed_edge_fwd(
        x, alpha, rest[:count], rest[count:], mask, stride, k, codes, eps
    )
    return result


def _backward_of(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    stride, k, codes, eps, batch, mask, used, saved, grad, x, alpha, *weights = inputs
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.sslfast.mixed_edge_bwd(
        grad, x, alpha, weights, mask, used, saved, batch, stride, k, codes, eps
    )
    return result


class _Forward(torch.autograd.Function):
    """mixed_edge_fwd with its weights one by one: a Function does not see tensors in a list."""

    forward = staticmethod(_forward_of)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        count, stride, k, codes, eps, mask, x, alpha, *rest = inputs
        _, used, saved = output
        ctx.others = len(rest) - count
        ctx.constants = stride, k, codes, eps, ctx.others == 0
        ctx.mark_non_differentiable(used, saved)
        # Else zeros would be made in the place of what nobody asks for, as large as all that is kept.
        ctx.set_materialize_grads(False)
        # A mask of None is saved as such.
        ctx.save_for_backward(mask, used, saved, x, alpha, *rest[:count])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _grad_used: Any, _grad_saved: Any) -> tuple[Any, ...]:
        mask, used, saved, *inputs = ctx.saved_tensors
        if grad is None:
            return (None,) * (6 + len(inputs) + int(ctx.others))
        gradients = _gradients(ctx.constants, mask, used, saved, grad, inputs)
        return (None,) * 6 + gradients + (None,) * int(ctx.others)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        each = [_Forward.apply(*inputs[:5], *one) for one in _each(info, in_dims[5:], inputs[5:])]  # type: ignore[no-untyped-call]
        return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True)), (0, 0, 0)


class _Backward(torch.autograd.Function):
    """mixed_edge_bwd likewise; its derivative is plain PyTorch."""

    forward = staticmethod(_backward_of)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        stride, k, codes, eps, batch, mask, used, _, *tensors = inputs
        ctx.constants = stride, k, codes, eps, batch
        ctx.save_for_backward(mask, used, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return (None,) * 8 + _second(ctx, cotangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        each = [_Backward.apply(*inputs[:5], *one) for one in _each(info, in_dims[5:], inputs[5:])]  # type: ignore[no-untyped-call]
        return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True)), (0, 0, 0)


def _each(info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor | None]) -> list[tuple[Any, ...]]:
    """Cut tensors, of which the first, the mask, may be None, into those of each problem."""
    cut = problems(info, in_dims[1:], [one for one in tensors[1:] if one is not None])
    first = problems(info, in_dims[:1], tensors[:1]) if tensors[0] is not None else [(None,)] * len(cut)  # type: ignore[arg-type]
    return [(*one, *rest) for one, rest in zip(first, cut, strict=True)]


_apply_forward = quick(_Forward)
_apply_backward = quick(_Backward)


def _gradients(
    constants: tuple[Any, ...], mask: Tensor | None, used: Tensor, saved: Tensor, grad: Tensor, inputs: list[Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradients of x, alpha and each weight; differentiable where somebody asks for it."""
    apply = _apply_backward if torch.is_grad_enabled() and not torch.compiler.is_compiling() else _backward_of
    of_x, of_alpha, of_weights = apply(*constants, mask, used, saved, grad, *inputs)
    weights = inputs[2:]
    parts = of_weights.split([one.numel() for one in weights]) if weights else ()
    return of_x, of_alpha, *(part.view(one.shape) for part, one in zip(parts, weights, strict=True))


def _second(ctx: Any, cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
    stride, k, codes, eps, batch = ctx.constants
    mask, used, grad, x, alpha, *weights = ctx.saved_tensors
    # What forward kept is a function of its inputs: its share is in their gradients.
    return reference.mixed_edge_bwd_bwd(cotangents, grad, x, alpha, weights, mask, used, batch, stride, k, codes, eps)


@torch.library.register_fake("sslfast::mixed_edge_fwd")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    alpha: Tensor,
    weights: list[Tensor],
    running: list[Tensor],
    skip_mask: Tensor | None,
    stride: int,
    k: int,
    primitives: list[int],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    return (
        x.new_empty((batch, channels, -(-height // stride), -(-width // stride))),
        x.new_empty((norm_count(primitives, stride), 2, channels // k)),
        x.new_empty(saved_size(x.shape, x.dtype.itemsize, stride, k, primitives)),
    )


@torch.library.register_fake("sslfast::mixed_edge_bwd")  # type: ignore[untyped-decorator]
def _(grad: Tensor, x: Tensor, alpha: Tensor, weights: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    count = sum(one.numel() for one in weights)
    return x.new_empty(x.shape), alpha.new_empty(alpha.shape), x.new_empty(count)


@torch.library.register_fake("sslfast::mixed_edge_track")  # type: ignore[untyped-decorator]
def _(running: list[Tensor], statistics: Tensor, momentum: float, count: int) -> None:
    return None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, alpha, weights, running, mask, stride, k, codes, eps = inputs
    _Forward.setup_context(ctx, (len(weights), stride, k, codes, eps, mask, x, alpha, *weights, *running), output)


def _backward_rule(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    gradients = _Forward.backward(ctx, *grads)[6:]
    of_weights = list(gradients[2 : len(gradients) - ctx.others])
    return gradients[0], gradients[1], of_weights, [None] * ctx.others, None, None, None, None, None


def _save_for_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    grad, x, alpha, weights, mask, used, saved, batch, stride, k, codes, eps = inputs
    flat = stride, k, codes, eps, batch, mask, used, saved, grad, x, alpha, *weights
    _Backward.setup_context(ctx, flat, output)


def _second_backward_rule(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
    of_grad, of_x, of_alpha, *of_weights = _second(ctx, cotangents)
    return of_grad, of_x, of_alpha, of_weights, *(None,) * 8


def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    x, alpha, weights, running, mask, stride, k, codes, eps = inputs
    dims = (*(None,) * 5, in_dims[4], in_dims[0], in_dims[1], *in_dims[2], *in_dims[3])
    return _Forward.vmap(info, dims, len(weights), stride, k, codes, eps, mask, x, alpha, *weights, *running)


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    grad, x, alpha, weights, mask, used, saved, batch, stride, k, codes, eps = inputs
    dims = (*(None,) * 5, in_dims[4], in_dims[5], in_dims[6], *in_dims[:3], *in_dims[3])
    flat = stride, k, codes, eps, batch, mask, used, saved, grad, x, alpha, *weights
    return _Backward.vmap(info, dims, *flat)


torch.library.register_autograd("sslfast::mixed_edge_fwd", _backward_rule, setup_context=_save)
torch.library.register_autograd("sslfast::mixed_edge_bwd", _second_backward_rule, setup_context=_save_for_second)
torch.library.register_vmap("sslfast::mixed_edge_fwd", _forward_vmap)
torch.library.register_vmap("sslfast::mixed_edge_bwd", _backward_vmap)


def _track_vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    raise RuntimeError("mixed_edge: vmap cannot update running statistics in training; pass running=None")


torch.library.register_vmap("sslfast::mixed_edge_track", _track_vmap)
