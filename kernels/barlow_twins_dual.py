"""Barlow Twins in Triton by way of the N x N Gram matrices; see barlow_twins for the other route.

z0 and z1 are (N, D), row-major; statistics are (2, 3, D) in the dtype of the computation, float32 for half precision.
No atomics: results do not depend on scheduling.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.barlow_twins import OPTIONS, blocks_of, computed_dtype, find_statistics, normalised, variants


@triton.jit
def _diagonal_kernel(
    z0_ptr, z1_ptr, statistics_ptr, diagonal_ptr, count, depth, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    columns = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), dtype=tl.float64)
    for start in range(0, count, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
        a = normalised(z0_ptr, statistics_ptr, rows, columns, count, depth)
        b = normalised(z1_ptr, statistics_ptr + 3 * depth, rows, columns, count, depth)
        total += tl.sum((a * b).to(tl.float64), axis=0)
    value = (total / count).to(diagonal_ptr.dtype.element_ty)
    tl.store(diagonal_ptr + columns, value, mask=columns < depth)


@triton.jit
def _gram_tile(z_ptr, statistics_ptr, left, right, end, count, depth, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the products of normalised rows left [BN] (below ``end``) and right [BN], [BN, BN]."""
    dtype = statistics_ptr.dtype.element_ty
    tile = tl.zeros((BLOCK_N, BLOCK_N), dtype=dtype)
    # float32 sums over thousands of columns: a step starts from zero, so that errors grow with the number of steps.
    for start in range(0, depth, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D).to(tl.int64)
        a = normalised(z_ptr, statistics_ptr, left, columns, end, depth)
        b = normalised(z_ptr, statistics_ptr, right, columns, count, depth)
        tile += tl.dot(a, tl.trans(b), input_precision="ieee", out_dtype=dtype)
    return tile


