"""Self-Classifier loss: the public function, and the op's fake, autograd and vmap halves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslfast._reference import self_classifier as reference
from sslfast.ops._arguments import DTYPES, HALF, require_count, require_number, require_tensors, under_autocast
from sslfast.ops._differentiable import quick
from sslfast.ops._distributed import largest_over_ranks, require_group, share, sum_over_ranks

_forward = torch.ops.sslfast.self_classifier_fwd.default
_columns = torch.ops.sslfast.self_classifier_columns.default
_terms = torch.ops.sslfast.self_classifier_terms.default
_backward = torch.ops.sslfast.self_classifier_bwd.default


class Options(NamedTuple):
    """What the operators take besides tensors, in their order."""

    row_temperature: float
    column_temperature: float
    global_views: int
    eps: float
    batch: int | None = None
    """Rows of all ranks together."""


def self_classifier(
    logits: Sequence[Tensor] | Sequence[Sequence[Tensor]],
    row_temperature: float = 0.1,
    column_temperature: float = 0.05,
    *,
    global_views: int = 2,
    eps: float = 1e-8,
    group: Any = None,
) -> Tensor:
    r"""Return the cross entropy between views whose classes are kept in use by a uniform prior.

    Per head, with x_i the logits of view i, targets :math:`T_i = \mathrm{softmax}_b(x_i / \tau_c)` with each row
    divided by max(its sum, eps), predictions :math:`P_j = \mathrm{softmax}_k(x_j / \tau_r)` with each column divided by
    max(its sum, eps), and the mean over the ordered pairs of different views that are not both local (index >=
    ``global_views``),

    .. math:: L = -\operatorname{mean}_{ij} \frac{1}{B} \sum_b \sum_k T_{i,bk} \log\Big(\frac{B}{K} P_{j,bk} + eps\Big).

    Gradients flow through targets and predictions. Several heads: the mean over them. No B x K matrix is stored besides
    the gradient. Amrani et al., "Self-Supervised Classification Network", ECCV 2022.

    Args:
        logits: views of one batch, each of shape ``(B, K)``, or a list over heads of such lists; the heads may have
            different K. float32, float64, float16 or bfloat16; half precision is computed in float32. At least two
            views per head.
        row_temperature: :math:`\tau_r` of the predictions, dimensionless, > 0.
        column_temperature: :math:`\tau_c` of the targets, dimensionless, > 0.
        global_views: how many views, the first ones, are global; >= 1.
        eps: smallest divisor, and what the logarithm is kept away from zero by; >= 1e-30.
        group: a process group whose ranks hold the rows of one batch, not necessarily equally many. The value is the
            whole batch's on every rank, the gradient the whole batch's times the number of ranks.

    Returns:
        The loss, a scalar in the dtype of the logits; float32 under autocast.

    Raises:
        TypeError: ``logits`` is no list of tensors or of lists of tensors, a dtype is not supported or differs, or a
            number is none.
        ValueError: a shape or device differs, a view is empty, there are fewer than two views, or a number is out of
            its range.
    """
    heads = _heads(logits)
    options = Options(
        require_number("self_classifier", "row_temperature", row_temperature),
        require_number("self_classifier", "column_temperature", column_temperature),
        require_count("self_classifier", "global_views", global_views, least=1),
        require_number("self_classifier", "eps", eps),
    )
    ranks = None
    if require_group("self_classifier", group):
        ranks = group
        options = options._replace(batch=share(heads[0][0].shape[0], group, heads[0][0].device).total)
    total: Tensor | None = None
    for views in heads:
        loss = _loss(options, ranks, views)
        total = loss if total is None else total + loss
    assert total is not None  # there is a head
    return total if len(heads) == 1 else total / len(heads)


def _heads(logits: Any) -> list[Sequence[Tensor]]:
    """Check the logits and return them as a list over heads."""
    op = "self_classifier"
    if not isinstance(logits, (list, tuple)):
        raise TypeError(f"{op}: logits must be a list of views or of heads, got {type(logits).__name__}")
    several = len(logits) > 0 and isinstance(logits[0], (list, tuple))
    heads = list(logits) if several else [logits]
    for head in heads:
        if not isinstance(head, (list, tuple)):
            raise TypeError(f"{op}: every head must be a list of views, got {type(head).__name__}")
        if len(head) < 2:
            raise ValueError(f"{op}: a head must have at least two views, got {len(head)}")
        if len(head) != len(heads[0]):
            raise ValueError(f"{op}: every head must have equally many views, got {len(heads[0])} and {len(head)}")
    heads = [under_autocast(*head) for head in heads]
    if not _alike(heads):  # the names take longer than a small loss
        names = {
            f"logits[{h}][{v}]" if several else f"logits[{v}]": view
            for h, head in enumerate(heads)
            for v, view in enumerate(head)
        }
        require_tensors(op, **names)
    rows = heads[0][0].shape[:1]
    for head in heads:
        shape = head[0].shape
        if len(shape) != 2:
            raise ValueError(f"{op}: a view must be (B, K), got {tuple(shape)}")
        if shape[0] == 0 or shape[1] == 0:
            raise ValueError(f"{op}: a view must not be empty, got {tuple(shape)}")
        for view in head:
            if view.shape != shape:
                raise ValueError(
                    f"{op}: a head's views must have one shape, got {tuple(shape)} and {tuple(view.shape)}"
                )
        if shape[:1] != rows:
            raise ValueError(f"{op}: every head must have as many rows, got {rows[0]} and {shape[0]}")
    return heads


def _alike(heads: Sequence[Sequence[Any]]) -> bool:
    """Tell whether every view is a tensor as the operators take it, of one dtype and on one device."""
    first = heads[0][0]
    if not isinstance(first, Tensor) or first.dtype not in DTYPES:
        return False
    dtype, device, layout = first.dtype, first.device, torch.strided
    for head in heads:
        for view in head:
            if not isinstance(view, Tensor):
                return False
            if view.dtype != dtype or view.device != device or view.layout != layout or view.is_nested:
                return False
    return True


def _loss(options: Options, group: Any, views: Sequence[Tensor]) -> Tensor:
    if torch.compiler.is_compiling() and group is None:
        loss: Tensor = _forward(views, *options[:4])[0]
    else:
        loss = _apply_loss(options, group, *views)[0]
    return loss if loss.dtype == views[0].dtype else loss.to(views[0].dtype)


def _run(options: Options, group: Any, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the loss, and what backward reads: columns and rows."""
    if group is None:
        return tuple(_forward(views, *options[:4]))
    columns, rows = _columns(views, *options[:2])
    # K numbers per statistic and view: the maxima, then what is measured from them.
    maximum = largest_over_ranks(columns[0], group)
    factor = ((columns[0] - maximum) / options.column_temperature).exp()
    # NaN: the whole column is -infinity here (its sum is 0) or everywhere.
    summed = torch.stack([columns[1] * factor.nan_to_num(nan=0.0), columns[2]])
    columns = torch.cat([maximum[None], sum_over_ranks(summed, group)])
    loss, columns, rows = _terms(views, columns, rows, *options)
    return sum_over_ranks(loss, group), columns, rows


