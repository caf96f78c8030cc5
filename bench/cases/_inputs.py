"""What several cases draw their inputs from, and how exact a dtype is."""

import torch
from torch import Tensor

# fp16 and bf16 results are rounded once, by half a unit in their last place; float32 sums differ in their order.
HALF_EPSILON = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
FULL_EPSILON = {torch.float32: 2e-6, torch.float64: 1e-13}


def rows(*shape: int, seed: int = 0) -> Tensor:
    """Draw normal numbers in float32, so that every dtype sees the same, and return them in float64."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).double()


def two_views(size: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Draw two batches whose rows belong together, as two views of an image do."""
    first = rows(*size)
    return first, first + 0.5 * rows(*size, seed=1)
