"""The SwAV loss in Triton: one program per row of all views; the codes live in registers. No atomics."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.sinkhorn import NOTHING, OPTIONS, accumulator, finite, logarithm_of, potential_of


@triton.jit
def _load(view, row, k, columns, dtype: tl.constexpr):
    return tl.load(view + row * columns + k, mask=k < columns, other=0.0).to(dtype)


@triton.jit
def _swav_loss_fwd_kernel(
    views,  # a tuple of pointers, the high-resolution ones first
    potential_ptr,
    lse_ptr,
    code_lse_ptr,
    row_loss_ptr,
    rows,
    columns,
    code_scale: tl.float64,
    view_scale: tl.float64,
    HIGH: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    NORMALISED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    dtype = potential_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, WIDTH)  # one per view; the same ones per code
    highest = tl.full((WIDTH,), NOTHING, dtype=dtype)
    total = tl.zeros((WIDTH,), dtype=dtype)
    code_highest = tl.full((WIDTH,), NOTHING, dtype=dtype)
    code_total = tl.zeros((WIDTH,), dtype=dtype)
    product = tl.zeros((WIDTH,), dtype=dtype)
    to_view = tl.full((1,), view_scale, dtype=dtype)
    to_code = tl.full((1,), code_scale, dtype=dtype)
    for start in range(0, columns, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        together = tl.zeros((BLOCK_K,), dtype=dtype)
        for v in tl.static_range(COUNT):
            z = _load(views[v], row, k, columns, dtype)  # [BK]
            together += z
            exponents = tl.where(k < columns, z * to_view, NOTHING)
            new_highest = tl.where(slots == v, tl.maximum(highest, tl.max(exponents)), highest)
            shift = finite(new_highest)
            part = tl.sum(tl.exp(exponents - tl.sum(tl.where(slots == v, shift, 0.0))))
            total = tl.where(slots == v, total * tl.exp(highest - shift) + part, total)
            highest = new_highest
        for i in tl.static_range(HIGH):
            z = _load(views[i], row, k, columns, dtype)
            potential = tl.load(potential_ptr + i * columns + k, mask=k < columns, other=0.0)
            exponents = tl.where(k < columns, z * to_code - potential, NOTHING)
            new_highest = tl.where(slots == i, tl.maximum(code_highest, tl.max(exponents)), code_highest)
            shift = finite(new_highest)
            weight = tl.exp(exponents - tl.sum(tl.where(slots == i, shift, 0.0)))
            factor = tl.exp(code_highest - shift)
            code_total = tl.where(slots == i, code_total * factor + tl.sum(weight), code_total)
            product = tl.where(slots == i, product * factor + tl.sum(weight * (together - z)), product)
            code_highest = new_highest
    lse = highest + logarithm_of(total)
    code_lse = code_highest + logarithm_of(code_total)
    tl.store(lse_ptr + slots.to(tl.int64) * rows + row, lse, mask=slots < COUNT)
    tl.store(code_lse_ptr + slots.to(tl.int64) * rows + row, code_lse, mask=slots < HIGH)
    lse = tl.where(slots < COUNT, lse, 0.0)
    others = tl.sum(lse) - lse
    if NORMALISED:
        terms = others - product / tl.where(slots < HIGH, code_total, 1.0) * to_view
    else:
        terms = tl.exp(code_lse) * others - product * tl.exp(code_highest) * to_view
    tl.store(row_loss_ptr + row, tl.sum(tl.where(slots < HIGH, terms, 0.0)))


@triton.jit
def _code(view, potential_ptr, code_lse_ptr, i, row, k, rows, columns, scale, NORMALISED: tl.constexpr):
    """Return some entries of the code of view i, [BK]."""
    dtype = potential_ptr.dtype.element_ty
    potential = tl.load(potential_ptr + i * columns + k, mask=k < columns, other=0.0)
    exponents = _load(view, row, k, columns, dtype) * scale - potential
    if NORMALISED:
        exponents -= tl.load(code_lse_ptr + i * rows + row)
        exponents = tl.where(exponents > 0, 0.0, exponents)  # a share is 1 at most, but for rounding; NaN stays
    return tl.exp(tl.where(k < columns, exponents, NOTHING))


@triton.jit
def _swav_loss_bwd_kernel(
    views,
    potential_ptr,
    lse_ptr,
    code_lse_ptr,
    grad_ptr,
    result_ptr,
    rows,
    columns,
    code_scale: tl.float64,
    view_scale: tl.float64,
    grad_scale: tl.float64,
    HIGH: tl.constexpr,
    COUNT: tl.constexpr,
    NORMALISED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    dtype = potential_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    to_view = tl.full((1,), view_scale, dtype=dtype)
    to_code = tl.full((1,), code_scale, dtype=dtype)
    factor = tl.load(grad_ptr) * tl.full((1,), grad_scale, dtype=dtype)
    for v in tl.static_range(COUNT):
        codes = tl.zeros((BLOCK_K,), dtype=dtype)
        mass = tl.zeros((1,), dtype=dtype)
        for i in tl.static_range(HIGH):
            if i != v:
                codes += _code(views[i], potential_ptr, code_lse_ptr, i, row, k, rows, columns, to_code, NORMALISED)
                if NORMALISED:
                    mass += 1.0
                else:
                    mass += tl.exp(tl.load(code_lse_ptr + i * rows + row))
        lse = tl.load(lse_ptr + tl.full((1,), v, dtype=tl.int64) * rows + row)
        exponents = _load(views[v], row, k, columns, dtype) * to_view - lse
        probability = tl.exp(tl.where(exponents > 0, 0.0, exponents))
        place = (tl.full((1,), v, dtype=tl.int64) * rows + row) * columns + k
        tl.store(result_ptr + place, (probability * mass - codes) * factor, mask=k < columns)


BLOCKS = {"BLOCK_K": 1024}
"""Not tuned on a device."""


def swav_potentials(high: Sequence[Tensor], queue: Sequence[Tensor], iterations: int, epsilon: float) -> Tensor:
    """Return what the exponents of each high-resolution view's codes are reduced by, (H, K)."""
    potentials = []
    for i, scores in enumerate(high):
        parts = [scores, *queue[i : i + 1]]
        potentials.append(potential_of(parts, None, sum(part.shape[0] for part in parts), iterations, epsilon))
    return torch.stack(potentials)


