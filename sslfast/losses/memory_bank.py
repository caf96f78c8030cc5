"""A memory bank: the keys of former batches in a ring, as negatives for a contrastive loss (MoCo)."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from sslfast.losses._gathering import gathering_group
from sslfast.ops import _distributed


class MemoryBankModule(nn.Module):
    """Keep the newest rows that were given to it; lightly's module of this name, with its content in ``state_dict``.

    A batch is written behind the one before. The batch that reaches the end of the bank is cut there, what is left of
    it is dropped, and the next one starts at the beginning. Until it was full once, a bank holds random unit rows.

    Args:
        size: ``(rows, dim)``; 0 for no bank.
        gather_distributed: store the rows of every rank, in the order of the ranks, instead of the own ones.
        feature_dim_first: hand out ``(dim, rows)``; otherwise ``(rows, dim)``.

    Raises:
        TypeError: neither a whole number nor a sequence of them.
        ValueError: a negative size, a bare number above 0 (the dimension is missing), or not two numbers.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(
        self, size: int | Sequence[int], gather_distributed: bool = False, feature_dim_first: bool = True
    ) -> None:
        super().__init__()
        one_number = isinstance(size, (int, Integral))
        entries: Any = (size,) if one_number else size
        if not isinstance(entries, Sequence) or not all(isinstance(one, (int, Integral)) for one in entries):
            raise TypeError(f"MemoryBankModule: size must be (rows, dim) or 0, got {size!r}")
        sizes = tuple(int(one) for one in entries)
        # The first words are lightly's: its own tests look for them.
        illegal = f"MemoryBankModule: Illegal memory bank size {size}"
        if any(one < 0 for one in sizes):
            raise ValueError(f"{illegal}, all entries must be non-negative.")
        if one_number and sizes[0] > 0:
            raise ValueError(f"{illegal}: the dimension is missing; pass ({size}, dim), or 0 for no bank")
        if sizes != (0,) and len(sizes) != 2:
            raise ValueError(f"{illegal}: it must be (rows, dim), or 0 for no bank")
        self.size = sizes
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        rows = torch.empty(sizes)
        if len(sizes) == 2:
            rows = nn.functional.normalize(torch.randn(sizes), dim=-1)
        # Without a bank there is no state either: such a state_dict fits lightly's, both ways.
        self.register_buffer("bank", rows, persistent=sizes[0] > 0)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=sizes[0] > 0)

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``output`` and a copy of the bank as it was before; then store ``output`` if ``update``.

        Args:
            output: shape ``(N, dim)``.
            labels: ignored.
            update: whether to store ``output``.

        Returns:
            ``output`` and the rows of the bank; None in place of the rows where there is no bank.
        """
        if self.size[0] == 0:
            return output, None
        # A copy: backward needs the rows after the bank has moved on.
        rows = self.bank.detach().clone()
        if update:
            self._store(output)
        return output, rows.t() if self.feature_dim_first else rows

    @torch.no_grad()
    def _store(self, batch: Tensor) -> None:
        group = gathering_group(self.gather_distributed)
        if group is not None:
            of = _distributed.share(batch.shape[0], group, batch.device)
            batch = _distributed.gather_rows(batch.detach(), of, group)
        count, rows = batch.shape[0], self.bank.shape[0]
        kept = batch[:rows].detach().to(self.bank)
        # Places are computed on the bank's device: reading the pointer would make the processor wait for the GPU.
        places = self.bank_ptr + torch.arange(kept.shape[0], device=self.bank.device)
        inside = (places < rows).unsqueeze(1)
        places = places % rows
        self.bank.index_copy_(0, places, torch.where(inside, kept, self.bank.index_select(0, places)))
        end = self.bank_ptr + count
        self.bank_ptr.copy_(torch.where(end >= rows, torch.zeros_like(end), end))

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Keep the present content where a state has no bank at all: lightly saves none."""
        names = [f"{prefix}bank", f"{prefix}bank_ptr"]
        absent = not any(name in state_dict for name in names)
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs)
        missing_keys.extend(name for name in missing if not (absent and name in names))

    def extra_repr(self) -> str:
        """Show the size."""
        return f"size={self.size}"
