"""NT-Xent in plain PyTorch: the definition that every kernel is tested and timed against."""

import torch
from torch import Tensor

from sslfast._reference.unit_rows import unit_rows

ROWS_PER_STEP = 1024
"""Rows of the score matrix that the second derivative holds at a time."""


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the mean NT-Xent loss of two batches of views, (N, D) each."""
    z = unit_rows(torch.cat([z0, z1]))
    scores = _scores(z, temperature)
    return torch.nn.functional.cross_entropy(scores, _partners(z))


def nt_xent_fwd(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the loss, and the log-sum-exp (2N,) of each row's scores, of unit rows (2N, D)."""
    scores = _scores(z, temperature)
    lse = scores.logsumexp(dim=1)
    positive = scores.gather(1, _partners(z)[:, None]).squeeze(1)
    return (lse - positive).mean(), lse


def nt_xent_bwd(grad: Tensor, z: Tensor, lse: Tensor, temperature: float) -> Tensor:
    r"""Return :math:`\frac{g}{2N\tau} (P + P^\top - 2\Pi) Z`, P the soft-max of the scores, :math:`\Pi` the pairing."""
    probability = (_scores(z, temperature) - lse[:, None]).exp()
    pull = (probability + probability.T) @ z - 2 * z[_partners(z)]
    return pull * (grad / (temperature * z.shape[0]))


def nt_xent_bwd_bwd(cotangent: Tensor, grad: Tensor, z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    r"""Pull ``cotangent`` V back through :func:`nt_xent_bwd`: gradients of ``grad`` and of ``z``.

    With :math:`\dot S = (V Z^\top + Z V^\top) / \tau` and :math:`\dot P_{ij} = P_{ij} (\dot S_{ij} - \sum_k P_{ik}
    \dot S_{ik})` the second is :math:`\frac{g}{2N\tau} [(\dot P + \dot P^\top) Z + (P + P^\top - 2\Pi) V]`. The
    score matrix is built a few rows at a time, from ``z`` alone, so that the result can be differentiated again.
    """
    count = z.shape[0]
    partners = _partners(z)
    of_z = -2 * cotangent[partners]
    pull = -2 * z[partners]
    for start in range(0, count, ROWS_PER_STEP):
        rows = torch.arange(start, min(start + ROWS_PER_STEP, count), device=z.device)
        own = rows[:, None] == torch.arange(count, device=z.device)
        probability = (z[rows] @ z.T / temperature).masked_fill(own, float("-inf")).softmax(dim=1)
        moved = (cotangent[rows] @ z.T + z[rows] @ cotangent.T) / temperature
        moved = probability * (moved - (probability * moved).sum(dim=1, keepdim=True))
        of_z = of_z + moved.T @ z[rows] + probability.T @ cotangent[rows]
        of_z = of_z.index_add(0, rows, moved @ z + probability @ cotangent)
        pull = pull + probability.T @ z[rows]
        pull = pull.index_add(0, rows, probability @ z)
    scale = 1 / (temperature * count)
    return (pull * cotangent).sum() * scale, of_z * (grad * scale)


def _scores(z: Tensor, temperature: float) -> Tensor:
    own = torch.eye(z.shape[0], dtype=torch.bool, device=z.device)
    return (z @ z.T / temperature).masked_fill(own, float("-inf"))


def _partners(z: Tensor) -> Tensor:
    count = z.shape[0]
    return torch.arange(count, device=z.device).roll(count // 2)
