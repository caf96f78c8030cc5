"""SwAV loss: the public function, and the op's fake, autograd and vmap halves."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslfast._reference import swav_loss as reference
from sslfast.ops._arguments import (
    in_full_precision,
    problems,
    require_count,
    require_number,
    require_tensors,
    under_autocast,
)
from sslfast.ops._differentiable import quick
from sslfast.ops._distributed import mean_over_ranks, require_group
from sslfast.ops.sinkhorn import potentials_of_group


def swav_loss(
    high_resolution: Sequence[Tensor],
    low_resolution: Sequence[Tensor],
    queue: Sequence[Tensor] | None = None,
    *,
    temperature: float = 0.1,
    iterations: int = 3,
    epsilon: float = 0.05,
    group: Any = None,
) -> Tensor:
    r"""Return the SwAV loss: every view predicts the codes of every other high-resolution view.

    With :math:`z^v` the scores of view v, and :math:`q^i` the first B rows of :func:`sslfast.sinkhorn` of the scores of
    high-resolution view i with its queue below them,

    .. math:: L = \frac{-1}{H (V - 1) B} \sum_{i \le H} \sum_{v \ne i} \sum_{b, k}
        q^i_{bk} \log \operatorname{softmax}_k (z^v_{bk} / \tau).

    The codes count as constants, in every derivative. Neither they nor the soft-max are stored. Second derivatives,
    ``torch.func`` transforms and ``torch.compile`` work. Caron et al., "Unsupervised Learning of Visual Features by
    Contrasting Cluster Assignments", 2020.

    Args:
        high_resolution: scores of the H high-resolution views, at least one, each of shape ``(B, K)``: B samples, K
            prototypes; float32, float64, float16 or bfloat16. Half precision is computed in float32.
        low_resolution: scores of the other views, of the same shape; may be empty where there are two or more
            high-resolution ones.
        queue: one tensor ``(rows, K)`` of earlier scores per high-resolution view, or None. It gets no gradient.
        temperature: :math:`\tau`, dimensionless, > 0.
        iterations: of Sinkhorn-Knopp, >= 0.
        epsilon: of Sinkhorn-Knopp, dimensionless, > 0.
        group: a process group whose ranks each hold some rows of one batch (and of the queue), not necessarily equally
            many, and equally many views. Every rank gets the whole batch's loss; its gradient is that of the whole
            batch times the number of ranks.

    Returns:
        The mean over pairs of views and samples, a scalar in the views' dtype; float32 under autocast.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or number is out of range, or there is no pair of views.
    """
    high, low = _listed("high_resolution", high_resolution), _listed("low_resolution", low_resolution)
    queued = [] if queue is None else _listed("queue", queue)
    count = len(high)
    if high:  # autocast makes one dtype of several
        tensors = list(under_autocast(*high, *low, *queued))
        high, low, queued = tensors[:count], tensors[count : count + len(low)], tensors[count + len(low) :]
    _check(high, low, queue is not None, queued)
    temperature = require_number("swav_loss", "temperature", temperature)
    require_count("swav_loss", "iterations", iterations)
    epsilon = require_number("swav_loss", "epsilon", epsilon)
    several = require_group("swav_loss", group)
    views = [*high, *low]
    dtype = views[0].dtype
    queued = [in_full_precision(one.detach()) for one in queued]
    views = [in_full_precision(view) for view in views]
    constants = [view.detach() for view in views[:count]]
    if several:
        sets = [[one, *queued[i : i + 1]] for i, one in enumerate(constants)]
        rows = len(constants[0]) + (len(queued[0]) if queued else 0)
        potential = potentials_of_group(sets, None, rows, iterations, epsilon, group)
    else:
        potential = torch.ops.sslfast.swav_potentials(constants, queued, iterations, epsilon)
    loss: Tensor = _loss(count, potential, iterations > 0, temperature, epsilon, views)
    if several:
        loss = mean_over_ranks(loss.expand(len(views[0])), group)
    return loss if dtype == loss.dtype else loss.to(dtype)


def _listed(name: str, tensors: Any) -> list[Tensor]:
    if isinstance(tensors, Tensor) or not isinstance(tensors, (list, tuple)):
        raise TypeError(f"swav_loss: {name} must be a list of tensors, got {type(tensors).__name__}")
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"swav_loss: {name}[{i}] must be a tensor, got {type(tensor).__name__}")
    return list(tensors)


def _check(high: list[Tensor], low: list[Tensor], has_queue: bool, queued: list[Tensor]) -> None:
    if not high or len(high) + len(low) < 2:
        raise ValueError(
            "swav_loss: there must be a high-resolution view and another view, "
            f"got {len(high)} high-resolution and {len(low)} low-resolution views"
        )
    named = {f"high_resolution[{i}]": view for i, view in enumerate(high)}
    named |= {f"low_resolution[{i}]": view for i, view in enumerate(low)}
    require_tensors("swav_loss", **named, **{f"queue[{i}]": one for i, one in enumerate(queued)})
    shape = high[0].shape
    if len(shape) != 2 or shape[0] == 0 or shape[1] == 0:
        raise ValueError(f"swav_loss: high_resolution[0] must be (B, K) and not empty, got {tuple(shape)}")
    for name, view in named.items():
        if view.shape != shape:
            raise ValueError(
                f"swav_loss: all views must have high_resolution[0]'s shape {tuple(shape)}, "
                f"{name} has {tuple(view.shape)}"
            )
    if has_queue and len(queued) != len(high):
        raise ValueError(
            f"swav_loss: queue must have one tensor per high-resolution view, got {len(queued)} for {len(high)}"
        )
    for i, one in enumerate(queued):
        if one.dim() != 2 or one.shape[1] != shape[1]:
            raise ValueError(f"swav_loss: queue[{i}] must be (rows, {shape[1]}), got {tuple(one.shape)}")


def _loss(
    count: int, potential: Tensor, normalised: bool, temperature: float, epsilon: float, views: Sequence[Tensor]
) -> Tensor:
    """Return the mean over this process's rows; the first ``count`` views are the high-resolution ones."""
    if torch.compiler.is_compiling():
        loss: Tensor = torch.ops.sslfast.swav_loss_fwd(
            views[:count], views[count:], potential, normalised, temperature, epsilon
        )[0]
        return loss
    of_views: Tensor = _apply_loss(count, normalised, temperature, epsilon, potential, *views)[0]
    return of_views


