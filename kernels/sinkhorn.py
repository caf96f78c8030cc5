"""Sinkhorn-Knopp in Triton. scores are (B, K), row-major; natural logarithms. No atomics: one order of all sums."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast._reference.sinkhorn import level

NOTHING = tl.constexpr(float("-inf"))
OPTIONS = {"enable_fp_fusion": True}
"""Said aloud, because Triton is about to change the default."""


@triton.jit
def finite(highest):
    """Return a shift: 0 where there was nothing yet, so that no exponent is -infinity minus -infinity."""
    return tl.where(highest == NOTHING, 0.0, highest)


@triton.jit
def logarithm_of(total):
    """Return log(total), -infinity for 0 without a division by it."""
    return tl.where(total == 0, NOTHING, tl.log(tl.where(total == 0, 1.0, total)))


@triton.jit
def count_rows(valid_ptr, rows, HAS_VALID: tl.constexpr):
    """Return how many rows count; a number in device memory is never read on the host."""
    if HAS_VALID:
        return tl.minimum(tl.maximum(tl.load(valid_ptr), 0), rows.to(tl.int64))
    else:
        return rows.to(tl.int64)


@triton.jit
def load_exponents(
    x_ptr,
    potential_ptr,
    b,  # [BM] int64
    k,  # [BK] int64
    count,
    columns,
    scale,
    HAS_POTENTIAL: tl.constexpr,
    dtype: tl.constexpr,
):
    """Return scale x - potential, [BM, BK]; -infinity outside."""
    inside = (b < count)[:, None] & (k < columns)[None, :]
    x = tl.load(x_ptr + b[:, None] * columns + k[None, :], mask=inside, other=0.0).to(dtype)
    exponents = x * tl.full((1, 1), scale, dtype=dtype)
    if HAS_POTENTIAL:
        exponents -= tl.load(potential_ptr + k, mask=k < columns, other=0.0)[None, :]
    return tl.where(inside, exponents, NOTHING)


@triton.jit
def row_log_sums(
    x_ptr, potential_ptr, b, count, columns, scale, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, dtype: tl.constexpr
):
    """Return log sum_k e^(scale x - potential) of some rows, [BM]."""
    highest = tl.full((BLOCK_M,), NOTHING, dtype=dtype)
    total = tl.zeros((BLOCK_M,), dtype=dtype)
    for start in range(0, columns, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        exponents = load_exponents(x_ptr, potential_ptr, b, k, count, columns, scale, True, dtype)
        new_highest = tl.maximum(highest, tl.max(exponents, axis=1))
        shift = finite(new_highest)
        total = total * tl.exp(highest - shift) + tl.sum(tl.exp(exponents - shift[:, None]), axis=1)
        highest = new_highest
    return highest + logarithm_of(total)


@triton.jit
def _column_sums_kernel(
    x_ptr,
    valid_ptr,
    highest_ptr,
    sums_ptr,
    rows,
    columns,
    scale: tl.float64,
    HAS_VALID: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    dtype = sums_ptr.dtype.element_ty
    count = count_rows(valid_ptr, rows, HAS_VALID)
    block = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    highest = tl.full((BLOCK_K,), NOTHING, dtype=dtype)
    total = tl.zeros((BLOCK_K,), dtype=dtype)
    for step in range(0, STEPS):
        b = (block * STEPS + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        exponents = load_exponents(x_ptr, x_ptr, b, k, count, columns, scale, False, dtype)  # [BM, BK]
        new_highest = tl.maximum(highest, tl.max(exponents, axis=0))
        shift = finite(new_highest)
        total = total * tl.exp(highest - shift) + tl.sum(tl.exp(exponents - shift[None, :]), axis=0)
        highest = new_highest
    tl.store(highest_ptr + block * columns + k, highest, mask=k < columns)
    tl.store(sums_ptr + block * columns + k, total, mask=k < columns)


@triton.jit
def _log_sums_kernel(highest_ptr, sums_ptr, result_ptr, blocks, columns, BLOCK_K: tl.constexpr):
    dtype = sums_ptr.dtype.element_ty
    k = tl.program_id(0).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    highest = tl.full((BLOCK_K,), NOTHING, dtype=dtype)
    total = tl.zeros((BLOCK_K,), dtype=dtype)
    for block in range(0, blocks):
        place = tl.full((1,), block, dtype=tl.int64) * columns + k
        own_highest = tl.load(highest_ptr + place, mask=k < columns, other=NOTHING)
        own = tl.load(sums_ptr + place, mask=k < columns, other=0.0)
        new_highest = tl.maximum(highest, own_highest)
        shift = finite(new_highest)
        total = total * tl.exp(highest - shift) + own * tl.exp(own_highest - shift)
        highest = new_highest
    tl.store(result_ptr + k, highest + logarithm_of(total), mask=k < columns)


@triton.jit
def _probability_sums_kernel(
    x_ptr,
    valid_ptr,
    potential_ptr,
    sums_ptr,
    rows,
    columns,
    scale: tl.float64,
    HAS_VALID: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    dtype = sums_ptr.dtype.element_ty
    count = count_rows(valid_ptr, rows, HAS_VALID)
    block = tl.program_id(0).to(tl.int64)
    b = block * BLOCK_M + tl.arange(0, BLOCK_M)
    log_sums = row_log_sums(x_ptr, potential_ptr, b, count, columns, scale, BLOCK_M, BLOCK_K, dtype)
    # A row beyond the last one has no exponents: its logarithm must not be subtracted from theirs.
    log_sums = tl.where(b < count, log_sums, 0.0)
    # The rows stand in the cache now.
    for start in range(0, columns, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        exponents = load_exponents(x_ptr, potential_ptr, b, k, count, columns, scale, True, dtype)
        total = tl.sum(tl.exp(exponents - log_sums[:, None]), axis=0)  # [BK]
        tl.store(sums_ptr + block * columns + k, total, mask=k < columns)


@triton.jit
def _add_sums_kernel(
    sums_ptr, potential_ptr, result_ptr, blocks, columns, LOGARITHM: tl.constexpr, BLOCK_K: tl.constexpr
):
    k = tl.program_id(0).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_K,), dtype=sums_ptr.dtype.element_ty)
    for block in range(0, blocks):
        place = tl.full((1,), block, dtype=tl.int64) * columns + k
        total += tl.load(sums_ptr + place, mask=k < columns, other=0.0)
    if LOGARITHM:
        total = tl.load(potential_ptr + k, mask=k < columns, other=0.0) + logarithm_of(total)
    tl.store(result_ptr + k, total, mask=k < columns)


@triton.jit
def _assign_kernel(
    x_ptr,
    valid_ptr,
    potential_ptr,
    result_ptr,
    rows,
    columns,
    scale: tl.float64,
    NORMALISED: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    dtype = result_ptr.dtype.element_ty
    count = count_rows(valid_ptr, rows, HAS_VALID)
    b = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    log_sums = tl.zeros((BLOCK_M,), dtype=dtype)
    if NORMALISED:
        log_sums = row_log_sums(x_ptr, potential_ptr, b, count, columns, scale, BLOCK_M, BLOCK_K, dtype)
        log_sums = tl.where(b < count, log_sums, 0.0)
    for start in range(0, columns, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        exponents = load_exponents(x_ptr, potential_ptr, b, k, count, columns, scale, True, dtype)
        tl.store(
            result_ptr + b[:, None] * columns + k[None, :],
            tl.exp(exponents - log_sums[:, None]),
            mask=(b < rows)[:, None] & (k < columns)[None, :],
        )


COLUMN_BLOCKS = {"STEPS": 8, "BLOCK_M": 16, "BLOCK_K": 128}
"""Not tuned on a device; 128 rows are summed together."""
ROW_BLOCKS = {"BLOCK_M": 4, "BLOCK_K": 512}
"""Likewise; fewer rows would mean more partial sums, more would not stay in the cache at 65,536 prototypes."""
COMBINED = {"BLOCK_K": 128}


def log_sums_of(parts: Sequence[Tensor], valid_rows: Tensor | None, epsilon: float) -> Tensor:
    """Return log sum_b e^(x / epsilon), (K,), over the rows of all parts, (rows, K) each."""
    parts = [part.contiguous() for part in parts if part.shape[0]]
    columns, dtype = parts[0].shape[1], accumulator(parts[0])
    step = COLUMN_BLOCKS["STEPS"] * COLUMN_BLOCKS["BLOCK_M"]
    blocks = [triton.cdiv(part.shape[0], step) for part in parts]
    highest, sums = torch.empty((2, sum(blocks), columns), dtype=dtype, device=parts[0].device)
    result = torch.empty(columns, dtype=dtype, device=parts[0].device)
    with torch.cuda.device_of(result):
        first = 0
        for part, count in zip(parts, blocks, strict=True):
            _column_sums_kernel[(count, triton.cdiv(columns, COLUMN_BLOCKS["BLOCK_K"]))](
                part,
                part if valid_rows is None else valid_rows,
                highest[first:],
                sums[first:],
                part.shape[0],
                columns,
                1 / epsilon,
                HAS_VALID=valid_rows is not None,
                **COLUMN_BLOCKS,
                **OPTIONS,
            )
            first += count
        _log_sums_kernel[(triton.cdiv(columns, COMBINED["BLOCK_K"]),)](
            highest, sums, result, first, columns, **COMBINED, **OPTIONS
        )
    return result


def probability_sums_of(
    parts: Sequence[Tensor], potential: Tensor, valid_rows: Tensor | None, epsilon: float, logarithm: bool
) -> Tensor:
    """Return the soft-max of x / epsilon - potential summed over the rows of all parts; or the next potential."""
    parts = [part.contiguous() for part in parts if part.shape[0]]
    potential = potential.contiguous()
    columns = parts[0].shape[1]
    blocks = [triton.cdiv(part.shape[0], ROW_BLOCKS["BLOCK_M"]) for part in parts]
    sums = torch.empty((sum(blocks), columns), dtype=potential.dtype, device=potential.device)
    result = torch.empty_like(potential)
    with torch.cuda.device_of(result):
        first = 0
        for part, count in zip(parts, blocks, strict=True):
            _probability_sums_kernel[(count,)](
                part,
                part if valid_rows is None else valid_rows,
                potential,
                sums[first:],
                part.shape[0],
                columns,
                1 / epsilon,
                HAS_VALID=valid_rows is not None,
                **ROW_BLOCKS,
                **OPTIONS,
            )
            first += count
        _add_sums_kernel[(triton.cdiv(columns, COMBINED["BLOCK_K"]),)](
            sums, potential, result, first, columns, LOGARITHM=logarithm, **COMBINED, **OPTIONS
        )
    return result


def potential_of(
    parts: Sequence[Tensor], valid_rows: Tensor | None, rows: int | Tensor, iterations: int, epsilon: float
) -> Tensor:
    """Return what the exponents of all parts are reduced by, (K,)."""
    potential = log_sums_of(parts, valid_rows, epsilon)
    for _ in range(iterations - 1):
        potential = probability_sums_of(parts, potential, valid_rows, epsilon, logarithm=True)
    return potential if iterations else level(potential, rows).contiguous()


def accumulator(tensor: Tensor) -> torch.dtype:
    """Return the dtype of sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def sinkhorn_fwd(scores: Tensor, valid_rows: Tensor | None, iterations: int, epsilon: float) -> Tensor:
    """Return the assignments (B, K)."""
    rows = scores.shape[0] if valid_rows is None else valid_rows.clamp(0, scores.shape[0])
    potential = potential_of([scores], valid_rows, rows, iterations, epsilon)
    return sinkhorn_assign(scores, potential, valid_rows, epsilon, iterations > 0)


