"""Rows scaled to unit length, in plain PyTorch."""

import torch
from torch import Tensor

SHORTEST_ROW = 1e-12
"""Shorter rows are divided by this instead of by their length, as ``torch.nn.functional.normalize`` does."""


def unit_rows(x: Tensor) -> Tensor:
    """Divide each row of ``x`` (M, D) by its length."""
    return torch.nn.functional.normalize(x, dim=1, eps=SHORTEST_ROW)


def unit_rows_fwd(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit rows (M, D) and the factor (M,) that each row was multiplied by."""
    inverse_norm = 1 / torch.linalg.vector_norm(x, dim=1).clamp_min(SHORTEST_ROW)
    return x * inverse_norm[:, None], inverse_norm


def unit_rows_bwd(grad: Tensor, unit: Tensor, inverse_norm: Tensor) -> Tensor:
    r"""Return :math:`(g - (g \cdot u) u) / \|x\|` per row; :math:`g / 10^{-12}` for a row that was too short."""
    along = (grad * unit).sum(dim=1, keepdim=True) * _not_clamped(inverse_norm)
    return (grad - along * unit) * inverse_norm[:, None]


def unit_rows_bwd_bwd(
    cotangent: Tensor, grad: Tensor, unit: Tensor, inverse_norm: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Pull ``cotangent`` back through :func:`unit_rows_bwd`: gradients of ``grad``, ``unit`` and ``inverse_norm``."""
    free = _not_clamped(inverse_norm)
    inverse = inverse_norm[:, None]
    grad_along = (grad * unit).sum(dim=1, keepdim=True) * free
    cotangent_along = (cotangent * unit).sum(dim=1, keepdim=True) * free
    to_grad = (cotangent - cotangent_along * unit) * inverse
    to_unit = -(grad_along * cotangent + cotangent_along * grad) * inverse
    to_inverse = (cotangent * (grad - grad_along * unit)).sum(dim=1)
    return to_grad, to_unit, to_inverse


def unit_rows_inverse_bwd(grad: Tensor, unit: Tensor, inverse_norm: Tensor) -> Tensor:
    r"""Pull ``grad`` (M,) of the factor back to the rows: :math:`-g u / \|x\|^2`, and 0 for a short row."""
    factor = -grad * inverse_norm.square() * _not_clamped(inverse_norm)[:, 0]
    return factor[:, None] * unit


def _not_clamped(inverse_norm: Tensor) -> Tensor:
    """1 where the row was divided by its length, 0 where by the constant; shape (M, 1)."""
    return (inverse_norm < 1 / SHORTEST_ROW).to(inverse_norm.dtype)[:, None]