def _gradient(
    count: int,
    normalised: bool,
    temperature: float,
    epsilon: float,
    grad: Tensor,
    potential: Tensor,
    lse: Tensor,
    code_lse: Tensor,
    *views: Tensor,
) -> Tensor:
    """Return the gradients of all views, (V, B, K); differentiable where somebody asks for it."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        result: Tensor = _apply_gradient(
            count, normalised, temperature, epsilon, grad, potential, lse, code_lse, *views
        )
        return result
    return _gradient_of(count, normalised, temperature, epsilon, grad, potential, lse, code_lse, *views)


def _gradient_of(
    count: int,
    normalised: bool,
    temperature: float,
    epsilon: float,
    grad: Tensor,
    potential: Tensor,
    lse: Tensor,
    code_lse: Tensor,
    *views: Tensor,
) -> Tensor:
    result: Tensor = torch.ops.sslfast.swav_loss_bwd(
        grad, views[:count], views[count:], potential, lse, code_lse, normalised, temperature, epsilon
    )
    return result


class _Loss(torch.autograd.Function):
    """swav_loss_fwd with its views one by one: a Function does not see tensors in a list."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        # No names: PyTorch binds the arguments to them in every call, which costs as much as the rest.
        count, normalised, temperature, epsilon, potential, *views = inputs
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.sslfast.swav_loss_fwd(
            views[:count], views[count:], potential, normalised, temperature, epsilon
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *ctx.constants, potential = inputs[:5]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(potential, *output[1:], *inputs[5:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _grad_lse: Tensor, _grad_code_lse: Tensor) -> tuple[Tensor | None, ...]:
        gradient = _gradient(*ctx.constants, grad, *ctx.saved_tensors)
        return None, None, None, None, None, *gradient.unbind(0)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        each = [_Loss.apply(*inputs[:4], *one) for one in problems(info, in_dims[4:], inputs[4:])]  # type: ignore[no-untyped-call]
        return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True)), (0, 0, 0)


