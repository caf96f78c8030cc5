"""Barlow Twins in plain PyTorch: the definition that every kernel is tested and timed against."""

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-5
"""What batch normalisation adds to the variance; the value of ``torch.nn.BatchNorm1d``."""
LAMBDA = 5e-3
"""The weight of the redundancy term in the paper."""


def barlow_twins(z0: Tensor, z1: Tensor, lambda_param: float = LAMBDA, *, eps: float = EPS) -> Tensor:
    """Return the Barlow Twins loss of two batches of views, (N, D) each."""
    a = functional.batch_norm(z0, None, None, training=True, eps=eps)
    b = functional.batch_norm(z1, None, None, training=True, eps=eps)
    correlation = a.T @ b / z0.shape[0]
    invariance = (correlation.diagonal() - 1).square().sum()
    redundancy = _off_diagonal(correlation).square().sum()
    return invariance + lambda_param * redundancy


def barlow_twins_direct_fwd(z0: Tensor, z1: Tensor, lambda_param: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the statistics (2, 3, D) of the columns, and the correlation matrix (D, D)."""
    statistics = torch.stack([_statistics(z0, eps), _statistics(z1, eps)])
    correlation = barlow_twins_correlation(z0, z1, statistics, z0.shape[0])
    return correlation_loss(correlation, lambda_param), statistics, correlation


def barlow_twins_correlation(z0: Tensor, z1: Tensor, statistics: Tensor, total: int) -> Tensor:
    """Return these rows' share of the correlation matrix (D, D) of a batch of ``total`` rows."""
    return normalised(z0, statistics[0]).T @ normalised(z1, statistics[1]) / total


def correlation_loss(correlation: Tensor, lambda_param: float) -> Tensor:
    """Return the loss of a correlation matrix."""
    diagonal = correlation.diagonal()
    off_diagonal = correlation - torch.diag(diagonal)
    return (diagonal - 1).square().sum() + lambda_param * off_diagonal.square().sum()


def barlow_twins_direct_bwd(
    grad: Tensor,
    z0: Tensor,
    z1: Tensor,
    statistics: Tensor,
    correlation: Tensor,
    total: int,
    lambda_param: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    r"""Return the gradients of both views.

    With :math:`G = \partial L / \partial C`: :math:`\partial L / \partial A = B G^\top / N`, whose mean over the rows
    is 0 because the columns of B are centred, and whose product with A, summed over the rows, is that of G with C.
    """
    a, b = normalised(z0, statistics[0]), normalised(z1, statistics[1])
    diagonal = correlation.diagonal()
    slope = 2 * lambda_param * (correlation - torch.diag(diagonal)) + torch.diag(2 * (diagonal - 1))
    along = slope * correlation / total
    of_a = (b @ slope.T / total - a * along.sum(dim=1)) * statistics[0, 2] * grad
    of_b = (a @ slope / total - b * along.sum(dim=0)) * statistics[1, 2] * grad
    return of_a.to(z0.dtype), of_b.to(z1.dtype)


def barlow_twins_dual_fwd(
    z0: Tensor, z1: Tensor, first: int, rows: int, lambda_param: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Return the share in the loss of ``rows`` rows from ``first``, and what their gradient needs.

    With A and B the normalised views, :math:`\|A^\top B\|^2 = \langle A A^\top, B B^\top \rangle`. What is needed:
    statistics (2, 3, D), diagonal (D,) of the correlation matrix, and those rows (2, rows, N) of both Gram matrices.
    """
    statistics = torch.stack([_statistics(z0, eps), _statistics(z1, eps)])
    a, b = normalised(z0, statistics[0]), normalised(z1, statistics[1])
    count = z0.shape[0]
    diagonal = (a * b).mean(dim=0)
    own = slice(first, first + rows)
    grams = torch.stack([a[own] @ a.T, b[own] @ b.T])
    invariance = (diagonal - 1).square().sum() - lambda_param * diagonal.square().sum()
    redundancy = (grams[0] * grams[1]).sum() / count**2
    return rows / count * invariance + lambda_param * redundancy, statistics, diagonal, grams


def barlow_twins_dual_bwd(
    grad: Tensor,
    z0: Tensor,
    z1: Tensor,
    statistics: Tensor,
    diagonal: Tensor,
    grams: Tensor,
    first: int,
    lambda_param: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the gradients of those rows of both views, and ``along`` (2, D).

    :math:`\partial L / \partial A = \frac{2 \lambda}{N^2} K_B A + B \,\mathrm{diag}(w)` with :math:`w_i = (2 (C_{ii} -
    1) - 2 \lambda C_{ii}) / N`; ``along`` is its product with A, summed over those rows. The normalisation's share
    in the gradients needs that sum over all rows, and takes it for them.
    """
    a, b = normalised(z0, statistics[0]), normalised(z1, statistics[1])
    count = z0.shape[0]
    own = slice(first, first + grams.shape[1])
    weight = (2 * (diagonal - 1) - 2 * lambda_param * diagonal) / count
    scale = 2 * lambda_param / count**2
    of_a = scale * (grams[1] @ a) + b[own] * weight
    of_b = scale * (grams[0] @ b) + a[own] * weight
    along = torch.stack([(a[own] * of_a).sum(dim=0), (b[own] * of_b).sum(dim=0)])
    of_z0 = (of_a - a[own] * (along[0] / count)) * statistics[0, 2] * grad
    of_z1 = (of_b - b[own] * (along[1] / count)) * statistics[1, 2] * grad
    return of_z0.to(z0.dtype), of_z1.to(z1.dtype), along


def barlow_twins_bwd_bwd(
    cotangent0: Tensor, cotangent1: Tensor, grad: Tensor, z0: Tensor, z1: Tensor, lambda_param: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Pull cotangents of both gradients back to ``grad``, ``z0`` and ``z1``."""

    def gradients(grad: Tensor, z0: Tensor, z1: Tensor) -> tuple[Tensor, ...]:
        pull = torch.func.vjp(lambda a, b: _loss(a, b, lambda_param, eps), z0, z1)[1]
        return tuple(pull(grad))

    pull = torch.func.vjp(gradients, grad, z0, z1)[1]
    of_grad, of_z0, of_z1 = pull((cotangent0, cotangent1))
    return of_grad, of_z0, of_z1


def normalised(z: Tensor, statistics: Tensor) -> Tensor:
    """Return the normalised columns (N, D), in the dtype of the statistics."""
    center, rest, inverse = statistics.unbind()
    return (z.to(statistics.dtype) - center - rest) * inverse


def _statistics(z: Tensor, eps: float) -> Tensor:
    """Return mean, what rounding took from it, and 1 / sqrt(variance + eps), (3, D); float32 for half precision."""
    z = z if z.dtype == torch.float64 else z.float()
    center = z.mean(dim=0)
    rest = (z - center).mean(dim=0)
    variance = (z - center - rest).square().mean(dim=0)
    return torch.stack([center, rest, (variance + eps).rsqrt()])


def _loss(z0: Tensor, z1: Tensor, lambda_param: float, eps: float) -> Tensor:
    """Return the loss by the route with the smaller matrix, with derivatives of every order."""
    a, b = ((z - z.mean(dim=0)) * (z.var(dim=0, unbiased=False) + eps).rsqrt() for z in (z0, z1))
    count = z0.shape[0]
    if count >= z0.shape[1]:
        return correlation_loss(a.T @ b / count, lambda_param)
    diagonal = (a * b).mean(dim=0)
    off_diagonal = ((a @ a.T) * (b @ b.T)).sum() / count**2 - diagonal.square().sum()
    return (diagonal - 1).square().sum() + lambda_param * off_diagonal


def _off_diagonal(matrix: Tensor) -> Tensor:
    """Return the entries off the diagonal of a square matrix, as the paper's code does."""
    size = matrix.shape[0]
    return matrix.flatten()[:-1].view(size - 1, size + 1)[:, 1:].flatten()
