"""The head bank's operators: what ``torch.compile`` needs to know of them. Nothing here is differentiable."""

import torch
from torch import Tensor


@torch.library.register_fake("sslfast::head_bank_train")  # type: ignore[untyped-decorator]
def _(
    features: Tensor,
    labels: Tensor,
    order: Tensor,
    heads: Tensor,
    numbers: Tensor,
    rates: Tensor,
    states: list[Tensor],
    batch: int,
    half: bool,
) -> Tensor:
    return torch.empty_like(rates)


@torch.library.register_fake("sslfast::head_bank_evaluate")  # type: ignore[untyped-decorator]
def _(features: Tensor, labels: Tensor, heads: Tensor, states: list[Tensor], half: bool) -> Tensor:
    return features.new_empty((len(states), 2), dtype=torch.float64)
