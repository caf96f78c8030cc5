"""Rows scaled to unit length."""

from collections.abc import Mapping, Sequence
from typing import Any

from sslfast._reference import unit_rows as reference
from sslfast.bench.cases._inputs import FULL_EPSILON, rows
from sslfast.ops.unit_rows import unit_rows
from sslfast.testing import OpCase


def _raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    x = rows(6, 5).to(device)
    unit, inverse_norm = reference.unit_rows_fwd(x)
    grad = rows(6, 5, seed=1).to(device)
    leaves = tuple(tensor.clone().requires_grad_() for tensor in (grad, unit, inverse_norm))
    return {
        "unit_rows_fwd": [(x,), (x.clone().requires_grad_(),), (x.float(),)],
        "unit_rows_bwd": [(grad, unit, inverse_norm), leaves],
    }


CASE = OpCase(
    name="unit_rows",
    operators=("unit_rows_fwd", "unit_rows_bwd"),
    function=unit_rows,
    reference=reference.unit_rows,
    inputs=lambda size: (rows(*size),),
    sizes=((1, 1), (3, 5), (17, 33), (65, 31), (130, 257)),
    epsilon=FULL_EPSILON,
    # The part of the gradient along the row cancels; all of it in rows of one number.
    scale=lambda size, options: 1.0,
    raw=_raw,
    bench_sizes=((1024, 128), (8192, 128)),
    operations=lambda size: (3.0 * size[0] * size[1], 6.0 * size[0] * size[1]),
    traffic=lambda size: (2.0 * size[0] * size[1], 3.0 * size[0] * size[1]),
)
