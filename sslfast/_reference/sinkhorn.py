"""Sinkhorn-Knopp in plain PyTorch: the definition that every kernel is tested and timed against."""

import torch
from torch import Tensor


@torch.no_grad()
def sinkhorn(
    scores: Tensor, iterations: int = 3, epsilon: float = 0.05, *, valid_rows: int | Tensor | None = None
) -> Tensor:
    """Return the assignments (B, K) of scores (B, K): e^(x / epsilon), columns and rows scaled to equal sums in turn.

    The greatest score is subtracted first, which changes nothing but the range: scores that lie more than 88 epsilon
    (in float32; 745 in float64) below it count as minus infinity. Half precision is computed in float32.
    """
    if scores.dtype in (torch.float16, torch.bfloat16):
        return sinkhorn(scores.float(), iterations, epsilon, valid_rows=valid_rows).to(scores.dtype)
    if valid_rows is not None:
        counts = torch.arange(len(scores), device=scores.device) < valid_rows
        inside = torch.where(counts[:, None], scores, -torch.inf)
        weights = ((inside - inside.max()) / epsilon).exp()
        rows: int | Tensor = counts.sum()
    else:
        weights = ((scores - scores.max()) / epsilon).exp()
        rows = len(scores)
    weights = weights / weights.sum()
    for _ in range(iterations):
        weights = weights / weights.sum(dim=0)
        totals = weights.sum(dim=1, keepdim=True)
        weights = weights / (totals * rows)
        if valid_rows is not None:
            weights = weights.where(counts[:, None], 0)
    return weights * rows


def sinkhorn_fwd(scores: Tensor, valid_rows: Tensor | None, iterations: int, epsilon: float) -> Tensor:
    """Return the same as :func:`sinkhorn`, by way of one number per column: finite where x / epsilon is."""
    potential = sinkhorn_log_sums(scores, valid_rows, epsilon)
    for _ in range(iterations - 1):
        potential = potential + sinkhorn_probability_sums(scores, potential, valid_rows, epsilon).log()
    if iterations == 0:
        rows = len(scores) if valid_rows is None else valid_rows.clamp(0, len(scores)).to(scores.dtype)
        potential = level(potential, rows)
    return sinkhorn_assign(scores, potential, valid_rows, epsilon, iterations > 0)


def sinkhorn_log_sums(scores: Tensor, valid_rows: Tensor | None, epsilon: float) -> Tensor:
    r"""Return :math:`\log \sum_b e^{x_{bk} / \epsilon}`, (K,)."""
    return _masked(scores / epsilon, valid_rows, -torch.inf).logsumexp(dim=0)


def sinkhorn_probability_sums(scores: Tensor, potential: Tensor, valid_rows: Tensor | None, epsilon: float) -> Tensor:
    """Return the sums over rows (K,) of the soft-max of x / epsilon - potential."""
    return _masked((scores / epsilon - potential).softmax(dim=1), valid_rows, 0.0).sum(dim=0)


def sinkhorn_assign(
    scores: Tensor, potential: Tensor, valid_rows: Tensor | None, epsilon: float, normalised: bool
) -> Tensor:
    """Return the soft-max (B, K) of x / epsilon - potential, or its exponentials themselves."""
    exponents = scores / epsilon - potential
    return _masked(exponents.softmax(dim=1) if normalised else exponents.exp(), valid_rows, 0.0)


def level(log_sums: Tensor, rows: int | Tensor) -> Tensor:
    """Return, for every column, the logarithm of the sum of all e^(x / epsilon) per row."""
    count = torch.as_tensor(rows, dtype=log_sums.dtype, device=log_sums.device)
    return (log_sums.logsumexp(dim=0) - count.log()).expand_as(log_sums)


def _masked(values: Tensor, valid_rows: Tensor | None, other: float) -> Tensor:
    if valid_rows is None:
        return values
    return torch.where((torch.arange(len(values), device=values.device) < valid_rows)[:, None], values, other)
