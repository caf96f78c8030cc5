"""NT-Xent against a memory bank, MoCo's form: N anchors, their positives, and M negatives without a gradient."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast._reference import nt_xent as reference
from sslfast._reference.score_lse import score_lse_fwd
from sslfast.bench.cases._inputs import FULL_EPSILON, HALF_EPSILON, rows, two_views
from sslfast.testing import OpCase


def _inputs(size: tuple[int, ...]) -> tuple[Tensor, ...]:
    count, negatives, depth = size
    bank = torch.nn.functional.normalize(rows(negatives, depth, seed=2), dim=1).T
    return *two_views((count, depth)), bank.float().double().contiguous()


def _ours(z0: Tensor, z1: Tensor, negatives: Tensor, temperature: float = 0.1) -> Tensor:
    return sslfast.nt_xent(z0, z1, temperature, negatives=negatives)


def _reference(z0: Tensor, z1: Tensor, negatives: Tensor, temperature: float = 0.1) -> Tensor:
    return reference.nt_xent(z0, z1, temperature, negatives)


def _lightly() -> Callable[..., Tensor]:
    from lightly.loss import NTXentLoss

    criterion = cache(NTXentLoss)

    def loss(z0: Tensor, z1: Tensor, negatives: Tensor, temperature: float = 0.1) -> Tensor:
        module = criterion(temperature=temperature)
        # The bank as it would be handed over, without the cost of its update.
        module.memory_bank.forward = lambda output, update: (output, negatives)
        result: Tensor = module(z0, z1)
        return result

    return loss


def _raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    anchors, bank = rows(4, 5).to(device), rows(20, 5, seed=1).to(device)
    grad = rows(4, seed=2).to(device)
    lse, _ = score_lse_fwd(anchors, bank, None, None, 20, 0.5)
    return {
        "score_lse_bank_bwd": [
            (anchors, bank, 0.5, grad, lse, True),
            (anchors.float(), bank.float().T.contiguous().T, 0.5, grad.float(), lse.float(), False),
        ]
    }


CASE = OpCase(
    name="nt_xent_negatives",
    operators=("score_lse_bank_bwd",),
    function=_ours,
    reference=_reference,
    inputs=_inputs,
    constants=1,
    sizes=((1, 1, 1), (2, 3, 2), (5, 17, 33), (33, 130, 64)),
    epsilon={**FULL_EPSILON, **HALF_EPSILON},
    options=({"temperature": 0.1}, {"temperature": 0.07}, {"temperature": 0.01}),
    scale=lambda size, options: 1 / (size[0] * options["temperature"]),
    raw=_raw,
    bench_sizes=((256, 4096, 128), (256, 65536, 128)),
    peers={"lightly": _lightly},
    operations=lambda size: (2.0 * size[0] * size[1] * size[2], 4.0 * size[0] * size[1] * size[2]),
    traffic=lambda size: (1.0 * size[1] * size[2], 1.0 * size[1] * size[2]),
)
