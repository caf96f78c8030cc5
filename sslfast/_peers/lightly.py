"""The losses of lightly."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._peers import Swap, Uncovered, warn_once
from sslfast.losses._gathering import gathering_group
from sslfast.losses.nt_xent import against_bank, is_mean_over_rows
from sslfast.ops._arguments import require_number, require_same_matrices, require_tensors
from sslfast.ops.barlow_twins import barlow_twins
from sslfast.ops.nt_xent import nt_xent
from sslfast.ops.sinkhorn import sinkhorn
from sslfast.ops.swav_loss import swav_loss


def _nt_xent(loss: Any, out0: Tensor, out1: Tensor) -> Tensor:
    from lightly.models.modules.memory_bank import MemoryBankModule

    bank = loss.memory_bank
    if not is_mean_over_rows(loss.cross_entropy):
        # One that was made inside torch.compile cannot be looked at either.
        raise Uncovered("its cross_entropy is not known to be nn.CrossEntropyLoss(reduction='mean') without hooks")
    if type(bank) is not MemoryBankModule:
        raise Uncovered("its memory_bank is not lightly's MemoryBankModule")
    # All that can be refused is refused here: the bank stores the batch only once.
    temperature = require_number("nt_xent", "temperature", loss.temperature)
    require_tensors("nt_xent", out0=out0, out1=out1)
    require_same_matrices("nt_xent", "(N, D)", out0=out0, out1=out1)
    group = gathering_group(loss.gather_distributed)
    if bank.size[0] == 0:
        return nt_xent(out0, out1, temperature, group=group)
    if tuple(bank.size[1:]) != tuple(out0.shape[1:]):
        raise Uncovered(f"the rows of its memory_bank are longer or shorter than the batch's, got {bank.size}")
    keys = nn.functional.normalize(out1.detach(), dim=1)
    _, negatives = bank.forward(keys, update=out0.requires_grad and torch.is_grad_enabled())
    return against_bank(out0, out1, negatives, temperature, group)


def _barlow_twins(loss: Any, z_a: Tensor, z_b: Tensor) -> Tensor:
    group = gathering_group(loss.gather_distributed)
    if group is not None:
        warn_once(
            "lightly.loss.barlow_twins_loss.BarlowTwinsLoss.forward",
            "takes mean and variance over the rows of all processes, lightly's own code over those of each one",
        )
    return barlow_twins(z_a, z_b, loss.lambda_param, group=group)


def _swav(loss: Any, high: Sequence[Tensor], low: Sequence[Tensor], queue: Sequence[Tensor] | None) -> Tensor:
    from lightly.loss.swav_loss import SwaVLoss

    # Not loss.subloss.__func__: torch.compile cannot look into that.
    subloss = type(loss).subloss
    known = subloss is SwaVLoss.subloss and subloss.__qualname__ == "SwaVLoss.subloss"
    if "subloss" in loss.__dict__ or not known:
        raise Uncovered("its subloss is not lightly's")
    return swav_loss(
        high,
        low,
        queue,
        temperature=loss.temperature,
        iterations=loss.sinkhorn_iterations,
        epsilon=loss.sinkhorn_epsilon,
        group=gathering_group(loss.sinkhorn_gather_distributed),
    ).reshape(1)


def _sinkhorn(out: Tensor, iterations: int, epsilon: float, gather_distributed: bool) -> Tensor:
    return sinkhorn(out, iterations, epsilon, group=gathering_group(gather_distributed))


SWAPS = (
    Swap("lightly.loss.ntx_ent_loss", "NTXentLoss.forward", ("self", "out0", "out1"), _nt_xent),
    Swap("lightly.loss.barlow_twins_loss", "BarlowTwinsLoss.forward", ("self", "z_a", "z_b"), _barlow_twins),
    Swap(
        "lightly.loss.swav_loss",
        "SwaVLoss.forward",
        ("self", "high_resolution_outputs", "low_resolution_outputs", "queue_outputs"),
        _swav,
    ),
    Swap("lightly.loss.swav_loss", "sinkhorn", ("out", "iterations", "epsilon", "gather_distributed"), _sinkhorn),
)
