"""Barlow Twins loss: the public function, and the operators' fake, autograd and vmap halves."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sslfast._reference import barlow_twins as reference
from sslfast._reference.barlow_twins import EPS, LAMBDA
from sslfast.ops import _arguments as arguments
from sslfast.ops import _distributed as distributed
from sslfast.ops._differentiable import differentiable


def barlow_twins(
    z0: Tensor,
    z1: Tensor,
    lambda_param: float = LAMBDA,
    *,
    eps: float = EPS,
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""Return the Barlow Twins loss of two batches of views.

    With A and B the views, each column normalised over the batch (biased variance, ``eps`` inside the root, no affine
    map), and :math:`C = A^\top B / N`,

    .. math:: L = \sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2.

    Where N < D, no D x D matrix is formed: :math:`\|A^\top B\|^2 = \langle A A^\top, B B^\top \rangle`. Second
    derivatives, ``torch.func`` transforms and ``torch.compile`` work. Zbontar et al., "Barlow Twins: Self-Supervised
    Learning via Redundancy Reduction", 2021.

    Args:
        z0: projections of the first views, shape ``(N, D)``, N >= 2; float32, float64, float16 or bfloat16. Half
            precision is computed in float32. A column without variance counts as zeros.
        z1: projections of the second views, with the shape, dtype and device of ``z0``; row i belongs to row i.
        lambda_param: :math:`\lambda`, weight of the redundancy term, dimensionless.
        eps: what is added to each variance, in the views' unit squared, > 0.
        group: process group of torch.distributed whose ranks hold the rows of one batch, not necessarily equally many:
            means, variances and C are those of all rows, every rank gets the value of the whole batch, and gradients
            are those of the whole batch times the number of ranks, which ``DistributedDataParallel`` divides by.

    Returns:
        The loss, a scalar in the dtype of ``z0``; float32 under autocast.

    Raises:
        TypeError: an argument is no tensor, number or group, or a dtype is not supported or differs.
        ValueError: a shape or device differs, the batch has fewer than two rows, or a number is out of its range.
    """
    z0, z1 = arguments.under_autocast(z0, z1)
    arguments.require_tensors("barlow_twins", z0=z0, z1=z1)
    arguments.require_same_matrices("barlow_twins", "(N, D)", z0=z0, z1=z1)
    lambda_param = arguments.require_number("barlow_twins", "lambda_param", lambda_param, positive=False)
    eps = arguments.require_number("barlow_twins", "eps", eps)
    if distributed.require_group("barlow_twins", group):
        loss: Tensor = _OverRanks.apply(z0, z1, lambda_param, eps, group)
        return loss.to(z0.dtype)
    _require_two_rows(z0.shape[0])
    if z0.shape[0] < z0.shape[1]:
        loss = _dual_forward(z0, z1, 0, z0.shape[0], lambda_param, eps)[0]
    else:
        loss = _direct_forward(z0, z1, lambda_param, eps)[0]
    return loss if loss.dtype == z0.dtype else loss.to(z0.dtype)


def _require_two_rows(rows: int) -> None:
    if rows < 2:
        raise ValueError(f"barlow_twins: the variance over the batch needs at least two rows, got {rows}")


def _like(z: Tensor, *shape: int) -> Tensor:
    """Return an empty tensor in the dtype in which ``z`` is computed."""
    return z.new_empty(shape, dtype=torch.float32 if z.dtype in arguments.HALF else z.dtype)


@torch.library.register_fake("sslfast::barlow_twins_direct_fwd")  # type: ignore[untyped-decorator]
def _(z0: Tensor, z1: Tensor, lambda_param: float, eps: float) -> tuple[Tensor, ...]:
    columns = z0.shape[1]
    return _like(z0), _like(z0, 2, 3, columns), _like(z0, columns, columns)