def swav_loss_fwd(
    high: Sequence[Tensor],
    low: Sequence[Tensor],
    potential: Tensor,
    normalised: bool,
    temperature: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, and the log-sum-exp per row of scores / temperature (V, B) and of codes' exponents (H, B)."""
    views = tuple(view.contiguous() for view in (*high, *low))
    potential = potential.contiguous()
    rows, columns = views[0].shape
    made = {"dtype": accumulator(views[0]), "device": potential.device}
    lse = torch.empty((len(views), rows), **made)
    code_lse = torch.empty((len(high), rows), **made)
    row_loss = torch.empty(rows, **made)
    with torch.cuda.device_of(potential):
        _swav_loss_fwd_kernel[(rows,)](
            views,
            potential,
            lse,
            code_lse,
            row_loss,
            rows,
            columns,
            1 / epsilon,
            1 / temperature,
            HIGH=len(high),
            COUNT=len(views),
            WIDTH=triton.next_power_of_2(len(views)),
            NORMALISED=normalised,
            **BLOCKS,
            **OPTIONS,
        )
    return row_loss.mean() / (len(high) * (len(views) - 1)), lse, code_lse


def swav_loss_bwd(
    grad: Tensor,
    high: Sequence[Tensor],
    low: Sequence[Tensor],
    potential: Tensor,
    lse: Tensor,
    code_lse: Tensor,
    normalised: bool,
    temperature: float,
    epsilon: float,
) -> Tensor:
    """Return the gradients of all views, (V, B, K)."""
    views = tuple(view.contiguous() for view in (*high, *low))
    rows, columns = views[0].shape
    result = torch.empty((len(views), rows, columns), dtype=views[0].dtype, device=potential.device)
    with torch.cuda.device_of(potential):
        _swav_loss_bwd_kernel[(rows, triton.cdiv(columns, BLOCKS["BLOCK_K"]))](
            views,
            potential.contiguous(),
            lse.contiguous(),
            code_lse.contiguous(),
            grad,
            result,
            rows,
            columns,
            1 / epsilon,
            1 / temperature,
            1 / (len(high) * (len(views) - 1) * rows * temperature),
            HIGH=len(high),
            COUNT=len(views),
            NORMALISED=normalised,
            **BLOCKS,
            **OPTIONS,
        )
    return result


def ahead() -> list[tuple[triton.JITFunction, dict[str, object], dict[str, int]]]:
    """Every kernel as it is launched: (kernel, signature, constants), for compilation without a device."""
    variants: list[tuple[triton.JITFunction, dict[str, object], dict[str, int]]] = []
    all_views, two_views, unnormalised = (2, 8, 8, True), (2, 2, 2, True), (3, 5, 8, False)
    for name, sums, cases in (
        ("fp32", "fp32", (all_views, two_views, unnormalised)),
        ("fp64", "fp64", (two_views, unnormalised)),
        ("bf16", "fp32", (unnormalised,)),
        ("fp16", "fp32", (two_views,)),
    ):
        total = f"*{sums}"
        known = {"potential_ptr": total, "lse_ptr": total, "code_lse_ptr": total}
        sizes = {"rows": "i32", "columns": "i32", "code_scale": "fp64", "view_scale": "fp64"}
        for high, count, width, normalised in cases:
            views = {"views": (f"*{name}",) * count}
            constants = {"HIGH": high, "COUNT": count, "NORMALISED": normalised, **BLOCKS}
            variants.append(
                (
                    _swav_loss_fwd_kernel,
                    {**views, **known, "row_loss_ptr": total, **sizes},
                    {**constants, "WIDTH": width},
                )
            )
            given = {"grad_ptr": total, "result_ptr": f"*{name}"}
            variants.append(
                (_swav_loss_bwd_kernel, {**views, **known, **given, **sizes, "grad_scale": "fp64"}, constants)
            )
    return variants
