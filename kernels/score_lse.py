"""Log-sum-exp of scores in Triton: rows (n, D) and columns (m, D), row-major. No atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels._scores import OPTIONS, accumulator, blocks, dot_tile

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def _add_to(highest, total, scores):
    """Return the running maximum [BM] and the running sum [BM] of exponentials, after another tile [BM, BN]."""
    new_highest = tl.maximum(highest, tl.max(scores, axis=1))
    # A row that has met nothing yet: -infinity minus -infinity would be NaN.
    shift = tl.where(new_highest == NOTHING, 0.0, new_highest)
    total = total * tl.exp(highest - shift) + tl.sum(tl.exp(scores - shift[:, None]), axis=1)
    return new_highest, total


@triton.jit
def _lse(highest, total):
    """Return the log-sum-exp, -infinity for a sum without terms."""
    return tl.where(total == 0.0, NOTHING, highest + tl.log(tl.where(total == 0.0, 1.0, total)))


@triton.jit
def _share(scores, lse, meet):
    """Return exp(scores - lse), 1 at most, where a pair meets, else 0; nobody meets where lse is -infinity."""
    exponent = scores - tl.where(lse == NOTHING, 0.0, lse)
    # Above 0 only by rounding, which at 1e8 would be an e^8 of its own. NaN stays.
    return tl.exp(tl.where(meet, tl.where(exponent > 0, 0.0, exponent), NOTHING))


@triton.jit
def _score_lse_fwd_kernel(
    rows_ptr,
    columns_ptr,
    row_label_ptr,
    column_label_ptr,
    lse_all_ptr,
    lse_equal_ptr,
    row_count,
    column_count,
    depth,
    diagonal: tl.int64,
    inverse_temperature: tl.float64,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
    LABELS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    factor = tl.full((1, 1), inverse_temperature, dtype=DTYPE)
    highest = tl.full((BLOCK_M,), NOTHING, dtype=DTYPE)
    total = tl.zeros((BLOCK_M,), dtype=DTYPE)
    highest_equal = highest
    total_equal = total
    if LABELS:
        own = tl.load(row_label_ptr + rows, mask=rows < row_count, other=0)
    for start in range(0, column_count, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N).to(tl.int64)
        scores = factor * dot_tile(
            rows_ptr, columns_ptr, rows, columns, row_count, column_count, depth, BLOCK_M, BLOCK_N, BLOCK_D, DTYPE
        )  # [BM, BN]
        meet = (columns < column_count)[None, :] & ((rows + diagonal)[:, None] != columns[None, :])
        scores = tl.where(meet, scores, NOTHING)
        highest, total = _add_to(highest, total, scores)
        if LABELS:
            theirs = tl.load(column_label_ptr + columns, mask=columns < column_count, other=0)
            equal = tl.where(own[:, None] == theirs[None, :], scores, NOTHING)
            highest_equal, total_equal = _add_to(highest_equal, total_equal, equal)
    tl.store(lse_all_ptr + rows, _lse(highest, total), mask=rows < row_count)
    tl.store(lse_equal_ptr + rows, _lse(highest_equal, total_equal), mask=rows < row_count)


@triton.jit
def _score_lse_bwd_kernel(
    rows_ptr,
    columns_ptr,
    row_label_ptr,
    column_label_ptr,
    row_side_ptr,  # (4, n): grad_all, grad_equal, lse_all, lse_equal
    column_side_ptr,  # (4, m)
    result_ptr,
    row_count,
    column_count,
    depth,
    diagonal: tl.int64,
    inverse_temperature: tl.float64,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    DTYPE: tl.constexpr,
    LABELS: tl.constexpr,
    ROW_SIDE: tl.constexpr,
    COLUMN_SIDE: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    row_used = rows < row_count
    factor = tl.full((1, 1), inverse_temperature, dtype=DTYPE)
    pull = tl.zeros((BLOCK_M, BLOCK_V), dtype=DTYPE)
    if LABELS:
        own = tl.load(row_label_ptr + rows, mask=row_used, other=0)
    for start in range(0, column_count, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N).to(tl.int64)
        column_used = columns < column_count
        scores = factor * dot_tile(
            rows_ptr, columns_ptr, rows, columns, row_count, column_count, depth, BLOCK_M, BLOCK_N, BLOCK_D, DTYPE
        )  # [BM, BN]
        meet = column_used[None, :] & row_used[:, None] & ((rows + diagonal)[:, None] != columns[None, :])
        scores = tl.where(meet, scores, NOTHING)
        weights = tl.zeros((BLOCK_M, BLOCK_N), dtype=DTYPE)
        if LABELS:
            theirs = tl.load(column_label_ptr + columns, mask=column_used, other=0)
            equal = (own[:, None] == theirs[None, :]) & meet
        if ROW_SIDE:
            grad_all = tl.load(row_side_ptr + rows, mask=row_used, other=0.0)
            lse_all = tl.load(row_side_ptr + 2 * row_count + rows, mask=row_used, other=0.0)
            weights += grad_all[:, None] * _share(scores, lse_all[:, None], meet)
            if LABELS:
                grad_equal = tl.load(row_side_ptr + row_count + rows, mask=row_used, other=0.0)
                lse_equal = tl.load(row_side_ptr + 3 * row_count + rows, mask=row_used, other=0.0)
                weights += grad_equal[:, None] * _share(scores, lse_equal[:, None], equal)
        if COLUMN_SIDE:
            grad_all = tl.load(column_side_ptr + columns, mask=column_used, other=0.0)
            lse_all = tl.load(column_side_ptr + 2 * column_count + columns, mask=column_used, other=0.0)
            weights += grad_all[None, :] * _share(scores, lse_all[None, :], meet)
            if LABELS:
                grad_equal = tl.load(column_side_ptr + column_count + columns, mask=column_used, other=0.0)
                lse_equal = tl.load(column_side_ptr + 3 * column_count + columns, mask=column_used, other=0.0)
                weights += grad_equal[None, :] * _share(scores, lse_equal[None, :], equal)
        values = tl.load(
            columns_ptr + columns[:, None] * depth + d[None, :],
            mask=column_used[:, None] & (d < depth)[None, :],
            other=0.0,
        )  # [BN, BV]
        pull = tl.dot(weights.to(values.dtype), values, pull, input_precision="ieee", out_dtype=DTYPE)
    tl.store(
        result_ptr + rows[:, None] * depth + d[None, :],
        pull * factor,
        mask=row_used[:, None] & (d < depth)[None, :],
    )


def score_lse_fwd(
    rows: Tensor,
    columns: Tensor,
    row_label: Tensor | None,
    column_label: Tensor | None,
    diagonal: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp per row over all columns that it meets, and over those of its label."""
    rows, columns = rows.contiguous(), columns.contiguous()
    lse_all, lse_equal = rows.new_empty(len(rows)), rows.new_empty(len(rows))
    sizes = blocks(rows.dtype, rows.shape[1])
    del sizes["BLOCK_V"]
    with torch.cuda.device_of(rows):
        _score_lse_fwd_kernel[(triton.cdiv(len(rows), sizes["BLOCK_M"]),)](
            *(rows, columns, *_labels(rows, row_label, column_label), lse_all, lse_equal),
            *(len(rows), len(columns), rows.shape[1], diagonal, 1 / temperature),
            **sizes,
            DTYPE=accumulator(rows.dtype)[1],
            LABELS=row_label is not None,
            **OPTIONS,
        )
    return lse_all, lse_equal


