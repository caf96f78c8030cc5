"""The losses of solo-learn: of the last release, 1.0.2, and of its repository since; told apart by their parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._peers import Swap, Uncovered
from sslfast.losses._gathering import gathering_group
from sslfast.ops.barlow_twins import barlow_twins
from sslfast.ops.nt_xent import nt_xent
from sslfast.ops.nt_xent_indexed import nt_xent_indexed
from sslfast.ops.sinkhorn import sinkhorn


def _simclr(z1: Tensor, z2: Tensor, temperature: float, extra_pos_mask: Tensor | None) -> Tensor:
    if extra_pos_mask is not None:
        raise Uncovered("extra_pos_mask is not None")
    return nt_xent(z1, z2, temperature)


def _simclr_indexed(z: Tensor, indexes: Tensor, temperature: float) -> Tensor:
    return nt_xent_indexed(z, indexes, temperature, group=gathering_group(True))


def _barlow_twins(z1: Tensor, z2: Tensor, lamb: float, scale_loss: float) -> Tensor:
    if gathering_group(True) is not None:
        # Its sum over the processes has no derivative; learning rates were chosen with that.
        raise Uncovered("with several processes, its gradient is not that of the whole batch")
    return scale_loss * barlow_twins(z1, z2, lamb)


def _swav(preds: Sequence[Tensor], assignments: Sequence[Tensor], temperature: float) -> Tensor:
    if len(assignments) == 0 or len(preds) < 2:
        raise Uncovered("there is no pair of views")
    if len(assignments) > len(preds):
        raise Uncovered("there are more assignments than predictions")
    if any(
        not isinstance(one, Tensor) or one.dim() != 2 or one.shape != preds[0].shape for one in [*preds, *assignments]
    ):
        raise Uncovered("predictions and assignments are not matrices of one shape")
    losses = []
    for view, scores in enumerate(preds):
        # One soft-max per view instead of one per pair: the cross entropy is linear in the assignments.
        targets = [one for assigned, one in enumerate(assignments) if assigned != view]
        if targets:
            logs = nn.functional.log_softmax(scores / temperature, dim=1)
            # Before the sum: whole numbers and truth values count as what they are multiplied with.
            targets = [one.to(torch.promote_types(one.dtype, logs.dtype)) for one in targets]
            losses.append(-(sum(targets[1:], targets[0]) * logs).sum(dim=1).mean())
    return torch.stack(losses).sum() / (len(assignments) * (len(preds) - 1))


def _sinkhorn(module: Any, scores: Tensor) -> Tensor:
    if module.num_iters < 1:
        raise Uncovered("num_iters is below 1")
    return sinkhorn(scores, module.num_iters, module.epsilon, group=gathering_group(True))


SWAPS = (
    Swap("solo.losses.simclr", "simclr_loss_func", ("z1", "z2", "temperature", "extra_pos_mask"), _simclr),
    Swap("solo.losses.simclr", "simclr_loss_func", ("z", "indexes", "temperature"), _simclr_indexed),
    Swap("solo.losses.barlow", "barlow_loss_func", ("z1", "z2", "lamb", "scale_loss"), _barlow_twins),
    Swap("solo.losses.swav", "swav_loss_func", ("preds", "assignments", "temperature"), _swav),
    Swap("solo.utils.sinkhorn_knopp", "SinkhornKnopp.forward", ("self", "Q"), _sinkhorn),
)