def sinkhorn_log_sums(scores: Tensor, valid_rows: Tensor | None, epsilon: float) -> Tensor:
    """Return log sum_b e^(x / epsilon), (K,)."""
    return log_sums_of([scores], valid_rows, epsilon)


def sinkhorn_probability_sums(scores: Tensor, potential: Tensor, valid_rows: Tensor | None, epsilon: float) -> Tensor:
    """Return the sums over rows (K,) of the soft-max of x / epsilon - potential."""
    return probability_sums_of([scores], potential, valid_rows, epsilon, logarithm=False)


def sinkhorn_assign(
    scores: Tensor, potential: Tensor, valid_rows: Tensor | None, epsilon: float, normalised: bool
) -> Tensor:
    """Return the soft-max (B, K) of x / epsilon - potential, or its exponentials themselves."""
    scores, potential = scores.contiguous(), potential.contiguous()
    rows, columns = scores.shape
    result = torch.empty((rows, columns), dtype=potential.dtype, device=scores.device)
    with torch.cuda.device_of(scores):
        _assign_kernel[(triton.cdiv(rows, ROW_BLOCKS["BLOCK_M"]),)](
            scores,
            scores if valid_rows is None else valid_rows,
            potential,
            result,
            rows,
            columns,
            1 / epsilon,
            NORMALISED=normalised,
            HAS_VALID=valid_rows is not None,
            **ROW_BLOCKS,
            **OPTIONS,
        )
    return result


