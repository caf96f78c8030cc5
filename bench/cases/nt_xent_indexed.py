"""NT-Xent with positives by equal index: V views of B images, D numbers each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast._reference import nt_xent as reference
from sslfast._reference.score_lse import score_lse_fwd
from sslfast.bench.cases._inputs import FULL_EPSILON, HALF_EPSILON, rows
from sslfast.testing import OpCase


def _inputs(size: tuple[int, ...]) -> tuple[Tensor, ...]:
    return (rows(*size),)


def _indexes(z: Tensor) -> Tensor:
    # Numbers as data sets have them: neither small nor in order.
    return (torch.arange(z.shape[1], device=z.device) * 7919 % 104729 - 50).repeat(z.shape[0])


def _ours(z: Tensor, temperature: float = 0.1) -> Tensor:
    return sslfast.nt_xent_indexed(z.flatten(0, 1), _indexes(z), temperature)


def _reference(z: Tensor, temperature: float = 0.1) -> Tensor:
    return reference.nt_xent_indexed(z.flatten(0, 1), _indexes(z), temperature)


def _solo_learn() -> Callable[..., Tensor]:
    """The form that solo-learn has had since 1.0.4: exponentials of all scores, and two masks."""

    def loss(z: Tensor, temperature: float = 0.1) -> Tensor:
        index = _indexes(z)
        unit = torch.nn.functional.normalize(z.flatten(0, 1), dim=1)
        similar = torch.exp(unit @ unit.T / temperature)
        same = index[:, None] == index
        positive = (similar * (same & ~torch.eye(len(unit), dtype=torch.bool, device=z.device))).sum(dim=1)
        negative = (similar * ~same).sum(dim=1)
        return -torch.log(positive / (positive + negative)).mean()

    return loss


def _raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    one, other = rows(4, 5).to(device), rows(6, 5, seed=1).to(device)
    labels = torch.tensor([1, 2, 1, 3], device=device), torch.tensor([1, 2, 3, 1, 2, 7], device=device)
    side = torch.stack([rows(4).to(device), rows(4, seed=3).to(device), *score_lse_fwd(one, other, *labels, 1, 0.5)])
    return {
        "score_lse_fwd": [(one, other, *labels, 1, 0.5), (one, other, None, None, 6, 0.1)],
        "score_lse_bwd": [
            (one, other, *labels, 1, 0.5, side, None),
            (other, one, labels[1], labels[0], -1, 0.5, None, side),
            (one, one, labels[0], labels[0], 0, 0.5, side, side),
        ],
    }


CASE = OpCase(
    name="nt_xent_indexed",
    operators=("score_lse_fwd", "score_lse_bwd"),
    function=_ours,
    reference=_reference,
    inputs=_inputs,
    sizes=((2, 1, 1), (2, 2, 3), (3, 17, 33), (4, 40, 128)),
    epsilon={**FULL_EPSILON, **HALF_EPSILON},
    options=({"temperature": 0.1}, {"temperature": 0.5}, {"temperature": 0.01}),
    scale=lambda size, options: 1 / (size[0] * size[1] * options["temperature"]),
    raw=_raw,
    bench_sizes=((2, 256, 128), (2, 1024, 128), (2, 2048, 128)),
    peers={"solo-learn 1.0.4 (restated)": _solo_learn},
    operations=lambda size: (
        (1.0 * size[0] * size[1]) ** 2 * size[2],
        3.0 * (1.0 * size[0] * size[1]) ** 2 * size[2],
    ),
    traffic=lambda size: (1.0 * size[0] * size[1] * size[2], 2.0 * size[0] * size[1] * size[2]),
)
