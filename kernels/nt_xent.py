"""NT-Xent in Triton. M = 2N unit rows of D numbers, in the dtype that came; sums in float32 (float64 for float64).

No atomics: results do not depend on scheduling. The maximum of a row's scores is known: 1 / temperature.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels._scores import OPTIONS, accumulator, blocks, dot_tile

SHORTEST_ROW = tl.constexpr(1e-12)
"""Shorter rows are divided by this instead of by their length, as ``torch.nn.functional.normalize`` does."""


@triton.jit
def _unit_kernel(
    z0_ptr,
    z1_ptr,
    unit_ptr,
    inverse_norm_ptr,
    half,
    depth,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One program per row of both views: its unit row, and what it was multiplied by."""
    row = tl.program_id(0).to(tl.int64)
    source = tl.where(row < half, z0_ptr + row * depth, z1_ptr + (row - half) * depth)
    # Scaled by its largest entry, a row of float32 cannot overflow when it is squared.
    largest = tl.full((), 0.0, dtype=DTYPE)
    for start in range(0, depth, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        value = tl.load(source + d, mask=d < depth, other=0.0).to(DTYPE)
        largest = tl.maximum(largest, tl.max(tl.abs(value), axis=0))
    scale = tl.where(largest > 0, largest, 1.0)
    total = tl.full((), 0.0, dtype=DTYPE)
    for start in range(0, depth, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        value = tl.load(source + d, mask=d < depth, other=0.0).to(DTYPE) / scale
        total += tl.sum(value * value, axis=0)
    norm = scale * tl.sqrt(total)
    inverse = 1.0 / tl.where(norm < SHORTEST_ROW, SHORTEST_ROW, norm)
    for start in range(0, depth, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        value = tl.load(source + d, mask=d < depth, other=0.0).to(DTYPE)
        tl.store(unit_ptr + row * depth + d, value * inverse, mask=d < depth)
    tl.store(inverse_norm_ptr + row, inverse)


@triton.jit
def _nt_xent_fwd_kernel(
    unit_ptr,
    lse_ptr,
    row_loss_ptr,
    count,
    depth,
    inverse_temperature: tl.float64,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    half = count // 2
    partner = tl.where(rows < half, rows + half, rows - half)
    factor = tl.full((1, 1), inverse_temperature, dtype=DTYPE)
    total = tl.zeros((BLOCK_M,), dtype=DTYPE)
    positive = tl.zeros((BLOCK_M,), dtype=DTYPE)
    for start in range(0, count, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N).to(tl.int64)
        scores = factor * dot_tile(
            unit_ptr, unit_ptr, rows, columns, count, count, depth, BLOCK_M, BLOCK_N, BLOCK_D, DTYPE
        )  # [BM, BN]
        positive += tl.sum(tl.where(columns[None, :] == partner[:, None], scores, 0.0), axis=1)
        keep = (columns < count)[None, :] & (rows[:, None] != columns[None, :])
        total += tl.sum(tl.where(keep, tl.exp(scores - factor), 0.0), axis=1)
    lse = tl.log(total) + tl.full((1,), inverse_temperature, dtype=DTYPE)
    tl.store(lse_ptr + rows, lse, mask=rows < count)
    tl.store(row_loss_ptr + rows, lse - positive, mask=rows < count)


@triton.jit
def _nt_xent_bwd_kernel(
    unit_ptr,
    lse_ptr,
    pull_ptr,
    count,
    depth,
    inverse_temperature: tl.float64,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    DTYPE: tl.constexpr,
    LIFT: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    half = count // 2
    partner = tl.where(rows < half, rows + half, rows - half)
    factor = tl.full((1, 1), inverse_temperature, dtype=DTYPE)
    highest = tl.full((1,), inverse_temperature, dtype=DTYPE)
    # 1 / sum_j exp(s_ij - 1 / temperature); one exponential per pair then serves its row and its column.
    own = tl.exp(highest - tl.load(lse_ptr + rows, mask=rows < count, other=0.0))
    pull = tl.zeros((BLOCK_M, BLOCK_V), dtype=DTYPE)
    for start in range(0, count, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N).to(tl.int64)
        scores = factor * dot_tile(
            unit_ptr, unit_ptr, rows, columns, count, count, depth, BLOCK_M, BLOCK_N, BLOCK_D, DTYPE
        )  # [BM, BN]
        theirs = tl.exp(highest - tl.load(lse_ptr + columns, mask=columns < count, other=0.0))
        weights = tl.exp(scores - factor) * (own[:, None] + theirs[None, :])
        keep = (columns < count)[None, :] & (rows < count)[:, None] & (rows[:, None] != columns[None, :])
        weights = tl.where(keep, weights, 0.0)
        weights = tl.where(columns[None, :] == partner[:, None], weights - 2.0, weights)
        values = tl.load(
            unit_ptr + columns[:, None] * depth + d[None, :],
            mask=(columns < count)[:, None] & (d < depth)[None, :],
            other=0.0,
        )  # [BN, BV]
        # LIFT: small weights would be subnormal in float16.
        pull = tl.dot((weights * LIFT).to(values.dtype), values, pull, input_precision="ieee", out_dtype=DTYPE)
    tl.store(
        pull_ptr + rows[:, None] * depth + d[None, :],
        pull / LIFT,
        mask=(rows < count)[:, None] & (d < depth)[None, :],
    )


@triton.jit
def _finish_kernel(
    pull_ptr,
    unit_ptr,
    inverse_norm_ptr,
    grad_ptr,
    grad0_ptr,
    grad1_ptr,
    half,
    depth,
    inverse_temperature: tl.float64,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One program per row: (g - (g . u) u) / length, and g / 1e-12 for a row that was too short."""
    row = tl.program_id(0).to(tl.int64)
    along = tl.full((), 0.0, dtype=DTYPE)
    for start in range(0, depth, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        value = tl.load(unit_ptr + row * depth + d, mask=d < depth, other=0.0).to(DTYPE)
        along += tl.sum(value * tl.load(pull_ptr + row * depth + d, mask=d < depth, other=0.0), axis=0)
    inverse = tl.load(inverse_norm_ptr + row)
    along = tl.where(inverse * SHORTEST_ROW < 1.0, along, 0.0 * along)
    scale = tl.load(grad_ptr).to(DTYPE) * inverse * tl.full((), inverse_temperature, dtype=DTYPE) / (2 * half)
    target = tl.where(row < half, grad0_ptr + row * depth, grad1_ptr + (row - half) * depth)
    for start in range(0, depth, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        value = tl.load(unit_ptr + row * depth + d, mask=d < depth, other=0.0).to(DTYPE)
        pull = tl.load(pull_ptr + row * depth + d, mask=d < depth, other=0.0)
        tl.store(target + d, (pull - along * value) * scale, mask=d < depth)


def nt_xent_fwd(z0: Tensor, z1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the loss, and the log-sum-exp (2N,) of each row's scores, of views (N, D) each."""
    half, depth = z0.shape
    dtype, kept = accumulator(z0.dtype)
    lse, row_loss = (torch.empty(2 * half, dtype=dtype, device=z0.device) for _ in range(2))
    with torch.cuda.device_of(z0):
        unit, _ = _unit_rows(z0, z1)
        sizes = _only(blocks(z0.dtype, depth), "BLOCK_M", "BLOCK_N", "BLOCK_D")
        _nt_xent_fwd_kernel[(triton.cdiv(2 * half, sizes["BLOCK_M"]),)](
            unit, lse, row_loss, 2 * half, depth, 1 / temperature, **sizes, DTYPE=kept, **OPTIONS
        )
    return row_loss.mean(), lse


def nt_xent_bwd(grad: Tensor, z0: Tensor, z1: Tensor, lse: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the gradients (N, D) of both views of the loss, times ``grad``."""
    half, depth = z0.shape
    dtype, kept = accumulator(z0.dtype)
    pull = torch.empty((2 * half, depth), dtype=dtype, device=z0.device)
    grad0, grad1 = (torch.empty((half, depth), dtype=z0.dtype, device=z0.device) for _ in range(2))
    with torch.cuda.device_of(z0):
        unit, inverse_norm = _unit_rows(z0, z1)
        sizes = blocks(z0.dtype, depth)
        grid = (triton.cdiv(2 * half, sizes["BLOCK_M"]), triton.cdiv(depth, sizes["BLOCK_V"]))
        _nt_xent_bwd_kernel[grid](
            *(unit, lse.contiguous(), pull, 2 * half, depth, 1 / temperature),
            **sizes,
            DTYPE=kept,
            LIFT=_lift(z0.dtype),
            **OPTIONS,
        )
        _finish_kernel[(2 * half,)](
            *(pull, unit, inverse_norm, grad, grad0, grad1, half, depth, 1 / temperature),
            BLOCK_D=_row_block(depth),
            DTYPE=kept,
            **OPTIONS,
        )
    return grad0, grad1


def _unit_rows(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    half, depth = z0.shape
    dtype, kept = accumulator(z0.dtype)
    unit = torch.empty((2 * half, depth), dtype=z0.dtype, device=z0.device)
    inverse_norm = torch.empty(2 * half, dtype=dtype, device=z0.device)
    _unit_kernel[(2 * half,)](
        *(z0.contiguous(), z1.contiguous(), unit, inverse_norm, half, depth),
        BLOCK_D=_row_block(depth),
        DTYPE=kept,
        **OPTIONS,
    )
    return unit, inverse_norm


def _row_block(depth: int) -> int:
    return min(1024, triton.next_power_of_2(max(1, depth)))


def _lift(dtype: torch.dtype) -> float:
    return 4096.0 if dtype == torch.float16 else 1.0


def _only(sizes: dict[str, int], *names: str) -> dict[str, int]:
    return {name: sizes[name] for name in names}


def ahead() -> list[tuple[triton.JITFunction, dict[str, str], dict[str, object]]]:
    """Every kernel as it is launched: (kernel, signature, constants), for compilation without a device."""
    variants: list[tuple[triton.JITFunction, dict[str, str], dict[str, object]]] = []
    for dtype, name, depths in (
        (torch.float32, "fp32", (8, 128)),
        (torch.float64, "fp64", (8,)),
        (torch.bfloat16, "bf16", (128,)),
        (torch.float16, "fp16", (8,)),
    ):
        kept = accumulator(dtype)[1]
        wide = "fp64" if dtype == torch.float64 else "fp32"
        sizes = {"count": "i32", "depth": "i32", "inverse_temperature": "fp64"}
        halves = {"half": "i32", "depth": "i32"}
        unit, lse, pull = {"unit_ptr": f"*{name}"}, {"lse_ptr": f"*{wide}"}, {"pull_ptr": f"*{wide}"}
        norm = {"inverse_norm_ptr": f"*{wide}"}
        views = {"z0_ptr": f"*{name}", "z1_ptr": f"*{name}"}
        for depth in depths:
            block = blocks(dtype, depth)
            row = {"BLOCK_D": _row_block(depth), "DTYPE": kept}
            forward = {**_only(block, "BLOCK_M", "BLOCK_N", "BLOCK_D"), "DTYPE": kept}
            backward = {**block, "DTYPE": kept, "LIFT": _lift(dtype)}
            variants.append((_nt_xent_bwd_kernel, {**unit, **lse, **pull, **sizes}, backward))
            if dtype == torch.float16:
                continue
            gradients = {"grad_ptr": f"*{wide}", "grad0_ptr": f"*{name}", "grad1_ptr": f"*{name}"}
            finish = {**pull, **unit, **norm, **gradients, **halves, "inverse_temperature": "fp64"}
            variants += [
                (_unit_kernel, {**views, **unit, **norm, **halves}, row),
                (_nt_xent_fwd_kernel, {**unit, **lse, "row_loss_ptr": f"*{wide}", **sizes}, forward),
                (_finish_kernel, finish, row),
            ]
    return variants
