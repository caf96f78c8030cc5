"""Projections of earlier batches, the same on every process."""

import torch
from torch import Tensor, nn

from sslfast.ops._distributed import gather_rows, share
from sslfast.pretrain.parallel import Ranks


class Queue(nn.Module):
    """The newest ``length`` rows of every view, newest first; a checkpoint keeps them.

    Args:
        views: how many there are.
        length: rows of each.
        width: of a row.
    """

    rows: Tensor

    def __init__(self, views: int, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(views, length, width))
        self.filled = 0

    @property
    def full(self) -> bool:
        """Whether no row is empty any more."""
        return self.filled >= self.rows.shape[1]

    def share(self, ranks: Ranks) -> Tensor:
        """Give this process's part of the rows, (views, length / processes, width)."""
        return self.rows.tensor_split(ranks.world, dim=1)[ranks.rank]

    @torch.no_grad()
    def push(self, new: Tensor, ranks: Ranks) -> None:
        """Put the rows (views, B, width) of all processes in, and drop as many of the oldest."""
        if ranks.group is not None:
            by_row = new.transpose(0, 1).contiguous()
            by_row = gather_rows(by_row, share(len(by_row), ranks.group, new.device), ranks.group)
            new = by_row.transpose(0, 1)
        self.filled += new.shape[1]
        self.rows = torch.cat([new, self.rows], dim=1)[:, : self.rows.shape[1]].contiguous()

    def get_extra_state(self) -> Tensor:
        """Give what is saved besides the rows: how many were put in."""
        return torch.tensor(self.filled)

    def set_extra_state(self, state: Tensor) -> None:
        """Take what was saved."""
        self.filled = int(state)
