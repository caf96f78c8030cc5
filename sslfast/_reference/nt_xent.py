"""NT-Xent in plain PyTorch: the definition that every kernel is tested and timed against."""

import torch
from torch import Tensor

from sslfast._reference import unit_rows as normalisation
from sslfast._reference.unit_rows import unit_rows

ROWS_PER_STEP = 1024
"""Rows of the score matrix that the second derivative holds at a time."""


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.5, negatives: Tensor | None = None) -> Tensor:
    """Return the mean NT-Xent loss of two batches of views, (N, D) each; with ``negatives`` (D, M), MoCo's form."""
    if negatives is not None:
        u0, u1 = unit_rows(z0), unit_rows(z1)
        positive = (u0 * u1).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, u0 @ negatives], dim=1) / temperature
        return torch.nn.functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))
    z = unit_rows(torch.cat([z0, z1]))
    scores = _scores(z, temperature)
    return torch.nn.functional.cross_entropy(scores, _partners(z))


def nt_xent_indexed(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the mean over rows of -log of the share of the positives: the other rows of the same index."""
    scores = _scores(unit_rows(z), temperature)
    positive = scores.masked_fill(indexes[:, None] != indexes, float("-inf"))
    return (scores.logsumexp(dim=1) - positive.logsumexp(dim=1)).mean()


def logits_and_labels(
    z0: Tensor, z1: Tensor, temperature: float, negatives: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what lightly's module hands to its ``cross_entropy``, in its order of columns.

    With ``negatives`` (D, M): the positive, then the negatives. Without: the other view's N rows, then the own view's
    other N - 1; first for the rows of ``z0``, then for those of ``z1``.
    """
    u0, u1 = unit_rows(z0), unit_rows(z1)
    if negatives is not None:
        positive = (u0 * u1).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, u0 @ negatives.to(u0.dtype)], dim=1) / temperature
        return logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    rows = len(u0)
    others = ~torch.eye(rows, dtype=torch.bool, device=u0.device)
    own = [(u @ u.T)[others].view(rows, rows - 1) for u in (u0, u1)]
    between = u0 @ u1.T
    logits = torch.cat([torch.cat([between, own[0]], dim=1), torch.cat([between.T, own[1]], dim=1)]) / temperature
    return logits, torch.arange(rows, device=u0.device).repeat(2)


def nt_xent_fwd(z0: Tensor, z1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the loss, and the log-sum-exp (2N,) of each row's scores."""
    z = unit_rows(_joined(z0, z1))
    scores = _scores(z, temperature)
    lse = scores.logsumexp(dim=1)
    positive = scores.gather(1, _partners(z)[:, None]).squeeze(1)
    return (lse - positive).mean(), lse


def nt_xent_bwd(grad: Tensor, z0: Tensor, z1: Tensor, lse: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    r"""Return the gradients of both views: :math:`\frac{g}{2N\tau} (P + P^\top - 2\Pi) U`, through the normalisation.

    P is the soft-max of the scores, :math:`\Pi` the pairing, U the unit rows.
    """
    unit, inverse_norm = normalisation.unit_rows_fwd(_joined(z0, z1))
    probability = (_scores(unit, temperature) - lse[:, None]).exp()
    pull = (probability + probability.T) @ unit - 2 * unit[_partners(unit)]
    of_z = normalisation.unit_rows_bwd(pull * (grad / (temperature * len(unit))), unit, inverse_norm).to(z0.dtype)
    return of_z[: len(z0)], of_z[len(z0) :]


def nt_xent_bwd_bwd(
    cotangent0: Tensor, cotangent1: Tensor, grad: Tensor, z0: Tensor, z1: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Pull both cotangents back through :func:`nt_xent_bwd`: gradients of ``grad``, ``z0`` and ``z1``.

    With V the cotangent behind the Jacobian of the normalisation, :math:`\dot S = (V U^\top + U V^\top) / \tau` and
    :math:`\dot P_{ij} = P_{ij} (\dot S_{ij} - \sum_k P_{ik} \dot S_{ik})`, the unit rows get :math:`\frac{g}{2N\tau}
    [(\dot P + \dot P^\top) U + (P + P^\top - 2\Pi) V]`, and besides what the Jacobian itself depends on. The score
    matrix is built a few rows at a time, from the rows alone, so that the result can be differentiated again.
    """
    unit, inverse_norm = normalisation.unit_rows_fwd(_joined(z0, z1))
    cotangent = _joined(cotangent0, cotangent1)
    along = normalisation.unit_rows_bwd(cotangent, unit, inverse_norm)
    pull, of_unit = _second(along, unit, temperature)
    scale = 1 / (temperature * len(unit))
    _, more, of_inverse = normalisation.unit_rows_bwd_bwd(pull * (grad * scale), cotangent, unit, inverse_norm)
    of_z = normalisation.unit_rows_bwd(of_unit * (grad * scale) + more, unit, inverse_norm)
    of_z = of_z + normalisation.unit_rows_inverse_bwd(of_inverse, unit, inverse_norm)
    of_z = of_z.to(z0.dtype)
    return (pull * along).sum() * scale, of_z[: len(z0)], of_z[len(z0) :]


def _second(cotangent: Tensor, unit: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return (P + P^T - 2 Pi) U, and the derivative of its product with ``cotangent`` with respect to U."""
    count = unit.shape[0]
    partners = _partners(unit)
    of_unit = -2 * cotangent[partners]
    pull = -2 * unit[partners]
    for start in range(0, count, ROWS_PER_STEP):
        rows = torch.arange(start, min(start + ROWS_PER_STEP, count), device=unit.device)
        own = rows[:, None] == torch.arange(count, device=unit.device)
        probability = (unit[rows] @ unit.T / temperature).masked_fill(own, float("-inf")).softmax(dim=1)
        moved = (cotangent[rows] @ unit.T + unit[rows] @ cotangent.T) / temperature
        moved = probability * (moved - (probability * moved).sum(dim=1, keepdim=True))
        of_unit = of_unit + moved.T @ unit[rows] + probability.T @ cotangent[rows]
        of_unit = of_unit.index_add(0, rows, moved @ unit + probability @ cotangent)
        pull = pull + probability.T @ unit[rows]
        pull = pull.index_add(0, rows, probability @ unit)
    return pull, of_unit


def _joined(z0: Tensor, z1: Tensor) -> Tensor:
    """Both views below each other; half precision in float32, as the kernels compute."""
    z = torch.cat([z0, z1])
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def _scores(z: Tensor, temperature: float) -> Tensor:
    own = torch.eye(z.shape[0], dtype=torch.bool, device=z.device)
    return (z @ z.T / temperature).masked_fill(own, float("-inf"))


def _partners(z: Tensor) -> Tensor:
    count = z.shape[0]
    return torch.arange(count, device=z.device).roll(count // 2)