def score_lse_bwd(
    rows: Tensor,
    columns: Tensor,
    row_label: Tensor | None,
    column_label: Tensor | None,
    diagonal: int,
    temperature: float,
    row_side: Tensor | None,
    column_side: Tensor | None,
) -> Tensor:
    """Return the gradient of the rows."""
    rows, columns = rows.contiguous(), columns.contiguous()
    result = torch.empty_like(rows)
    sizes = blocks(rows.dtype, rows.shape[1])
    grid = (triton.cdiv(len(rows), sizes["BLOCK_M"]), triton.cdiv(rows.shape[1], sizes["BLOCK_V"]))
    with torch.cuda.device_of(rows):
        _score_lse_bwd_kernel[grid](
            *(rows, columns, *_labels(rows, row_label, column_label)),
            *(rows if side is None else side.contiguous() for side in (row_side, column_side)),
            *(result, len(rows), len(columns), rows.shape[1], diagonal, 1 / temperature),
            **sizes,
            DTYPE=accumulator(rows.dtype)[1],
            LABELS=row_label is not None,
            ROW_SIDE=row_side is not None,
            COLUMN_SIDE=column_side is not None,
            **OPTIONS,
        )
    return result


def score_lse_bank_bwd(
    rows: Tensor, columns: Tensor, temperature: float, grad: Tensor, lse: Tensor, of_columns: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the rows and, where wanted (else (0, D)), of the columns."""
    side = torch.stack([grad, torch.zeros_like(grad), lse, lse])
    nowhere = len(columns)
    of_rows = score_lse_bwd(rows, columns, None, None, nowhere, temperature, side, None)
    if not of_columns:
        return of_rows, columns.new_empty((0, columns.shape[1]))
    return of_rows, score_lse_bwd(columns, rows, None, None, -nowhere, temperature, None, side)


def _labels(rows: Tensor, row_label: Tensor | None, column_label: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both labels, or any two tensors where there are none: the kernel does not read them."""
    if row_label is None or column_label is None:
        return rows, rows
    return row_label.contiguous(), column_label.contiguous()


def ahead() -> list[tuple[triton.JITFunction, dict[str, str], dict[str, object]]]:
    """Every kernel as it is launched: (kernel, signature, constants), for compilation without a device."""
    variants: list[tuple[triton.JITFunction, dict[str, str], dict[str, object]]] = []
    both, by_row, by_column = (True, True), (True, False), (False, True)
    for dtype, name, depth, labels, sides_present in (
        # Small tiles take a fifth of the time to compile, and have every branch.
        (torch.float32, "fp32", 8, True, (both, by_row, by_column)),
        (torch.float32, "fp32", 8, False, (both, by_row, by_column)),
        (torch.float32, "fp32", 128, True, (both,)),
        (torch.float64, "fp64", 128, True, (both,)),
        (torch.float64, "fp64", 128, False, (by_row,)),
    ):
        kept = accumulator(dtype)[1]
        matrices = {"rows_ptr": f"*{name}", "columns_ptr": f"*{name}"}
        sizes = {
            **{"row_count": "i32", "column_count": "i32", "depth": "i32"},
            **{"diagonal": "i64", "inverse_temperature": "fp64"},
        }
        label = "*i64" if labels else f"*{name}"
        marks = {"row_label_ptr": label, "column_label_ptr": label}
        block = {**blocks(dtype, depth), "DTYPE": kept, "LABELS": labels}
        forward = {key: value for key, value in block.items() if key != "BLOCK_V"}
        sums = {"lse_all_ptr": f"*{name}", "lse_equal_ptr": f"*{name}"}
        sides = {"row_side_ptr": f"*{name}", "column_side_ptr": f"*{name}", "result_ptr": f"*{name}"}
        variants.append((_score_lse_fwd_kernel, {**matrices, **marks, **sums, **sizes}, forward))
        for row_side, column_side in sides_present:
            constants = {**block, "ROW_SIDE": row_side, "COLUMN_SIDE": column_side}
            variants.append((_score_lse_bwd_kernel, {**matrices, **marks, **sides, **sizes}, constants))
    return variants
