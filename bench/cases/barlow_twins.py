"""Barlow Twins of two batches of views, (N, D) each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast._reference import barlow_twins as reference
from sslfast.bench.cases._inputs import FULL_EPSILON, HALF_EPSILON, two_views
from sslfast.bench.cases._solo import loss_module
from sslfast.testing import OpCase


def _lightly() -> Callable[..., Tensor]:
    from lightly.loss import BarlowTwinsLoss

    def loss(z0: Tensor, z1: Tensor, lambda_param: float = reference.LAMBDA) -> Tensor:
        return BarlowTwinsLoss(lambda_param=lambda_param)(z0, z1)

    return loss


def _solo() -> Callable[..., Tensor]:
    barlow_loss_func = loss_module("barlow").barlow_loss_func

    def loss(z0: Tensor, z1: Tensor, lambda_param: float = reference.LAMBDA) -> Tensor:
        result: Tensor = barlow_loss_func(z0, z1, lamb=lambda_param, scale_loss=1.0)
        return result

    return loss


def _raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    z0, z1 = (view.to(device) for view in two_views((6, 5)))
    leaves = tuple(view.clone().requires_grad_() for view in (z0, z1))
    singles = z0.float(), z1.float()
    options = 0.1, 1e-5
    grad = torch.tensor(1.5, dtype=z0.dtype, device=device)
    of_direct = reference.barlow_twins_direct_fwd(z0, z1, *options)[1:]
    of_dual = reference.barlow_twins_dual_fwd(z0, z1, 0, 6, *options)[1:]
    of_part = reference.barlow_twins_dual_fwd(z0, z1, 2, 3, *options)[1:]
    outer = grad.clone().requires_grad_()
    return {
        "barlow_twins_direct_fwd": [(z0, z1, *options), (*leaves, *options), (*singles, *options)],
        "barlow_twins_direct_bwd": [
            (grad, z0, z1, *of_direct, 6, *options),
            (outer, *leaves, *of_direct, 6, *options),
        ],
        "barlow_twins_correlation": [(z0, z1, of_direct[0], 9)],
        "barlow_twins_dual_fwd": [
            (z0, z1, 0, 6, *options),
            (*leaves, 0, 6, *options),
            (*singles, 0, 6, *options),
            (z0, z1, 2, 3, *options),
        ],
        "barlow_twins_dual_bwd": [
            (grad, z0, z1, *of_dual, 0, *options),
            (outer, *leaves, *of_dual, 0, *options),
            (grad, z0, z1, *of_part, 2, *options),
        ],
    }


def _products(size: tuple[int, ...]) -> float:
    rows, columns = size
    return 2.0 * rows * columns * min(rows, columns)


CASE = OpCase(
    name="barlow_twins",
    operators=(
        "barlow_twins_direct_fwd",
        "barlow_twins_direct_bwd",
        "barlow_twins_correlation",
        "barlow_twins_dual_fwd",
        "barlow_twins_dual_bwd",
    ),
    function=sslfast.barlow_twins,
    reference=reference.barlow_twins,
    inputs=two_views,
    sizes=((4, 3), (3, 4), (3, 5), (5, 1), (17, 33), (31, 1), (65, 128), (128, 65), (129, 300), (300, 129)),
    epsilon={**FULL_EPSILON, **HALF_EPSILON},
    options=({"lambda_param": 5e-3}, {"lambda_param": 1.0}, {"lambda_param": 0.1, "eps": 1e-3}),
    raw=_raw,
    bench_sizes=((128, 256), (256, 512), (512, 256), (256, 8192), (1024, 2048), (1024, 8192), (4096, 2048)),
    peers={"lightly": _lightly, "solo-learn": _solo},
    # One product forward, two backward; the Gram matrices of the dual route are two, but symmetric.
    operations=lambda size: (_products(size), 2 * _products(size)),
    traffic=lambda size: (2.0 * size[0] * size[1], 4.0 * size[0] * size[1]),
)
