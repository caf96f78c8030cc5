"""NT-Xent of two batches of views, (N, D) each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast._reference import nt_xent as reference
from sslfast.bench.cases._inputs import FULL_EPSILON, HALF_EPSILON, rows, two_views
from sslfast.testing import OpCase


def _lightly() -> Callable[..., Tensor]:
    from lightly.loss import NTXentLoss

    def loss(z0: Tensor, z1: Tensor, temperature: float = 0.5) -> Tensor:
        return NTXentLoss(temperature=temperature)(z0, z1)

    return loss


def _raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    z = torch.nn.functional.normalize(rows(6, 5), dim=1).to(device)
    lse = reference.nt_xent_fwd(z, 0.5)[1]
    grad = torch.tensor(1.5, dtype=z.dtype, device=device)
    leaf = z.clone().requires_grad_()
    return {
        "nt_xent_fwd": [(z, 0.5), (leaf, 0.1), (z.float(), 0.5)],
        "nt_xent_bwd": [(grad, z, lse, 0.5), (grad.clone().requires_grad_(), leaf, lse, 0.5)],
    }


def _scores(size: tuple[int, ...]) -> float:
    return (2.0 * size[0]) ** 2 * size[1]


CASE = OpCase(
    name="nt_xent",
    operators=("nt_xent_fwd", "nt_xent_bwd"),
    function=sslfast.nt_xent,
    reference=reference.nt_xent,
    inputs=two_views,
    sizes=((1, 1), (1, 7), (3, 5), (17, 33), (31, 1), (65, 128), (129, 300)),
    epsilon={**FULL_EPSILON, **HALF_EPSILON},
    options=({"temperature": 0.5}, {"temperature": 0.07}, {"temperature": 0.01}),
    # A gradient is a mean over 2N rows of differences of probabilities, over the temperature.
    scale=lambda size, options: 1 / (2 * size[0] * options["temperature"]),
    raw=_raw,
    bench_sizes=((256, 64), (256, 128), (512, 128), (1024, 128), (2048, 128), (4096, 128)),
    peers={"lightly": _lightly},
    # With n = 2N: symmetric tiles need n^2 D forward, and n^2 D again plus two products of n^2 D backward.
    operations=lambda size: (_scores(size), 3 * _scores(size)),
    traffic=lambda size: (2.0 * size[0] * size[1], 4.0 * size[0] * size[1]),
)