@torch.library.register_fake("sslfast::barlow_twins_direct_bwd")  # type: ignore[untyped-decorator]
def _(grad: Tensor, z0: Tensor, z1: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return z0.new_empty(z0.shape), z1.new_empty(z1.shape)


@torch.library.register_fake("sslfast::barlow_twins_correlation")  # type: ignore[untyped-decorator]
def _(z0: Tensor, z1: Tensor, statistics: Tensor, total: int) -> Tensor:
    return _like(z0, z0.shape[1], z0.shape[1])


@torch.library.register_fake("sslfast::barlow_twins_dual_fwd")  # type: ignore[untyped-decorator]
def _(z0: Tensor, z1: Tensor, first: int, rows: int, lambda_param: float, eps: float) -> tuple[Tensor, ...]:
    count, columns = z0.shape
    return _like(z0), _like(z0, 2, 3, columns), _like(z0, columns), _like(z0, 2, rows, count)


@torch.library.register_fake("sslfast::barlow_twins_dual_bwd")  # type: ignore[untyped-decorator]
def _(grad: Tensor, z0: Tensor, z1: Tensor, statistics: Tensor, diagonal: Tensor, grams: Tensor, *_: Any) -> Any:
    shape = grams.shape[1], z0.shape[1]
    return z0.new_empty(shape), z1.new_empty(shape), _like(z0, 2, z0.shape[1])


# Two rows of functions, one per route, of one form: what is saved, the derivative, and vmap, problem by problem.
# Where nobody differentiates a gradient again, the operator alone is enough, and a layer of Python is saved.


def _direct_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z0, z1, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(z0, z1, *output[1:])


def _direct_backward_rule(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    operator = _direct_backward if torch.is_grad_enabled() else torch.ops.sslfast.barlow_twins_direct_bwd
    of_z0, of_z1 = operator(grad, *saved, saved[0].shape[0], *ctx.options)
    return of_z0, of_z1, None, None


def _dual_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z0, z1, _, rows, *ctx.options = inputs
    if rows != z0.shape[0]:
        raise RuntimeError("barlow_twins_dual_fwd: a part of the rows has no derivative of its own")
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(z0, z1, *output[1:])


def _dual_backward_rule(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    operator = _dual_backward if torch.is_grad_enabled() else torch.ops.sslfast.barlow_twins_dual_bwd
    of_z0, of_z1, _ = operator(grad, *ctx.saved_tensors, 0, *ctx.options)
    return of_z0, of_z1, None, None, None, None


def _save_for_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # Everything between z1 and the options is a function of the views: its share is in their gradients.
    grad, z0, z1, *ctx.others = inputs
    if len(output) == 3:
        ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(grad, z0, z1)


def _second_backward_rule(ctx: Any, cotangent0: Tensor, cotangent1: Tensor, *_: Any) -> tuple[Any, ...]:
    of_all = reference.barlow_twins_bwd_bwd(cotangent0, cotangent1, *ctx.saved_tensors, *ctx.others[-2:])
    return (*of_all, *(None for _ in ctx.others))


def _vmap_of(function: Callable[..., Any], tensors: int) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        each = [function()(*one, *inputs[tensors:]) for one in arguments.problems(info, in_dims, inputs[:tensors])]
        return tuple(torch.stack(list(outputs)) for outputs in zip(*each, strict=True)), (0,) * len(each[0])

    return rule


_direct_forward: Callable[..., Any] = differentiable(
    "barlow_twins_direct_fwd",
    save=_direct_save,
    backward=_direct_backward_rule,
    vmap=_vmap_of(lambda: _direct_forward, 2),
)
_direct_backward: Callable[..., Any] = differentiable(
    "barlow_twins_direct_bwd",
    save=_save_for_second,
    backward=_second_backward_rule,
    vmap=_vmap_of(lambda: _direct_backward, 5),
)
_dual_forward: Callable[..., Any] = differentiable(
    "barlow_twins_dual_fwd", save=_dual_save, backward=_dual_backward_rule, vmap=_vmap_of(lambda: _dual_forward, 2)
)
_dual_backward: Callable[..., Any] = differentiable(
    "barlow_twins_dual_bwd",
    save=_save_for_second,
    backward=_second_backward_rule,
    vmap=_vmap_of(lambda: _dual_backward, 6),
)


class _OverRanks(torch.autograd.Function):
    """The loss of one batch whose rows lie on several ranks, by whichever route exchanges less.

    Dual: every rank gathers all rows, and computes its own rows of both Gram matrices. Direct: every rank computes its
    rows' share of C; the shares are added up, and backward exchanges nothing.
    """

    @staticmethod
    def forward(ctx: Any, z0: Tensor, z1: Tensor, lambda_param: float, eps: float, group: Any) -> Tensor:
        rows, columns = z0.shape
        of = distributed.share(rows, group, z0.device)
        _require_two_rows(of.total)
        ctx.of, ctx.options, ctx.group = of, (lambda_param, eps), group
        ctx.dual = of.total < columns
        if ctx.dual:
            views = distributed.gather_rows(z0, of, group), distributed.gather_rows(z1, of, group)
            loss, *kept = torch.ops.sslfast.barlow_twins_dual_fwd(*views, of.start, rows, lambda_param, eps)
            loss = distributed.sum_over_ranks(loss, group)
        else:
            views = z0, z1
            statistics = _statistics_over_ranks(views, of.total, eps, group)
            correlation = torch.ops.sslfast.barlow_twins_correlation(z0, z1, statistics, of.total)
            correlation = distributed.sum_over_ranks(correlation, group)
            loss = _loss_of_correlation(correlation, lambda_param)
            kept = [statistics, correlation]
        ctx.save_for_backward(*views, *kept)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("barlow_twins: there are no second derivatives over a group")
        of = ctx.of
        grad = grad * len(of.counts)
        if not ctx.dual:
            gradients = torch.ops.sslfast.barlow_twins_direct_bwd(grad, *ctx.saved_tensors, of.total, *ctx.options)
            return *gradients, None, None, None
        *gradients, along = torch.ops.sslfast.barlow_twins_dual_bwd(grad, *ctx.saved_tensors, of.start, *ctx.options)
        others = (distributed.sum_over_ranks(along, ctx.group) - along) * (grad / of.total)
        for which, gradient in enumerate(gradients):
            view, statistics = ctx.saved_tensors[which][of.rows], ctx.saved_tensors[2][which]
            gradient -= reference.normalised(view, statistics) * (others[which] * statistics[2])
        return *gradients, None, None, None


def _statistics_over_ranks(views: tuple[Tensor, Tensor], total: int, eps: float, group: Any) -> Tensor:
    """Return what the columns are normalised with, (2, 3, D): two exchanges of 2 D numbers."""
    wide = [view.double() for view in views]
    mean = distributed.sum_over_ranks(torch.stack([view.sum(dim=0) for view in wide]), group) / total
    squares = torch.stack([(view - about).square().sum(dim=0) for view, about in zip(wide, mean, strict=True)])
    inverse = (distributed.sum_over_ranks(squares, group) / total + eps).rsqrt()
    dtype = _like(views[0]).dtype
    center = mean.to(dtype)
    return torch.stack([center, (mean - center).to(dtype), inverse.to(dtype)], dim=1)


def _loss_of_correlation(correlation: Tensor, lambda_param: float) -> Tensor:
    """Return the loss without another D x D array."""
    diagonal = correlation.diagonal().clone()
    correlation.diagonal().zero_()
    redundancy = torch.linalg.vector_norm(correlation, dim=1).double().square().sum()
    correlation.diagonal().copy_(diagonal)
    invariance = (diagonal.double() - 1).square().sum()
    loss: Tensor = invariance + lambda_param * redundancy
    return loss.to(correlation.dtype)
