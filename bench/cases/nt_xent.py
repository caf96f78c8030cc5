"""NT-Xent of two batches of views, (N, D) each."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast._reference import nt_xent as reference
from sslfast.bench.cases._inputs import FULL_EPSILON, HALF_EPSILON, rows, two_views
from sslfast.testing import OpCase


def _lightly() -> Callable[..., Tensor]:
    from lightly.loss import NTXentLoss

    criterion = cache(NTXentLoss)  # a training makes it once: it takes 70 us

    def loss(z0: Tensor, z1: Tensor, temperature: float = 0.5) -> Tensor:
        return criterion(temperature=temperature)(z0, z1)

    return loss


def _solo_learn() -> Callable[..., Tensor]:
    from sslfast.bench.cases._solo import loss_module

    function: Callable[..., Tensor] = loss_module("simclr").simclr_loss_func
    return function


def _pytorch_metric_learning() -> Callable[..., Tensor]:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    @cache
    def criterion(temperature: float) -> Callable[..., Tensor]:
        return SelfSupervisedLoss(NTXentLoss(temperature=temperature), symmetric=True)

    def loss(z0: Tensor, z1: Tensor, temperature: float = 0.5) -> Tensor:
        if len(z0) > 256:  # its index tensors hold 2N x 2N x (2N - 2) entries
            raise MemoryError(f"not tried: it needs memory of the order of N^3, and N is {len(z0)}")
        return criterion(temperature)(z0, z1)

    return loss


def _info_nce() -> Callable[..., Tensor]:
    """The script that many SimCLR experiments start from: all similarities, masked by boolean indexing."""

    def loss(z0: Tensor, z1: Tensor, temperature: float = 0.5) -> Tensor:
        count = len(z0)
        features = torch.nn.functional.normalize(torch.cat([z0, z1]), dim=1)
        image = torch.arange(count, device=features.device).repeat(2)
        own = torch.eye(2 * count, dtype=torch.bool, device=features.device)
        similar = (features @ features.T)[~own].view(2 * count, -1)
        same = (image[:, None] == image)[~own].view(2 * count, -1)
        logits = torch.cat([similar[same].view(2 * count, -1), similar[~same].view(2 * count, -1)], dim=1)
        target = torch.zeros(2 * count, dtype=torch.int64, device=features.device)
        return torch.nn.functional.cross_entropy(logits / temperature, target)

    return loss


def _raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    z0, z1 = rows(3, 5).to(device), rows(3, 5, seed=1).to(device)
    lse = reference.nt_xent_fwd(z0, z1, 0.5)[1]
    grad = torch.tensor(1.5, dtype=z0.dtype, device=device)
    leaves = z0.clone().requires_grad_(), z1.clone().requires_grad_()
    return {
        "nt_xent_fwd": [(z0, z1, 0.5), (*leaves, 0.1), (z0.float(), z1.float(), 0.5), (z0.half(), z1.half(), 0.5)],
        "nt_xent_bwd": [(grad, z0, z1, lse, 0.5), (grad.clone().requires_grad_(), *leaves, lse, 0.5)],
    }


def _pairs(size: tuple[int, ...]) -> float:
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
    sweep_sizes=tuple((2**power, 128) for power in range(10, 16)),
    peers={
        "lightly": _lightly,
        "solo-learn": _solo_learn,
        "pytorch-metric-learning": _pytorch_metric_learning,
        "info_nce (restated)": _info_nce,
    },
    # With n = 2N rows: symmetric tiles need n^2 D forward; backward n^2 D again, and two products of n^2 D.
    operations=lambda size: (_pairs(size), 3 * _pairs(size)),
    traffic=lambda size: (2.0 * size[0] * size[1], 4.0 * size[0] * size[1]),
)