def ahead() -> list[tuple[triton.JITFunction, dict[str, str], dict[str, int]]]:
    """Every kernel as it is launched: (kernel, signature, constants), for compilation without a device."""
    variants = []
    sizes = {"rows": "i32", "columns": "i32", "scale": "fp64"}
    for name, sums in (("fp32", "fp32"), ("fp64", "fp64"), ("bf16", "fp32")):
        x, total = f"*{name}", f"*{sums}"
        for valid in (False, True) if name == "fp32" else (True,):
            masked = {"x_ptr": x, "valid_ptr": "*i64" if valid else x}
            pair = {"highest_ptr": total, "sums_ptr": total}
            variants.append((_column_sums_kernel, {**masked, **pair, **sizes}, {"HAS_VALID": valid, **COLUMN_BLOCKS}))
            one = {"potential_ptr": total, "sums_ptr": total}
            variants.append((_probability_sums_kernel, {**masked, **one, **sizes}, {"HAS_VALID": valid, **ROW_BLOCKS}))
            both = {"potential_ptr": total, "result_ptr": total}
            for normalised in (False, True):
                constants = {"NORMALISED": normalised, "HAS_VALID": valid, **ROW_BLOCKS}
                variants.append((_assign_kernel, {**masked, **both, **sizes}, constants))
    for sums in ("*fp32", "*fp64"):
        counts = {"blocks": "i32", "columns": "i32"}
        three = {"highest_ptr": sums, "sums_ptr": sums, "result_ptr": sums}
        variants.append((_log_sums_kernel, {**three, **counts}, COMBINED))
        three = {"sums_ptr": sums, "potential_ptr": sums, "result_ptr": sums}
        for logarithm in (False, True):
            variants.append((_add_sums_kernel, {**three, **counts}, {"LOGARITHM": logarithm, **COMBINED}))
    half = {"x_ptr": "*fp16", "valid_ptr": "*i64", "highest_ptr": "*fp32", "sums_ptr": "*fp32"}
    variants.append((_column_sums_kernel, {**half, **sizes}, {"HAS_VALID": True, **COLUMN_BLOCKS}))
    return variants