class _Loss(torch.autograd.Function):
    """Serves eager mode and ``torch.func``; under ``torch.compile`` the raw operators' own registrations do."""

    @staticmethod
    def forward(options: Options, group: Any, *views: Tensor) -> tuple[Tensor, ...]:
        return _run(options, group, views)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, ctx.group, *views = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:], *views)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        columns, rows, *views = ctx.saved_tensors
        if grads[0] is None:
            return (None,) * (2 + len(views))
        grad = grads[0]
        if ctx.group is not None:
            columns = torch.cat([columns[:3], sum_over_ranks(columns[3:], ctx.group)])
            grad = grad * torch.distributed.get_world_size(ctx.group)
        gradient = _gradient(ctx.options, ctx.group, grad, columns, rows, *views)
        return None, None, *gradient.unbind(0)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: Options, group: Any, *views: Tensor) -> tuple[Any, Any]:
        if group is not None:
            raise NotImplementedError("self_classifier: vmap is not supported with group")
        results = [_Loss.apply(options, None, *one) for one in _problems(info, in_dims[2:], views)]
        return tuple(torch.stack(one) for one in zip(*results, strict=True)), (0,) * 3


_apply_loss = quick(_Loss)


def _gradient(options: Options, group: Any, *tensors: Tensor) -> Tensor:
    """Return the gradient (V, B, K); ``tensors``: grad, columns, rows, and the views."""
    if torch.is_grad_enabled():  # a second derivative is wanted, or torch.func is at work
        result: Tensor = _Gradient.apply(options, group, *tensors)
    else:
        result = _run_gradient(options, *tensors)
    return result


def _run_gradient(options: Options, grad: Tensor, *tensors: Tensor) -> Tensor:
    columns, rows, *views = tensors
    result: Tensor = _backward(grad, views, columns, rows, *options)
    return result


