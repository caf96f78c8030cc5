"""Dropout's noise of all hidden units of a bank: the bits of ``_reference.head_bank.noise``, all at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sslfast._head_bank.layout import Columns, HeadPlan


def signed(value: int, bits: int) -> int:
    """Give the signed number that has the same bits."""
    return value - (1 << bits) if value >> (bits - 1) else value


def mix(state: Tensor) -> Tensor:
    """Mix 64 bits, as int64, whose products wrap around and whose right shifts must not bring in the sign."""
    state = (state ^ (state >> 30 & (1 << 34) - 1)) * signed(0xBF58476D1CE4E5B9, 64)
    state = (state ^ (state >> 27 & (1 << 37) - 1)) * signed(0x94D049BB133111EB, 64)
    return state ^ (state >> 31 & (1 << 33) - 1)


class Noise:
    """What hidden activations are multiplied by: 0, or what makes up for those that are 0.

    Args:
        plans: the heads.
        columns: where their hidden units are.
        batch: rows of a step, at most.
        dtype: of the factors.
        device: where they are.
    """

    def __init__(
        self,
        plans: Sequence[HeadPlan],
        columns: Columns,
        batch: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        segments = [
            (index, layer, own) for index, units in enumerate(columns.hidden) for layer, own in enumerate(units)
        ]
        pairs, count = (batch + 1) // 2, columns.hidden_count
        self.drops = any(plans[index].dropped for index, _, _ in segments)
        """Whether there is any dropout at all."""
        self.segments = len(segments)
        self._heads = torch.tensor([index for index, _, _ in segments], dtype=torch.int64)
        keys = [signed(plans[index].key & (1 << 64) - 1, 64) for index, _, _ in segments]
        layers = torch.tensor([layer for _, layer, _ in segments], dtype=torch.int64)
        self._starts = torch.tensor(keys, dtype=torch.int64) + layers * signed(0xD1B54A32D192ED03, 64)
        # One row for two rows of a minibatch, which share a hash.
        self.scale = torch.ones(pairs, 2, count, dtype=dtype, device=device)
        """Factors (pairs of rows, 2, hidden units), filled by ``draw``."""
        places = torch.empty(pairs, count, dtype=torch.int64)
        segment, dropped = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.int32)
        for number, (index, _, own) in enumerate(segments):
            width = own.stop - own.start
            places[:, own] = torch.arange(pairs * width).view(pairs, width)
            segment[own], dropped[own] = number, plans[index].dropped
        # Places and hashes are 32 unsigned bits; int32 holds them, and what is carried out of a product is not wanted.
        self._places = places.to(torch.int32).to(device)
        self._segment, self._dropped = segment.to(device), dropped.to(device)
        self._factors = (65536 / (65536 - dropped.double())).to(dtype).to(device)
        self._hashes = torch.empty(1, self.segments, 2, dtype=torch.int32, device=device)
        self._bits = torch.empty(pairs, count, dtype=torch.int32, device=device)
        self._shifted = torch.empty_like(self._bits)

    def hashes(self, done: Tensor, steps: int) -> Tensor:
        """Give both halves of the hash of (key, step, layer) of each hidden layer, int32 (steps, layers, 2)."""
        step = done[self._heads] + torch.arange(steps)[:, None]
        return mix(self._starts + step * signed(0x9E3779B97F4A7C15, 64))[..., None].view(torch.int32)

    def draw(self, table: Tensor, turn: Tensor) -> None:
        """Fill ``scale`` for the step whose hashes stand in row ``turn`` (1,) of a table."""
        torch.index_select(table, 0, turn, out=self._hashes)
        first, second = self._hashes[0].index_select(0, self._segment).unbind(1)
        bits, shifted, scale = self._bits, self._shifted, self.scale
        torch.bitwise_xor(self._places, first, out=bits)
        torch.bitwise_right_shift(bits, 16, out=shifted).bitwise_and_(0xFFFF)
        bits.bitwise_xor_(shifted).mul_(0x7FEB352D)
        torch.bitwise_right_shift(bits, 15, out=shifted).bitwise_and_(0x1FFFF)
        bits.bitwise_xor_(shifted).bitwise_xor_(second).mul_(signed(0x846CA68B, 32))
        torch.bitwise_right_shift(bits, 16, out=shifted).bitwise_and_(0xFFFF)  # the second row's 16 bits
        bits.bitwise_xor_(shifted).bitwise_and_(0xFFFF)  # the first row's
        torch.ge(bits, self._dropped, out=scale[:, 0])
        torch.ge(shifted, self._dropped, out=scale[:, 1])
        scale.mul_(self._factors)
