"""Log-sum-exp of the scores between two sets of rows, in plain PyTorch."""

import torch
from torch import Tensor


def score_lse_fwd(
    rows: Tensor,
    columns: Tensor,
    row_label: Tensor | None,
    column_label: Tensor | None,
    diagonal: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\log \sum_j e^{r_i \cdot c_j / \tau}` over all j != i + diagonal, and over those of i's label."""
    scores = _scores(rows, columns, diagonal, temperature)
    equal = _equal(rows, columns, row_label, column_label)
    return scores.logsumexp(dim=1), scores.masked_fill(~equal, float("-inf")).logsumexp(dim=1)


def score_lse_bwd(
    rows: Tensor,
    columns: Tensor,
    row_label: Tensor | None,
    column_label: Tensor | None,
    diagonal: int,
    temperature: float,
    row_side: Tensor | None,
    column_side: Tensor | None,
) -> Tensor:
    """Return the gradient of the rows; a side holds the gradients of both log-sum-exps, and the log-sum-exps."""
    return (
        score_weights(rows, columns, row_label, column_label, diagonal, temperature, row_side, column_side)
        @ columns
        * (1 / temperature)
    )


def score_lse_bank_bwd(
    rows: Tensor, columns: Tensor, temperature: float, grad: Tensor, lse: Tensor, of_columns: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the rows and of the columns, ``grad`` being that of the log-sum-exp over all columns.

    Where the second is not wanted, it has no rows.
    """
    scores = rows @ columns.T / temperature
    weights = grad[:, None] * _exponential(scores, lse[:, None]) / temperature
    return weights @ columns, weights.T @ rows if of_columns else columns.new_empty((0, columns.shape[1]))


def score_weights(
    rows: Tensor,
    columns: Tensor,
    row_label: Tensor | None,
    column_label: Tensor | None,
    diagonal: int,
    temperature: float,
    row_side: Tensor | None,
    column_side: Tensor | None,
) -> Tensor:
    r"""Return the gradient of every score, (n, m)."""
    scores = _scores(rows, columns, diagonal, temperature)
    equal = _equal(rows, columns, row_label, column_label)
    weights = torch.zeros_like(scores)
    for side, dim in ((row_side, 1), (column_side, 0)):
        if side is None:
            continue
        grad_all, grad_equal, lse_all, lse_equal = (one.unsqueeze(dim) for one in side)
        # Where nothing is equal, lse_equal is -infinity.
        other = torch.where(equal, (scores - lse_equal).clamp(max=0), float("-inf")).exp()
        weights = weights + grad_all * _exponential(scores, lse_all) + grad_equal * other
    return weights


def _exponential(scores: Tensor, lse: Tensor) -> Tensor:
    # At most 1: a score exceeds the sum that it is part of only by rounding.
    return torch.where(scores == float("-inf"), float("-inf"), (scores - lse).clamp(max=0)).exp()


def _scores(rows: Tensor, columns: Tensor, diagonal: int, temperature: float) -> Tensor:
    row = torch.arange(rows.shape[0], device=rows.device)[:, None]
    column = torch.arange(columns.shape[0], device=rows.device)
    return (rows @ columns.T / temperature).masked_fill(row + diagonal == column, float("-inf"))


def _equal(rows: Tensor, columns: Tensor, row_label: Tensor | None, column_label: Tensor | None) -> Tensor:
    if row_label is None or column_label is None:
        return torch.zeros((rows.shape[0], columns.shape[0]), dtype=torch.bool, device=rows.device)
    return row_label[:, None] == column_label
