"""Collectives of the losses: plain ones, without a derivative; each operator's backward says what it exchanges itself.

Every rank holds some rows of one global batch, not necessarily equally many. A loss returns the value of the whole
batch on every rank, and its gradient is that of the whole batch times the number of ranks, so that the mean over the
ranks that ``DistributedDataParallel`` takes of the parameters' gradients is the gradient of the whole batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Which rows of the global batch are this rank's: ``[start, start + counts[rank])`` of ``total``."""

    counts: tuple[int, ...]
    rank: int

    @property
    def total(self) -> int:
        """Rows on all ranks together."""
        return sum(self.counts)

    @property
    def start(self) -> int:
        """The first row of this rank."""
        return self.starts[self.rank]

    @property
    def starts(self) -> tuple[int, ...]:
        """The first row of every rank."""
        return tuple(sum(self.counts[:rank]) for rank in range(len(self.counts)))

    @property
    def rows(self) -> slice:
        """The rows of this rank."""
        return slice(self.start, self.start + self.counts[self.rank])


def require_group(op: str, group: Any) -> bool:
    """Return whether ``group`` joins more than one process.

    Raises:
        TypeError: neither None nor a process group of torch.distributed.
        ValueError: this process does not belong to it.
    """
    if group is None:
        return False
    # What new_group returns to a process that it leaves out: a number, that of no rank.
    if isinstance(group, int) and distributed.is_available() and group == distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{op}: this process is not a member of group")
    if not distributed.is_available() or not isinstance(group, distributed.ProcessGroup):
        raise TypeError(f"{op}: group must be None or a torch.distributed process group, got {type(group).__name__}")
    if distributed.get_rank(group) < 0:
        raise ValueError(f"{op}: this process is not a member of group")
    return distributed.get_world_size(group) > 1


def share(rows: int, group: Any, device: torch.device) -> Share:
    """Tell every rank how many rows each one has: one number per rank is exchanged."""
    count = torch.tensor([rows], dtype=torch.int64, device=device)
    counts = [torch.zeros_like(count) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(counts, count, group=group)
    return Share(tuple(int(one) for one in counts), distributed.get_rank(group))


def gather_rows(rows: Tensor, of: Share, group: Any) -> Tensor:
    """Return all ranks' rows below each other, ``(of.total, ...)``."""
    most = max(of.counts)
    padded = rows.contiguous()
    if rows.shape[0] < most:  # collectives need equal shapes
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
    gathered = [torch.empty_like(padded) for _ in of.counts]
    distributed.all_gather(gathered, padded, group=group)
    return torch.cat([one[:count] for one, count in zip(gathered, of.counts, strict=True)])


def sum_over_ranks(tensor: Tensor, group: Any) -> Tensor:
    """Return the sum of all ranks' tensors."""
    result = tensor.contiguous().clone()
    distributed.all_reduce(result, distributed.ReduceOp.SUM, group=group)
    return result


def largest_over_ranks(tensor: Tensor, group: Any) -> Tensor:
    """Return the entry-wise maximum of all ranks' tensors."""
    result = tensor.contiguous().clone()
    distributed.all_reduce(result, distributed.ReduceOp.MAX, group=group)
    return result


def mean_over_ranks(values: Tensor, group: Any) -> Tensor:
    """Return the mean of all ranks' values, (rows,) each; the gradient is times the number of ranks, as above."""
    result: Tensor = _MeanOverRanks.apply(values, group)  # type: ignore[no-untyped-call]
    return result


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        both = torch.stack([values.double().sum(), values.new_tensor(len(values), dtype=torch.float64)])
        total, count = sum_over_ranks(both, group)
        ctx.count, ctx.rows, ctx.world = count, len(values), distributed.get_world_size(group)
        mean: Tensor = total / count
        return mean.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad * (ctx.world / ctx.count).to(grad.dtype)).expand(ctx.rows), None
