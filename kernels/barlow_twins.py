"""Barlow Twins in Triton by way of the correlation matrix, and what the other route (barlow_twins_dual) shares with it.

z0 and z1 are (N, D), row-major; statistics are (2, 3, D) in the dtype of the computation, float32 for half precision.
No atomics: results do not depend on scheduling.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"enable_fp_fusion": True}
"""Said aloud, because Triton is about to change the default."""
STATISTICS_BLOCKS = {"BLOCK_N": 64, "BLOCK_D": 32}


@triton.jit
def _entries(z_ptr, rows, columns, count, depth):
    """Return z at rows [BR] and columns [BC], [BR, BC]; zeros outside."""
    keep = (rows < count)[:, None] & (columns < depth)[None, :]
    return tl.load(z_ptr + rows[:, None] * depth + columns[None, :], mask=keep, other=0.0)


@triton.jit
def normalised(z_ptr, statistics_ptr, rows, columns, count, depth):
    """Return ((z - center) - rest) * inverse, [BR, BC]; zeros outside."""
    dtype = statistics_ptr.dtype.element_ty
    inside = columns < depth
    center = tl.load(statistics_ptr + columns, mask=inside, other=0.0)
    rest = tl.load(statistics_ptr + depth + columns, mask=inside, other=0.0)
    inverse = tl.load(statistics_ptr + 2 * depth + columns, mask=inside, other=0.0)
    z = _entries(z_ptr, rows, columns, count, depth).to(dtype)
    value = (z - center[None, :] - rest[None, :]) * inverse[None, :]
    return tl.where((rows < count)[:, None], value, 0.0)


@triton.jit
def _statistics_kernel(
    z_ptr, statistics_ptr, count, depth, eps: tl.float64, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    dtype = statistics_ptr.dtype.element_ty
    columns = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    # float64: there are only N D of these sums, and squares of large float32 numbers do not overflow.
    total = tl.zeros((BLOCK_D,), dtype=tl.float64)
    for start in range(0, count, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
        total += tl.sum(_entries(z_ptr, rows, columns, count, depth).to(tl.float64), axis=0)
    mean = total / count
    # About the mean: raw moments cancel where the mean is large against the deviation.
    squares = tl.zeros((BLOCK_D,), dtype=tl.float64)
    for start in range(0, count, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
        apart = _entries(z_ptr, rows, columns, count, depth).to(tl.float64) - mean[None, :]
        squares += tl.sum(tl.where((rows < count)[:, None], apart * apart, 0.0), axis=0)
    variance = squares / count + tl.full((BLOCK_D,), eps, dtype=tl.float64)
    inside = columns < depth
    center = mean.to(dtype)
    tl.store(statistics_ptr + columns, center, mask=inside)
    tl.store(statistics_ptr + depth + columns, (mean - center.to(tl.float64)).to(dtype), mask=inside)
    tl.store(statistics_ptr + 2 * depth + columns, (1.0 / tl.sqrt(variance)).to(dtype), mask=inside)


@triton.jit
def _correlation_kernel(
    z0_ptr,
    z1_ptr,
    statistics_ptr,
    correlation_ptr,
    terms_ptr,
    count,
    depth,
    inverse_total: tl.float64,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store a tile of C, and its sums of C_ij^2 off the diagonal and of (C_ii - 1)^2: terms (2, blocks, blocks)."""
    dtype = statistics_ptr.dtype.element_ty
    left = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    right = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    tile = tl.zeros((BLOCK_D, BLOCK_D), dtype=dtype)
    for start in range(0, count, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
        a = normalised(z0_ptr, statistics_ptr, rows, left, count, depth)
        b = normalised(z1_ptr, statistics_ptr + 3 * depth, rows, right, count, depth)
        # "ieee": TF32 has 10 bits, and the redundancy term adds up D^2 squares.
        tile = tl.dot(tl.trans(a), b, tile, input_precision="ieee", out_dtype=dtype)
    tile = tile * tl.full((1, 1), inverse_total, dtype=dtype)
    keep = (left < depth)[:, None] & (right < depth)[None, :]
    tl.store(correlation_ptr + left[:, None] * depth + right[None, :], tile, mask=keep)
    own = left[:, None] == right[None, :]
    redundancy = tl.sum(tl.where(keep & (own == 0), tile * tile, 0.0).to(tl.float64))
    invariance = tl.sum(tl.where(keep & own, (tile - 1.0) * (tile - 1.0), 0.0).to(tl.float64))
    blocks = tl.num_programs(1)
    at = tl.program_id(0) * blocks + tl.program_id(1)
    tl.store(terms_ptr + at, redundancy)
    tl.store(terms_ptr + tl.num_programs(0) * blocks + at, invariance)


@triton.jit
def _direct_bwd_kernel(
    grad_ptr,
    own_ptr,
    own_statistics_ptr,
    other_ptr,
    other_statistics_ptr,
    correlation_ptr,
    result_ptr,
    count,
    depth,
    correlation_depth,
    correlation_column,
    inverse_total: tl.float64,
    lambda_param: tl.float64,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Entry (k, column) of C, or of its transpose, stands at k * correlation_depth + column * correlation_column."""
    dtype = own_statistics_ptr.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    weight = tl.full((1, 1), 2.0 * lambda_param, dtype=dtype)
    pull = tl.zeros((BLOCK_N, BLOCK_D), dtype=dtype)
    along = tl.zeros((BLOCK_D,), dtype=dtype)
    for start in range(0, depth, BLOCK_D):
        k = start + tl.arange(0, BLOCK_D).to(tl.int64)
        keep = (k < depth)[:, None] & (columns < depth)[None, :]
        place = k[:, None] * correlation_depth + columns[None, :] * correlation_column
        c = tl.load(correlation_ptr + place, mask=keep, other=0.0)
        slope = tl.where(k[:, None] == columns[None, :], 2.0 * (c - 1.0), weight * c)
        slope = tl.where(keep, slope, 0.0)
        # What the gradient has along the normalised column: the sum over the rows is known from C.
        along += tl.sum(slope * c, axis=0)
        other = normalised(other_ptr, other_statistics_ptr, rows, k, count, depth)
        pull = tl.dot(other, slope, pull, input_precision="ieee", out_dtype=dtype)
    own = normalised(own_ptr, own_statistics_ptr, rows, columns, count, depth)
    inside = columns < depth
    inverse = tl.load(own_statistics_ptr + 2 * depth + columns, mask=inside, other=0.0)
    scale = tl.load(grad_ptr).to(dtype) * tl.full((1, 1), inverse_total, dtype=dtype)
    value = (pull - own * along[None, :]) * inverse[None, :] * scale
    tl.store(
        result_ptr + rows[:, None] * depth + columns[None, :],
        value.to(result_ptr.dtype.element_ty),
        mask=(rows < count)[:, None] & inside[None, :],
    )


def blocks_of(dtype: torch.dtype) -> dict[str, int]:
    """Block sizes that fit the registers of sm_80 and later."""
    return {"BLOCK_N": 32, "BLOCK_D": 32} if dtype == torch.float64 else {"BLOCK_N": 64, "BLOCK_D": 64}


def computed_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which views of a dtype are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def find_statistics(z0: Tensor, z1: Tensor, eps: float) -> Tensor:
    """Return per view and column what is subtracted, twice, and what is multiplied by, (2, 3, D)."""
    count, depth = z0.shape
    blocks = STATISTICS_BLOCKS
    statistics = z0.new_empty((2, 3, depth), dtype=computed_dtype(z0.dtype))
    for z, own in zip((z0, z1), statistics, strict=True):
        _statistics_kernel[(triton.cdiv(depth, blocks["BLOCK_D"]),)](z, own, count, depth, eps, **blocks, **OPTIONS)
    return statistics


def _correlate(z0: Tensor, z1: Tensor, statistics: Tensor, total: int) -> tuple[Tensor, Tensor]:
    count, depth = z0.shape
    blocks = blocks_of(statistics.dtype)
    side = triton.cdiv(depth, blocks["BLOCK_D"])
    correlation = statistics.new_empty((depth, depth))
    terms = statistics.new_empty((2, side, side), dtype=torch.float64)
    _correlation_kernel[(side, side)](
        z0, z1, statistics, correlation, terms, count, depth, 1 / total, **blocks, **OPTIONS
    )
    return correlation, terms


def barlow_twins_direct_fwd(z0: Tensor, z1: Tensor, lambda_param: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the statistics (2, 3, D) of the columns, and the correlation matrix (D, D)."""
    z0, z1 = z0.contiguous(), z1.contiguous()
    with torch.cuda.device_of(z0):
        statistics = find_statistics(z0, z1, eps)
        correlation, terms = _correlate(z0, z1, statistics, z0.shape[0])
    redundancy, invariance = terms.sum(dim=(1, 2))
    return (invariance + lambda_param * redundancy).to(statistics.dtype), statistics, correlation


def barlow_twins_correlation(z0: Tensor, z1: Tensor, statistics: Tensor, total: int) -> Tensor:
    """Return these rows' share of the correlation matrix (D, D) of a batch of ``total`` rows."""
    with torch.cuda.device_of(z0):
        return _correlate(z0.contiguous(), z1.contiguous(), statistics.contiguous(), total)[0]


def barlow_twins_direct_bwd(
    grad: Tensor,
    z0: Tensor,
    z1: Tensor,
    statistics: Tensor,
    correlation: Tensor,
    total: int,
    lambda_param: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of both views."""
    views = z0.contiguous(), z1.contiguous()
    statistics, correlation = statistics.contiguous(), correlation.contiguous()
    count, depth = z0.shape
    results = torch.empty_like(views[0]), torch.empty_like(views[1])
    blocks = blocks_of(statistics.dtype)
    grid = triton.cdiv(count, blocks["BLOCK_N"]), triton.cdiv(depth, blocks["BLOCK_D"])
    with torch.cuda.device_of(z0):
        for own, strides in ((0, (1, depth)), (1, (depth, 1))):
            other = 1 - own
            _direct_bwd_kernel[grid](
                grad,
                views[own],
                statistics[own],
                views[other],
                statistics[other],
                correlation,
                results[own],
                count,
                depth,
                *strides,
                1 / total,
                lambda_param,
                **blocks,
                **OPTIONS,
            )
    return results


def variants() -> list[tuple[str, str, dict[str, int]]]:
    """Pointers to the dtype of the computation and of the views, and block sizes, as ``ahead`` lists them."""
    pairs = ("fp32", "fp32"), ("fp64", "fp64"), ("fp32", "bf16")
    dtypes = {"fp32": torch.float32, "fp64": torch.float64}
    return [(f"*{computed}", f"*{stored}", blocks_of(dtypes[computed])) for computed, stored in pairs]


def ahead() -> list[tuple[triton.JITFunction, dict[str, str], dict[str, int]]]:
    """Every kernel as it is launched: (kernel, signature, constants), for compilation without a device."""
    found = [
        (
            _statistics_kernel,
            {"z_ptr": "*fp16", "statistics_ptr": "*fp32", "count": "i32", "depth": "i32", "eps": "fp64"},
            STATISTICS_BLOCKS,
        )
    ]
    sizes = {"count": "i32", "depth": "i32"}
    for number, z, constants in variants():
        views = {"z0_ptr": z, "z1_ptr": z, "statistics_ptr": number}
        own = {"own_ptr": z, "own_statistics_ptr": number, "other_ptr": z, "other_statistics_ptr": number}
        results = {"correlation_ptr": number, "terms_ptr": "*fp64"}
        strides = {"correlation_depth": "i32", "correlation_column": "i32"}
        scales = {"inverse_total": "fp64", "lambda_param": "fp64"}
        of_statistics = {"z_ptr": z, "statistics_ptr": number, **sizes, "eps": "fp64"}
        of_correlation = {**views, **results, **sizes, "inverse_total": "fp64"}
        pointers = {"grad_ptr": number, **own, "correlation_ptr": number, "result_ptr": z}
        found += [
            (_statistics_kernel, of_statistics, STATISTICS_BLOCKS),
            (_correlation_kernel, of_correlation, constants),
            (_direct_bwd_kernel, {**pointers, **sizes, **strides, **scales}, constants),
        ]
    return found
