"""Log-sum-exp of scores between two sets of rows: the op's fake and autograd halves. Losses call it."""

from typing import Any

import torch
from torch import Tensor

from sslfast._reference import score_lse as reference
from sslfast.ops._arguments import problems
from sslfast.ops._differentiable import quick

LEAST_BANK = 4
"""So many columns per row are a bank: they, and not the rows, are split over the threads."""


def score_lse(
    rows: Tensor,
    columns: Tensor,
    row_label: Tensor | None = None,
    column_label: Tensor | None = None,
    *,
    diagonal: int | None = None,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    r"""Return, per row, the log-sum-exp of its scores, over all columns and over those of the row's label.

    .. math:: \log \sum_{j \ne i + d} e^{r_i \cdot c_j / \tau}

    No matrix of scores is stored, except where a gradient is itself differentiated.

    Args:
        rows: shape ``(n, D)``, float32 or float64.
        columns: shape ``(m, D)``; the rows themselves (the same tensor) save half of the backward pass.
        row_label: int64, shape ``(n,)``; without labels the second result is -infinity.
        column_label: int64, shape ``(m,)``.
        diagonal: d; by default every row meets every column.
        temperature: :math:`\tau`, > 0.

    Returns:
        Two tensors of shape ``(n,)``; -infinity for a sum without terms.
    """
    if diagonal is None:
        diagonal = columns.shape[0]
    both: tuple[Tensor, Tensor] = _apply(
        rows,
        None if columns is rows else columns,
        row_label,
        None if column_label is row_label else column_label,
        diagonal,
        temperature,
    )
    return both


@torch.library.register_fake("sslfast::score_lse_fwd")  # type: ignore[untyped-decorator]
def _(
    rows: Tensor,
    columns: Tensor,
    row_label: Tensor | None,
    column_label: Tensor | None,
    diagonal: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape[:1]), rows.new_empty(rows.shape[:1])


@torch.library.register_fake("sslfast::score_lse_bwd")  # type: ignore[untyped-decorator]
def _(
    rows: Tensor,
    columns: Tensor,
    row_label: Tensor | None,
    column_label: Tensor | None,
    diagonal: int,
    temperature: float,
    row_side: Tensor | None,
    column_side: Tensor | None,
) -> Tensor:
    return rows.new_empty(rows.shape)


@torch.library.register_fake("sslfast::score_lse_bank_bwd")  # type: ignore[untyped-decorator]
def _(
    rows: Tensor, columns: Tensor, temperature: float, grad: Tensor, lse: Tensor, of_columns: bool
) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), columns.new_empty((columns.shape[0] if of_columns else 0, columns.shape[1]))


def rows_gradient(*arguments: Any) -> Tensor:
    """Call ``score_lse_bwd``, or plain PyTorch where the gradient will be differentiated (``create_graph=True``)."""
    if torch.is_grad_enabled():
        return reference.score_lse_bwd(*arguments)
    result: Tensor = torch.ops.sslfast.score_lse_bwd(*arguments)
    return result


class _ScoreLse(torch.autograd.Function):
    """``columns`` is None where the columns are the rows, ``column_label`` where the labels are the same tensor."""

    @staticmethod
    def forward(
        rows: Tensor,
        columns: Tensor | None,
        row_label: Tensor | None,
        column_label: Tensor | None,
        diagonal: int,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        both: tuple[Tensor, Tensor] = torch.ops.sslfast.score_lse_fwd(
            rows,
            rows if columns is None else columns,
            row_label,
            row_label if column_label is None else column_label,
            diagonal,
            temperature,
        )
        return both

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        rows, columns, row_label, column_label, ctx.diagonal, ctx.temperature = inputs
        # The log-sum-exps are outputs: through them, a second derivative finds its way back into this function.
        ctx.save_for_backward(rows, columns, row_label, column_label, *output)

    @staticmethod
    def backward(ctx: Any, grad_all: Tensor, grad_equal: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, row_label, column_label, lse_all, lse_equal = ctx.saved_tensors
        column_label = row_label if column_label is None else column_label
        if _is_bank(ctx, rows, columns, row_label):
            both = torch.ops.sslfast.score_lse_bank_bwd(
                rows, columns, ctx.temperature, grad_all, lse_all, ctx.needs_input_grad[1]
            )
            return both[0], both[1] if ctx.needs_input_grad[1] else None, None, None, None, None
        side = torch.stack([grad_all, grad_equal, lse_all, lse_equal])
        options = ctx.diagonal, ctx.temperature
        if columns is None:
            joint = rows_gradient(rows, rows, row_label, column_label, *options, side, side)
            return joint, None, None, None, None, None
        of_rows: Tensor | None = None
        of_columns: Tensor | None = None
        if ctx.needs_input_grad[0]:
            of_rows = rows_gradient(rows, columns, row_label, column_label, *options, side, None)
        if ctx.needs_input_grad[1]:
            # Column j does not meet row j - diagonal.
            of_columns = rows_gradient(
                columns, rows, column_label, row_label, -ctx.diagonal, ctx.temperature, None, side
            )
        return of_rows, of_columns, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        tensors = [one for one in inputs[:4] if one is not None]
        dims = [dim for one, dim in zip(inputs[:4], in_dims, strict=False) if one is not None]
        results = []
        for cut in problems(info, dims, tensors):
            given = iter(cut)
            arguments = [None if one is None else next(given) for one in inputs[:4]]
            results.append(_ScoreLse.apply(*arguments, *inputs[4:]))  # type: ignore[no-untyped-call]
        return (torch.stack([one for one, _ in results]), torch.stack([two for _, two in results])), (0, 0)


def _is_bank(ctx: Any, rows: Tensor, columns: Tensor | None, row_label: Tensor | None) -> bool:
    """Tell whether every row meets every one of many more columns: then one pass over the scores does."""
    if columns is None or row_label is not None or torch.is_grad_enabled() or not ctx.needs_input_grad[0]:
        return False
    count = columns.shape[0]
    return bool(ctx.diagonal >= count >= LEAST_BANK * rows.shape[0])


_apply = quick(_ScoreLse)