class _Gradient(torch.autograd.Function):
    """swav_loss_bwd likewise; its derivative is plain PyTorch."""

    forward = staticmethod(_gradient_of)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *ctx.constants, grad, potential, _, _ = inputs[:8]
        ctx.save_for_backward(grad, potential, *inputs[8:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        of_grad, of_views = _second(ctx, cotangent)
        return None, None, None, None, of_grad, None, None, None, *of_views

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        each = [_Gradient.apply(*inputs[:4], *one) for one in problems(info, in_dims[4:], inputs[4:])]  # type: ignore[no-untyped-call]
        return torch.stack(each), 0


_apply_loss = quick(_Loss)
_apply_gradient = quick(_Gradient)


def _second(ctx: Any, cotangent: Tensor) -> tuple[Tensor, list[Tensor]]:
    # lse is a function of the views: its share is in their gradients. The codes' numbers are constants.
    count, normalised, temperature, epsilon = ctx.constants
    grad, potential, *views = ctx.saved_tensors
    return reference.swav_loss_bwd_bwd(
        cotangent, grad, views[:count], views[count:], potential, normalised, temperature, epsilon
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    high, low, potential, *rest = inputs
    _Loss.setup_context(ctx, (len(high), *rest, potential, *high, *low), output)


def _backward_rule(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    gradients = _Loss.backward(ctx, *grads)[5:]
    count = ctx.constants[0]
    return list(gradients[:count]), list(gradients[count:]), None, None, None, None


def _save_for_second(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, high, low, potential, lse, code_lse, *rest = inputs
    _Gradient.setup_context(ctx, (len(high), *rest, grad, potential, lse, code_lse, *high, *low), output)


def _second_backward_rule(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    of_grad, of_views = _second(ctx, cotangent)
    count = ctx.constants[0]
    return of_grad, of_views[:count], of_views[count:], None, None, None, None, None, None


def _potentials_vmap(
    info: Any, in_dims: tuple[Any, ...], high: list[Tensor], queue: list[Tensor], iterations: int, epsilon: float
) -> tuple[Tensor, int]:
    count = len(high)
    each = problems(info, [*in_dims[0], *in_dims[1]], [*high, *queue])
    results = [torch.ops.sslfast.swav_potentials(one[:count], one[count:], iterations, epsilon) for one in each]
    return torch.stack(results), 0


def _forward_vmap(
    info: Any, in_dims: tuple[Any, ...], high: list[Tensor], low: list[Tensor], potential: Tensor, *rest: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    dims = [in_dims[2], *in_dims[0], *in_dims[1]]
    return _Loss.vmap(info, (None, None, None, None, *dims), len(high), *rest, potential, *high, *low)


def _backward_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    grad: Tensor,
    high: list[Tensor],
    low: list[Tensor],
    potential: Tensor,
    lse: Tensor,
    code_lse: Tensor,
    *rest: Any,
) -> tuple[Tensor, int]:
    dims = [in_dims[0], *in_dims[3:6], *in_dims[1], *in_dims[2]]
    tensors = (grad, potential, lse, code_lse, *high, *low)
    return _Gradient.vmap(info, (None, None, None, None, *dims), len(high), *rest, *tensors)


torch.library.register_autograd("sslfast::swav_loss_fwd", _backward_rule, setup_context=_save)
torch.library.register_autograd("sslfast::swav_loss_bwd", _second_backward_rule, setup_context=_save_for_second)
torch.library.register_vmap("sslfast::swav_potentials", _potentials_vmap)
torch.library.register_vmap("sslfast::swav_loss_fwd", _forward_vmap)
torch.library.register_vmap("sslfast::swav_loss_bwd", _backward_vmap)


@torch.library.register_fake("sslfast::swav_potentials")  # type: ignore[untyped-decorator]
def _(high: list[Tensor], queue: list[Tensor], iterations: int, epsilon: float) -> Tensor:
    return high[0].new_empty((len(high), high[0].shape[1]))


@torch.library.register_fake("sslfast::swav_loss_fwd")  # type: ignore[untyped-decorator]
def _(
    high: list[Tensor], low: list[Tensor], potential: Tensor, normalised: bool, temperature: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows = high[0].shape[0]
    first = high[0]
    return first.new_empty(()), first.new_empty((len(high) + len(low), rows)), first.new_empty((len(high), rows))


@torch.library.register_fake("sslfast::swav_loss_bwd")  # type: ignore[untyped-decorator]
def _(
    grad: Tensor,
    high: list[Tensor],
    low: list[Tensor],
    potential: Tensor,
    lse: Tensor,
    code_lse: Tensor,
    normalised: bool,
    temperature: float,
    epsilon: float,
) -> Tensor:
    return high[0].new_empty((len(high) + len(low), *high[0].shape))
