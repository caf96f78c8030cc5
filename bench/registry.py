"""One case per operator: what the gates check and the benchmarks time. Baselines are imported from ``_reference``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast._reference import nt_xent as nt_xent_reference
from sslfast._reference import unit_rows as unit_rows_reference
from sslfast.ops.unit_rows import unit_rows
from sslfast.testing import OpCase

# fp16 and bf16 results are rounded once, by half a unit in their last place; float32 sums differ in their order.
HALF_EPSILON = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
FULL_EPSILON = {torch.float32: 2e-6, torch.float64: 1e-13}


def _rows(*shape: int, seed: int = 0) -> Tensor:
    """Draw in float32, so that every dtype sees the same numbers."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).double()


def _two_views(size: tuple[int, ...]) -> tuple[Tensor, ...]:
    first = _rows(*size)
    return first, first + 0.5 * _rows(*size, seed=1)


def _lightly_nt_xent() -> Callable[..., Tensor]:
    from lightly.loss import NTXentLoss

    def loss(z0: Tensor, z1: Tensor, temperature: float = 0.5) -> Tensor:
        return NTXentLoss(temperature=temperature)(z0, z1)

    return loss


def _nt_xent_raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    z = torch.nn.functional.normalize(_rows(6, 5), dim=1).to(device)
    lse = nt_xent_reference.nt_xent_fwd(z, 0.5)[1]
    grad = torch.tensor(1.5, dtype=z.dtype, device=device)
    leaf = z.clone().requires_grad_()
    return {
        "nt_xent_fwd": [(z, 0.5), (leaf, 0.1), (z.float(), 0.5)],
        "nt_xent_bwd": [(grad, z, lse, 0.5), (grad.clone().requires_grad_(), leaf, lse, 0.5)],
    }


def _unit_rows_raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    x = _rows(6, 5).to(device)
    unit, inverse_norm = unit_rows_reference.unit_rows_fwd(x)
    grad = _rows(6, 5, seed=1).to(device)
    leaves = tuple(tensor.clone().requires_grad_() for tensor in (grad, unit, inverse_norm))
    return {
        "unit_rows_fwd": [(x,), (x.clone().requires_grad_(),), (x.float(),)],
        "unit_rows_bwd": [(grad, unit, inverse_norm), leaves],
    }


CASES: dict[str, OpCase] = {
    "unit_rows": OpCase(
        name="unit_rows",
        operators=("unit_rows_fwd", "unit_rows_bwd"),
        function=unit_rows,
        reference=unit_rows_reference.unit_rows,
        inputs=lambda size: (_rows(*size),),
        sizes=((1, 1), (3, 5), (17, 33), (65, 31), (130, 257)),
        epsilon=FULL_EPSILON,
        # The part of the gradient along the row cancels; all of it in rows of one number.
        scale=lambda size, options: 1.0,
        raw=_unit_rows_raw,
        bench_sizes=((1024, 128), (8192, 128)),
    ),
    "nt_xent": OpCase(
        name="nt_xent",
        operators=("nt_xent_fwd", "nt_xent_bwd"),
        function=sslfast.nt_xent,
        reference=nt_xent_reference.nt_xent,
        inputs=_two_views,
        sizes=((1, 1), (1, 7), (3, 5), (17, 33), (31, 1), (65, 128), (129, 300)),
        epsilon={**FULL_EPSILON, **HALF_EPSILON},
        options=({"temperature": 0.5}, {"temperature": 0.07}, {"temperature": 0.01}),
        # A gradient is a mean over 2N rows of differences of probabilities, over the temperature.
        scale=lambda size, options: 1 / (2 * size[0] * options["temperature"]),
        raw=_nt_xent_raw,
        bench_sizes=((256, 64), (256, 128), (512, 128), (2048, 128)),
        peers={"lightly": _lightly_nt_xent},
    ),
}
