"""The Self-Classifier loss in Triton: V views (B, K), each with a pointer of its own. No atomics, no B x K temporaries.

Every kernel reads the views as tiles of all views times some classes, in fp32, bf16, fp16 or fp64; half precision is
computed in fp32. B and K are ``count`` and ``classes``; VIEWS is V, PADDED the next power of two.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels._self_classifier_rows import (
    NOTHING,
    column_softmax,
    load_views,
    log_and_share,
    of_columns,
    of_row,
    others,
    row_softmax,
    scaled_pulls,
)

OPTIONS = {"enable_fp_fusion": True}
"""Said aloud, because Triton is about to change the default."""
ROWS_PER_PART = 32
"""Rows whose sums per column one program adds up."""


@triton.jit
def _finite(highest):
    """What is subtracted from logits: their maximum so far, unless nothing but -infinity has come."""
    return tl.where(highest == NOTHING, 0.0, highest)


@triton.jit
def _rows_kernel(views, rows_ptr, count, classes, row_scale: tl.float64, VIEWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Maximum of one row of one view, and 1 over the sum of its exponentials."""
    dtype = rows_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    scale = tl.full((1,), row_scale, dtype=dtype)
    for view in tl.static_range(VIEWS):
        if tl.program_id(1) == view:
            highest = tl.full((1,), NOTHING, dtype=dtype)
            total = tl.zeros((1,), dtype=dtype)
            for start in range(0, classes, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                x = tl.load(views[view] + row * classes + k, mask=k < classes, other=NOTHING).to(dtype)
                new_highest = tl.maximum(highest, tl.max(x, axis=0))
                base = _finite(new_highest)
                total = total * tl.exp((highest - base) * scale) + tl.sum(tl.exp((x - base) * scale), axis=0)
                highest = new_highest
            one = tl.arange(0, 1)
            tl.store(rows_ptr + view * count + row + one, highest)
            tl.store(rows_ptr + (VIEWS + view) * count + row + one, 1.0 / total)


@triton.jit
def _columns_kernel(
    views,
    rows_ptr,
    columns_ptr,
    count,
    classes,
    row_scale: tl.float64,
    column_scale: tl.float64,
    VIEWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Maximum, sum of exponentials and mass of some columns of one view."""
    dtype = columns_ptr.dtype.element_ty
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    by_row = tl.full((1, 1), row_scale, dtype=dtype)
    by_column = tl.full((1,), column_scale, dtype=dtype)
    for view in tl.static_range(VIEWS):
        if tl.program_id(1) == view:
            highest = tl.full((BLOCK_K,), NOTHING, dtype=dtype)
            total = tl.zeros((BLOCK_K,), dtype=dtype)
            mass = tl.zeros((BLOCK_K,), dtype=dtype)
            for start in range(0, count, BLOCK_B):
                b = (start + tl.arange(0, BLOCK_B)).to(tl.int64)
                x = tl.load(
                    views[view] + b[:, None] * classes + k[None, :],
                    mask=(b < count)[:, None] & (k < classes)[None, :],
                    other=NOTHING,
                ).to(dtype)  # [BB, BK]
                new_highest = tl.maximum(highest, tl.max(x, axis=0))
                base = _finite(new_highest)
                total = total * tl.exp((highest - base) * by_column) + tl.sum(
                    tl.exp((x - base[None, :]) * by_column[None, :]), axis=0
                )
                highest = new_highest
                row_highest = tl.load(rows_ptr + view * count + b, mask=b < count, other=0.0)
                inverse = tl.load(rows_ptr + (VIEWS + view) * count + b, mask=b < count, other=0.0)
                mass += tl.sum(tl.exp((x - row_highest[:, None]) * by_row) * inverse[:, None], axis=0)
            tl.store(columns_ptr + view * classes + k, highest, mask=k < classes)
            tl.store(columns_ptr + (VIEWS + view) * classes + k, total, mask=k < classes)
            tl.store(columns_ptr + (2 * VIEWS + view) * classes + k, mass, mask=k < classes)


@triton.jit
def _terms_kernel(
    views,
    columns_ptr,
    rows_ptr,
    row_loss_ptr,
    count,
    classes,
    global_views,
    row_scale: tl.float64,
    column_scale: tl.float64,
    factor: tl.float64,
    eps: tl.float64,
    VIEWS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One row of all views: its share of the loss and the last three of ``rows``."""
    dtype = columns_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    least = tl.full((1,), eps, dtype=dtype)
    length = tl.zeros((PADDED,), dtype=dtype)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = load_views(views, columns_ptr, row * classes, k, classes, VIEWS, PADDED)
        length += tl.sum(column_softmax(x, columns_ptr, k, classes, column_scale, VIEWS, PADDED), axis=1)
    inverse = 1.0 / tl.where(length < least, least, length)
    along = tl.zeros((PADDED,), dtype=dtype)
    pull = tl.zeros((PADDED,), dtype=dtype)
    loss = tl.zeros((PADDED,), dtype=dtype)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = load_views(views, columns_ptr, row * classes, k, classes, VIEWS, PADDED)
        target = column_softmax(x, columns_ptr, k, classes, column_scale, VIEWS, PADDED) * inverse[:, None]
        q = row_softmax(x, rows_ptr, row, count, row_scale, VIEWS, PADDED)
        log, share = log_and_share(q, columns_ptr, k, classes, factor, eps, VIEWS, PADDED)
        others_target = others(target, global_views, VIEWS, PADDED)
        along += tl.sum(target * others(log, global_views, VIEWS, PADDED), axis=1)
        pull += tl.sum(others_target * share, axis=1)
        # Beyond the last view there is log(eps), and beyond the last class a target of 0.
        loss += tl.where(tl.arange(0, PADDED) < VIEWS, tl.sum(others_target * log, axis=1), 0.0)
    index = tl.arange(0, PADDED)
    inside = index < VIEWS
    tl.store(rows_ptr + (2 * VIEWS + index) * count + row, inverse, mask=inside)
    tl.store(rows_ptr + (3 * VIEWS + index) * count + row, tl.where(length < least, 0.0, along), mask=inside)
    tl.store(rows_ptr + (4 * VIEWS + index) * count + row, pull, mask=inside)
    tl.store(row_loss_ptr + row, tl.sum(loss, axis=0))


@triton.jit
def _sums_kernel(
    views,
    columns_ptr,
    rows_ptr,
    part_ptr,
    count,
    classes,
    global_views,
    rows_per_part,
    row_scale: tl.float64,
    column_scale: tl.float64,
    factor: tl.float64,
    eps: tl.float64,
    VIEWS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Some columns of all views: their last two sums over some rows, into a part (2, V, K) of its own."""
    dtype = columns_ptr.dtype.element_ty
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    part = tl.program_id(1).to(tl.int64)
    pulls = tl.zeros((PADDED, BLOCK_K), dtype=dtype)
    alongs = tl.zeros((PADDED, BLOCK_K), dtype=dtype)
    for row in range(part * rows_per_part, tl.minimum(count, (part + 1) * rows_per_part)):
        x = load_views(views, columns_ptr, row * classes, k, classes, VIEWS, PADDED)
        inverse = of_row(rows_ptr, 2, row, count, VIEWS, PADDED)
        target = column_softmax(x, columns_ptr, k, classes, column_scale, VIEWS, PADDED) * inverse[:, None]
        q = row_softmax(x, rows_ptr, row, count, row_scale, VIEWS, PADDED)
        log, share = log_and_share(q, columns_ptr, k, classes, factor, eps, VIEWS, PADDED)
        along = of_row(rows_ptr, 3, row, count, VIEWS, PADDED)
        pulls += others(target, global_views, VIEWS, PADDED) * share
        alongs += target * (others(log, global_views, VIEWS, PADDED) - along[:, None])
    index = tl.arange(0, PADDED)
    mask = (index < VIEWS)[:, None] & (k < classes)[None, :]
    result = part_ptr + (part * 2 * VIEWS + index)[:, None] * classes + k[None, :]
    tl.store(result, pulls, mask=mask)
    tl.store(result + VIEWS * classes, alongs, mask=mask)


@triton.jit
def _gradient_kernel(
    grad_ptr,
    views,
    columns_ptr,
    rows_ptr,
    result_ptr,
    count,
    classes,
    global_views,
    row_scale: tl.float64,
    column_scale: tl.float64,
    factor: tl.float64,
    eps: tl.float64,
    weight: tl.float64,
    VIEWS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One row of the gradient, in all views."""
    dtype = columns_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    along_row = of_row(rows_ptr, 4, row, count, VIEWS, PADDED)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = load_views(views, columns_ptr, row * classes, k, classes, VIEWS, PADDED)
        q = row_softmax(x, rows_ptr, row, count, row_scale, VIEWS, PADDED)
        along_row -= tl.sum(q * scaled_pulls(columns_ptr, k, classes, eps, VIEWS, PADDED), axis=1)
    index = tl.arange(0, PADDED)
    scale = -tl.load(grad_ptr) * tl.full((1, 1), weight, dtype=dtype)
    inverse = of_row(rows_ptr, 2, row, count, VIEWS, PADDED)
    along = of_row(rows_ptr, 3, row, count, VIEWS, PADDED)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = load_views(views, columns_ptr, row * classes, k, classes, VIEWS, PADDED)
        t = column_softmax(x, columns_ptr, k, classes, column_scale, VIEWS, PADDED)
        q = row_softmax(x, rows_ptr, row, count, row_scale, VIEWS, PADDED)
        log, share = log_and_share(q, columns_ptr, k, classes, factor, eps, VIEWS, PADDED)
        target = t * inverse[:, None]
        pulls = scaled_pulls(columns_ptr, k, classes, eps, VIEWS, PADDED)
        alongs = of_columns(columns_ptr, 4, k, classes, 0.0, VIEWS, PADDED)
        of_target = target * (others(log, global_views, VIEWS, PADDED) - along[:, None]) - t * alongs
        of_prediction = others(target, global_views, VIEWS, PADDED) * share - q * (pulls + along_row[:, None])
        result = scale * (
            of_target * tl.full((1, 1), column_scale, dtype=dtype)
            + of_prediction * tl.full((1, 1), row_scale, dtype=dtype)
        )
        tl.store(
            result_ptr + (index[:, None] * count + row) * classes + k[None, :],
            result.to(result_ptr.dtype.element_ty),
            mask=(index < VIEWS)[:, None] & (k < classes)[None, :],
        )


def _blocks(views: int, classes: int, dtype: torch.dtype) -> dict[str, int]:
    """Sizes of a tile of all views: not tuned."""
    padded = triton.next_power_of_2(views)
    numbers = 1024 if dtype == torch.float64 else 2048
    return {
        "VIEWS": views,
        "PADDED": padded,
        "BLOCK_K": min(triton.next_power_of_2(classes), max(16, numbers // padded)),
    }


def _column_blocks(views: int) -> dict[str, int]:
    return {"VIEWS": views, "BLOCK_B": 32, "BLOCK_K": 32}


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The dtype that is computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _pairs(views: int, global_views: int) -> int:
    local = max(0, views - global_views)
    return views * (views - 1) - local * (local - 1)


def self_classifier_columns(
    views: Sequence[Tensor], row_temperature: float, column_temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the soft-maxes' maxima and sums per column (3, V, K) and per row (2, V, B)."""
    x = tuple(view.contiguous() for view in views)
    count, classes = x[0].shape
    dtype = _exact(x[0].dtype)
    columns = x[0].new_empty((3, len(x), classes), dtype=dtype)
    rows = x[0].new_empty((2, len(x), count), dtype=dtype)
    blocks = _column_blocks(len(x))
    with torch.cuda.device_of(x[0]):
        _rows_kernel[(count, len(x))](
            x, rows, count, classes, 1 / row_temperature, VIEWS=len(x), BLOCK_K=_row_block(classes), **OPTIONS
        )
        _columns_kernel[(triton.cdiv(classes, blocks["BLOCK_K"]), len(x))](
            x, rows, columns, count, classes, 1 / row_temperature, 1 / column_temperature, **blocks, **OPTIONS
        )
    return columns, rows


def _row_block(classes: int) -> int:
    return int(min(1024, triton.next_power_of_2(classes)))


def self_classifier_terms(
    views: Sequence[Tensor],
    columns: Tensor,
    rows: Tensor,
    row_temperature: float,
    column_temperature: float,
    global_views: int,
    eps: float,
    batch: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return these rows' share of the loss, columns (5, V, K) and rows (5, V, B)."""
    x = tuple(view.contiguous() for view in views)
    count, classes = x[0].shape
    parts = triton.cdiv(count, ROWS_PER_PART)
    rows = torch.cat([rows, rows.new_empty((3, len(x), count))])
    columns = columns.contiguous()
    row_loss = columns.new_empty(count)
    part = columns.new_empty((parts, 2, len(x), classes))
    blocks = _blocks(len(x), classes, x[0].dtype)
    numbers = (1 / row_temperature, 1 / column_temperature, batch / classes, eps)
    global_views = min(global_views, len(x))
    with torch.cuda.device_of(x[0]):
        _terms_kernel[(count,)](x, columns, rows, row_loss, count, classes, global_views, *numbers, **blocks, **OPTIONS)
        _sums_kernel[(triton.cdiv(classes, blocks["BLOCK_K"]), parts)](
            x, columns, rows, part, count, classes, global_views, ROWS_PER_PART, *numbers, **blocks, **OPTIONS
        )
    loss = row_loss.sum() * (-1 / (_pairs(len(x), global_views) * batch))
    return loss, torch.cat([columns, part.sum(dim=0)]), rows


def self_classifier_fwd(
    views: Sequence[Tensor], row_temperature: float, column_temperature: float, global_views: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, columns (5, V, K) and rows (5, V, B), as the two halves above do."""
    columns, rows = self_classifier_columns(views, row_temperature, column_temperature)
    options = (row_temperature, column_temperature, global_views, eps, views[0].shape[0])
    return self_classifier_terms(views, columns, rows, *options)


def self_classifier_bwd(
    grad: Tensor,
    views: Sequence[Tensor],
    columns: Tensor,
    rows: Tensor,
    row_temperature: float,
    column_temperature: float,
    global_views: int,
    eps: float,
    batch: int | None,
) -> Tensor:
    """Return the gradient (V, B, K) of the loss, times ``grad``, with respect to the views."""
    x = tuple(view.contiguous() for view in views)
    columns, rows = columns.contiguous(), rows.contiguous()
    count, classes = x[0].shape
    batch = count if batch is None else batch
    result = x[0].new_empty((len(x), count, classes))
    numbers = (1 / row_temperature, 1 / column_temperature, batch / classes, eps)
    global_views = min(global_views, len(x))
    weight = 1 / (_pairs(len(x), global_views) * batch)
    blocks = _blocks(len(x), classes, x[0].dtype)
    with torch.cuda.device_of(x[0]):
        _gradient_kernel[(count,)](
            grad, x, columns, rows, result, count, classes, global_views, *numbers, weight, **blocks, **OPTIONS
        )
    return result


def ahead() -> list[tuple[triton.JITFunction, dict[str, Any], dict[str, int]]]:
    """Every kernel as it is launched: (kernel, signature, constants), for compilation without a device."""
    variants: list[tuple[triton.JITFunction, dict[str, Any], dict[str, int]]] = []
    sizes = {"count": "i32", "classes": "i32"}
    scales = {"row_scale": "fp64", "column_scale": "fp64"}
    numbers = {"global_views": "i32", **scales, "factor": "fp64", "eps": "fp64"}
    for dtype, name, views in (
        (torch.float32, "fp32", 8),
        (torch.bfloat16, "bf16", 3),
        (torch.float64, "fp64", 2),
    ):
        exact = "*fp64" if dtype == torch.float64 else "*fp32"
        x = {"views": (f"*{name}",) * views}
        blocks = _blocks(views, 1000, dtype)

        def pointers(*names: str, exact: str = exact) -> dict[str, str]:
            return {f"{one}_ptr": exact for one in names}

        variants += [
            (
                _rows_kernel,
                {**x, **pointers("rows"), **sizes, "row_scale": "fp64"},
                {"VIEWS": views, "BLOCK_K": _row_block(1000)},
            ),
            (_columns_kernel, {**x, **pointers("rows", "columns"), **sizes, **scales}, _column_blocks(views)),
            (
                _terms_kernel,
                {**x, **pointers("columns", "rows", "row_loss"), **sizes, **numbers},
                blocks,
            ),
            (
                _sums_kernel,
                {**x, **pointers("columns", "rows", "part"), **sizes, "rows_per_part": "i32", **numbers},
                blocks,
            ),
            (
                _gradient_kernel,
                {
                    **pointers("grad"),
                    **x,
                    **pointers("columns", "rows"),
                    "result_ptr": f"*{name}",
                    **sizes,
                    **numbers,
                    "weight": "fp64",
                },
                blocks,
            ),
        ]
    half = {"views": ("*fp16",) * 2, "rows_ptr": "*fp32", **sizes, "row_scale": "fp64"}
    variants.append((_rows_kernel, half, {"VIEWS": 2, "BLOCK_K": _row_block(1000)}))
    return variants