@triton.jit
def _gram_kernel(
    z0_ptr,
    z1_ptr,
    statistics_ptr,
    grams_ptr,
    inner_ptr,
    first,
    own_rows,
    count,
    depth,
    SYMMETRIC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store a tile of both Gram matrices, and the sum of the products of their entries: inner (blocks, blocks)."""
    here = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    left = first + here
    right = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner_at = inner_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    if SYMMETRIC and tl.program_id(0) > tl.program_id(1):
        tl.store(inner_at, tl.full((), 0.0, dtype=tl.float64))
    else:
        end = first + own_rows
        gram0 = _gram_tile(z0_ptr, statistics_ptr, left, right, end, count, depth, BLOCK_N, BLOCK_D)
        gram1 = _gram_tile(z1_ptr, statistics_ptr + 3 * depth, left, right, end, count, depth, BLOCK_N, BLOCK_D)
        keep = (here < own_rows)[:, None] & (right < count)[None, :]
        second = grams_ptr + own_rows.to(tl.int64) * count
        place = here[:, None] * count + right[None, :]
        tl.store(grams_ptr + place, gram0, mask=keep)
        tl.store(second + place, gram1, mask=keep)
        inner = tl.sum((gram0 * gram1).to(tl.float64))
        if SYMMETRIC and tl.program_id(0) < tl.program_id(1):
            mirrored = here[:, None] + right[None, :] * count
            tl.store(grams_ptr + mirrored, gram0, mask=keep)
            tl.store(second + mirrored, gram1, mask=keep)
            inner = 2.0 * inner
        tl.store(inner_at, inner)


@triton.jit
def _dual_pull_kernel(
    own_ptr,
    own_statistics_ptr,
    other_ptr,
    other_statistics_ptr,
    gram_ptr,
    diagonal_ptr,
    pull_ptr,
    along_ptr,
    first,
    own_rows,
    count,
    depth,
    lambda_param: tl.float64,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store the gradient of the normalised view, and its product with the view per block of rows: along (blocks, D)."""
    dtype = own_statistics_ptr.dtype.element_ty
    here = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    pull = tl.zeros((BLOCK_N, BLOCK_D), dtype=dtype)
    for start in range(0, count, BLOCK_N):
        k = start + tl.arange(0, BLOCK_N).to(tl.int64)
        keep = (here < own_rows)[:, None] & (k < count)[None, :]
        gram = tl.load(gram_ptr + here[:, None] * count + k[None, :], mask=keep, other=0.0)
        rows = normalised(own_ptr, own_statistics_ptr, k, columns, count, depth)
        pull = tl.dot(gram, rows, pull, input_precision="ieee", out_dtype=dtype)
    end = first + own_rows
    own = normalised(own_ptr, own_statistics_ptr, first + here, columns, end, depth)
    other = normalised(other_ptr, other_statistics_ptr, first + here, columns, end, depth)
    inside = columns < depth
    c = tl.load(diagonal_ptr + columns, mask=inside, other=0.0)
    weight = (2.0 * (c - 1.0) - tl.full((1,), 2.0 * lambda_param, dtype=dtype) * c) / count
    scale = tl.full((1, 1), 2.0 * lambda_param, dtype=dtype) / count / count
    pull = pull * scale + other * weight[None, :]
    keep = (here < own_rows)[:, None] & inside[None, :]
    tl.store(pull_ptr + here[:, None] * depth + columns[None, :], pull, mask=keep)
    along = tl.sum(own * pull, axis=0)
    tl.store(along_ptr + tl.program_id(0).to(tl.int64) * depth + columns, along, mask=inside)


@triton.jit
def _dual_finish_kernel(
    grad_ptr,
    own_ptr,
    own_statistics_ptr,
    pull_ptr,
    along_ptr,
    result_ptr,
    first,
    own_rows,
    count,
    depth,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    dtype = own_statistics_ptr.dtype.element_ty
    here = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < depth
    keep = (here < own_rows)[:, None] & inside[None, :]
    place = here[:, None] * depth + columns[None, :]
    own = normalised(own_ptr, own_statistics_ptr, first + here, columns, first + own_rows, depth)
    along = tl.load(along_ptr + columns, mask=inside, other=0.0) / count
    inverse = tl.load(own_statistics_ptr + 2 * depth + columns, mask=inside, other=0.0)
    pull = tl.load(pull_ptr + place, mask=keep, other=0.0)
    value = (pull - own * along[None, :]) * (inverse * tl.load(grad_ptr).to(dtype))[None, :]
    tl.store(result_ptr + place, value.to(result_ptr.dtype.element_ty), mask=keep)


def barlow_twins_dual_fwd(
    z0: Tensor, z1: Tensor, first: int, rows: int, lambda_param: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the share in the loss of ``rows`` rows from ``first``, statistics, diagonal of C, and their Gram rows."""
    z0, z1 = z0.contiguous(), z1.contiguous()
    count, depth = z0.shape
    blocks = blocks_of(computed_dtype(z0.dtype))
    grid = triton.cdiv(rows, blocks["BLOCK_N"]), triton.cdiv(count, blocks["BLOCK_N"])
    with torch.cuda.device_of(z0):
        statistics = find_statistics(z0, z1, eps)
        diagonal = statistics.new_empty(depth)
        grams = statistics.new_empty((2, rows, count))
        inner = statistics.new_empty(grid, dtype=torch.float64)
        _diagonal_kernel[(triton.cdiv(depth, blocks["BLOCK_D"]),)](
            z0, z1, statistics, diagonal, count, depth, **blocks, **OPTIONS
        )
        _gram_kernel[grid](
            z0, z1, statistics, grams, inner, first, rows, count, depth, SYMMETRIC=rows == count, **blocks, **OPTIONS
        )
    wide = diagonal.double()
    own = ((wide - 1).square() - lambda_param * wide.square()).sum() * (rows / count)
    loss = own + lambda_param / count**2 * inner.sum()
    return loss.to(statistics.dtype), statistics, diagonal, grams


def barlow_twins_dual_bwd(
    grad: Tensor,
    z0: Tensor,
    z1: Tensor,
    statistics: Tensor,
    diagonal: Tensor,
    grams: Tensor,
    first: int,
    lambda_param: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of those rows of both views, and their sums along the normalised columns, (2, D)."""
    views = z0.contiguous(), z1.contiguous()
    statistics, diagonal, grams = statistics.contiguous(), diagonal.contiguous(), grams.contiguous()
    rows, (count, depth) = grams.shape[1], z0.shape
    blocks = blocks_of(statistics.dtype)
    grid = triton.cdiv(rows, blocks["BLOCK_N"]), triton.cdiv(depth, blocks["BLOCK_D"])
    results = views[0].new_empty((rows, depth)), views[1].new_empty((rows, depth))
    alongs = []
    with torch.cuda.device_of(z0):
        for own in range(2):
            other = 1 - own
            pull = statistics.new_empty((rows, depth))
            parts = statistics.new_empty((grid[0], depth))
            _dual_pull_kernel[grid](
                views[own],
                statistics[own],
                views[other],
                statistics[other],
                grams[other],
                diagonal,
                pull,
                parts,
                first,
                rows,
                count,
                depth,
                lambda_param,
                **blocks,
                **OPTIONS,
            )
            alongs.append(parts.sum(dim=0))
            _dual_finish_kernel[grid](
                grad,
                views[own],
                statistics[own],
                pull,
                alongs[own],
                results[own],
                first,
                rows,
                count,
                depth,
                **blocks,
                **OPTIONS,
            )
    return *results, torch.stack(alongs)


def ahead() -> list[tuple[triton.JITFunction, dict[str, str], dict[str, int]]]:
    """Every kernel as it is launched: (kernel, signature, constants), for compilation without a device."""
    found = []
    sizes = {"count": "i32", "depth": "i32"}
    part = {"first": "i32", "own_rows": "i32", **sizes}
    for number, z, constants in variants():
        views = {"z0_ptr": z, "z1_ptr": z, "statistics_ptr": number}
        own = {"own_ptr": z, "own_statistics_ptr": number}
        other = {"other_ptr": z, "other_statistics_ptr": number}
        of_gram = {**views, "grams_ptr": number, "inner_ptr": "*fp64", **part}
        sums = {"pull_ptr": number, "along_ptr": number}
        of_pull = {**own, **other, "gram_ptr": number, "diagonal_ptr": number, **sums, **part, "lambda_param": "fp64"}
        found += [
            (_diagonal_kernel, {**views, "diagonal_ptr": number, **sizes}, constants),
            (_gram_kernel, of_gram, {"SYMMETRIC": True, **constants}),
            (_dual_pull_kernel, of_pull, constants),
            (_dual_finish_kernel, {"grad_ptr": number, **own, **sums, "result_ptr": z, **part}, constants),
        ]
        if z == "*fp32":
            half = {"own_ptr": "*fp16", "own_statistics_ptr": number, **sums, "result_ptr": "*fp16"}
            found += [
                (_gram_kernel, of_gram, {"SYMMETRIC": False, **constants}),
                (_dual_finish_kernel, {"grad_ptr": number, **half, **part}, constants),
            ]
    return found
