"""Sinkhorn-Knopp assignments: the public function, its passes over several processes, and the fake and vmap halves."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslfast._reference.sinkhorn import level
from sslfast.ops._arguments import (
    INTEGERS,
    in_full_precision,
    problems,
    require_count,
    require_number,
    require_same_matrices,
    require_tensors,
    under_autocast,
)
from sslfast.ops._distributed import largest_over_ranks, require_group, sum_over_ranks


def sinkhorn(
    scores: Tensor,
    iterations: int = 3,
    epsilon: float = 0.05,
    *,
    valid_rows: int | Tensor | None = None,
    group: Any = None,
) -> Tensor:
    r"""Return soft assignments of samples to prototypes that use all prototypes equally (Sinkhorn-Knopp).

    From :math:`E_{bk} = e^{x_{bk} / \epsilon}`, columns and rows are scaled in turn to equal sums, ``iterations``
    times. What is iterated on is one factor per prototype:

    .. math:: v_b = 1 / \sum_k E_{bk} u_k, \qquad u_k = 1 / \sum_b E_{bk} v_b, \qquad
        Q_b = \operatorname{softmax}_k (x_{bk} / \epsilon + \log u_k),

    with v = 1 before the first u. Exact up to rounding, which grows with :math:`|x| / \epsilon`; up to 1e38 of
    that nothing overflows and no prototype vanishes.
    The result carries no gradient. Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments" (SwAV), 2020; with a teacher's temperature as epsilon, it is the centring of DINOv2 (Oquab et al.,
    2023).

    Args:
        scores: shape ``(B, K)``: B samples, K prototypes; float32, float64, float16 or bfloat16. Half precision is
            computed in float32.
        iterations: how often both are scaled, >= 0. With 0, all :math:`E` are divided by their mean per row.
        epsilon: :math:`\epsilon`, dimensionless, > 0; 0.05 suits cosines.
        valid_rows: how many rows count, 0 to B; the others' assignments are 0. A number, or an integer tensor of one
            element on the device of ``scores``, which is not read on the host; beyond 0 to B it counts as the limit.
        group: a process group whose ranks each hold some rows of one batch, not necessarily equally many. Every rank
            gets the assignments of its own rows.

    Returns:
        The assignments, ``(B, K)``, in the dtype of ``scores`` (float32 under autocast), contiguous. From one
        iteration on, every valid row's sum is 1.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or number is out of range.
    """
    require_tensors("sinkhorn", scores=scores)
    require_same_matrices("sinkhorn", "(B, K)", scores=scores)
    require_count("sinkhorn", "iterations", iterations)
    epsilon = require_number("sinkhorn", "epsilon", epsilon)
    valid = _valid_rows(scores, valid_rows)
    (rows,) = under_autocast(scores.detach())
    dtype = rows.dtype
    rows = in_full_precision(rows)
    if require_group("sinkhorn", group):
        count = len(rows) if valid is None else valid.clamp(0, len(rows))
        potential = potentials_of_group([[rows]], valid, count, iterations, epsilon, group)[0]
        result = torch.ops.sslfast.sinkhorn_assign(rows, potential, valid, epsilon, iterations > 0)
    else:
        result = torch.ops.sslfast.sinkhorn_fwd(rows, valid, iterations, epsilon)
    assignments: Tensor = result if dtype == result.dtype else result.to(dtype)
    return assignments


def _valid_rows(scores: Tensor, valid_rows: int | Tensor | None) -> Tensor | None:
    """Return the number of valid rows as an int64 tensor without dimensions, on the device of the scores."""
    if valid_rows is None:
        return None
    if isinstance(valid_rows, Tensor):
        if valid_rows.dtype not in INTEGERS:
            raise TypeError(f"sinkhorn: valid_rows must be a whole number or hold one, got {valid_rows.dtype}")
        if valid_rows.numel() != 1:
            raise ValueError(f"sinkhorn: valid_rows must hold one number, got shape {tuple(valid_rows.shape)}")
        if valid_rows.device != scores.device:
            raise ValueError(f"sinkhorn: scores are on {scores.device}, valid_rows is on {valid_rows.device}")
        return valid_rows.detach().reshape(()).long()
    require_count("sinkhorn", "valid_rows", valid_rows)
    if valid_rows > scores.shape[0]:
        raise ValueError(f"sinkhorn: valid_rows must be at most the {scores.shape[0]} rows, got {valid_rows}")
    return torch.full((), valid_rows, dtype=torch.int64, device=scores.device)


def potentials_of_group(
    sets: Sequence[Sequence[Tensor]],
    valid_rows: Tensor | None,
    rows: int | Tensor,
    iterations: int,
    epsilon: float,
    group: Any,
) -> Tensor:
    r"""Return :math:`-\log u` of all ranks' rows, one row of K per set; without iterations, what E is divided by.

    Exchanged are K numbers per set: one maximum, and one sum per iteration (one in all where there is none, and the
    number of rows).

    Args:
        sets: the tensors, (rows, K) each, that are normalised together, once per set.
        valid_rows: how many rows of each tensor count; None for all.
        rows: how many rows one set has on this rank.
        iterations: as for :func:`sinkhorn`.
        epsilon: as for :func:`sinkhorn`.
        group: as for :func:`sinkhorn`, and not None.
    """
    own = torch.stack(
        [
            torch.stack([torch.ops.sslfast.sinkhorn_log_sums(part, valid_rows, epsilon) for part in parts]).logsumexp(0)
            for parts in sets
        ]
    )
    highest = largest_over_ranks(own, group)
    potential = highest + sum_over_ranks((own - highest).exp(), group).log()
    if iterations == 0:
        total = sum_over_ranks(torch.as_tensor(rows, dtype=torch.int64, device=own.device), group)
        return torch.stack([level(one, total) for one in potential])
    for _ in range(iterations - 1):
        sums = [
            sum(torch.ops.sslfast.sinkhorn_probability_sums(part, one, valid_rows, epsilon) for part in parts)
            for one, parts in zip(potential, sets, strict=True)
        ]
        potential = potential + sum_over_ranks(torch.stack(sums), group).log()
    return potential


@torch.library.register_fake("sslfast::sinkhorn_fwd")  # type: ignore[untyped-decorator]
def _(scores: Tensor, valid_rows: Tensor | None, iterations: int, epsilon: float) -> Tensor:
    return scores.new_empty(scores.shape)


@torch.library.register_fake("sslfast::sinkhorn_log_sums")  # type: ignore[untyped-decorator]
def _(scores: Tensor, valid_rows: Tensor | None, epsilon: float) -> Tensor:
    return scores.new_empty(scores.shape[1:])


@torch.library.register_fake("sslfast::sinkhorn_probability_sums")  # type: ignore[untyped-decorator]
def _(scores: Tensor, potential: Tensor, valid_rows: Tensor | None, epsilon: float) -> Tensor:
    return scores.new_empty(scores.shape[1:])


@torch.library.register_fake("sslfast::sinkhorn_assign")  # type: ignore[untyped-decorator]
def _(scores: Tensor, potential: Tensor, valid_rows: Tensor | None, epsilon: float, normalised: bool) -> Tensor:
    return scores.new_empty(scores.shape)


def _vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    scores: Tensor,
    valid_rows: Tensor | None,
    iterations: int,
    epsilon: float,
) -> tuple[Tensor, int]:
    tensors = (scores,) if valid_rows is None else (scores, valid_rows)
    each = [one if len(one) == 2 else (*one, None) for one in problems(info, in_dims, tensors)]
    return torch.stack([torch.ops.sslfast.sinkhorn_fwd(*one, iterations, epsilon) for one in each]), 0


torch.library.register_vmap("sslfast::sinkhorn_fwd", _vmap)