class _Gradient(torch.autograd.Function):
    """The gradient as a function of ``grad`` and of the views, of which all the other tensors are functions."""

    @staticmethod
    def forward(options: Options, group: Any, *tensors: Tensor) -> Tensor:
        return _run_gradient(options, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options, ctx.group, grad, _, _, *views = inputs
        ctx.save_for_backward(grad, *views)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.group is not None:
            raise NotImplementedError("self_classifier: second derivatives are not supported with group")
        grad, *views = ctx.saved_tensors
        of_grad, of_views = _second(ctx.options, cotangent, grad, views)
        return None, None, of_grad, None, None, *of_views

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: Options, group: Any, *tensors: Tensor) -> tuple[Any, int]:
        problems = _problems(info, in_dims[2:], tensors)
        return torch.stack([_gradient(options, None, *one) for one in problems]), 0


def _second(options: Options, cotangent: Tensor, grad: Tensor, views: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Pull ``cotangent`` (V, B, K) back to ``grad`` and the views; plain PyTorch, differentiable again."""
    exact = [view.float() if view.dtype in HALF else view for view in views]

    def loss(*views: Tensor) -> Tensor:
        return reference.self_classifier(
            views,
            options.row_temperature,
            options.column_temperature,
            global_views=options.global_views,
            eps=options.eps,
        )

    gradient = torch.func.grad(loss, argnums=tuple(range(len(views))))
    first, pull = torch.func.vjp(gradient, *exact)  # type: ignore[misc]
    cotangents = tuple(cotangent.to(exact[0].dtype).unbind(0))
    of_grad = sum((one * other).sum() for one, other in zip(first, cotangents, strict=True))
    of_views = [(one * grad).to(view.dtype) for one, view in zip(pull(cotangents), views, strict=True)]
    return of_grad, of_views  # type: ignore[return-value]


def _problems(info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    columns = [
        (tensor,) * info.batch_size if dim is None else tensor.unbind(dim)
        for tensor, dim in zip(tensors, in_dims, strict=True)
    ]
    return list(zip(*columns, strict=True))


def _shapes(views: Sequence[Tensor], columns: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return empty statistics, so many per column and row, in the dtype that is computed in."""
    dtype = torch.float32 if views[0].dtype in HALF else views[0].dtype
    count, classes = views[0].shape
    shapes = ((columns, len(views), classes), (rows, len(views), count))
    return views[0].new_empty(shapes[0], dtype=dtype), views[0].new_empty(shapes[1], dtype=dtype)


@torch.library.register_fake("sslfast::self_classifier_columns")  # type: ignore[untyped-decorator]
def _(views: Sequence[Tensor], *temperatures: float) -> tuple[Tensor, Tensor]:
    return _shapes(views, 3, 2)


@torch.library.register_fake("sslfast::self_classifier_terms")  # type: ignore[untyped-decorator]
@torch.library.register_fake("sslfast::self_classifier_fwd")  # type: ignore[untyped-decorator]
def _fake_forward(views: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    columns, rows = _shapes(views, 5, 5)
    return columns.new_empty(()), columns, rows


@torch.library.register_fake("sslfast::self_classifier_bwd")  # type: ignore[untyped-decorator]
def _(grad: Tensor, views: Sequence[Tensor], *rest: Any) -> Tensor:
    return views[0].new_empty((len(views), *views[0].shape))


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output)
    ctx.inputs = len(inputs)


def _no_gradient(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    return (None,) * int(ctx.inputs)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    views, *options = inputs
    ctx.options = Options(*options)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], *views)


def _backward_rule(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    columns, rows, *views = ctx.saved_tensors
    gradient: Tensor = _backward(grad, views, columns, rows, *ctx.options)
    return list(gradient.unbind(0)), None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, views, *rest = inputs
    ctx.options = Options(*rest[2:])
    ctx.save_for_backward(grad, *views)


def _second_backward_rule(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    grad, *views = ctx.saved_tensors
    of_grad, of_views = _second(ctx.options, cotangent, grad, views)
    return of_grad, of_views, *[None] * (2 + len(ctx.options))


# The halves serve process groups, whose derivative is _Loss's.
for half in ("columns", "terms"):
    torch.library.register_autograd(f"sslfast::self_classifier_{half}", _no_gradient, setup_context=_save_nothing)
torch.library.register_autograd("sslfast::self_classifier_fwd", _backward_rule, setup_context=_save_forward)
torch.library.register_autograd("sslfast::self_classifier_bwd", _second_backward_rule, setup_context=_save_backward)


@torch.library.impl("sslfast::self_classifier_bwd", "Batched")  # type: ignore[untyped-decorator]
def _(grad: Tensor, *rest: Any) -> Tensor:
    """Serve ``torch.autograd.grad(is_grads_batched=True)``: only ``grad`` is mapped, and the gradient linear in it."""
    gradient: Tensor = _backward(torch.ones((), dtype=grad.dtype, device=grad.device), *rest)
    return gradient * grad
