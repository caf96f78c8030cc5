"""NT-Xent in Triton. z is (M, D), row-major, M = 2N; lse is (M,). No atomics: results do not depend on scheduling."""

import torch
import triton
import triton.language as tl
from torch import Tensor

NOTHING = tl.constexpr(float("-inf"))
OPTIONS = {"enable_fp_fusion": True}
"""Said aloud, because Triton is about to change the default."""


@triton.jit
def _score_tile(
    z_ptr,
    rows,  # [BM] int64
    columns,  # [BN] int64
    count,
    depth,
    inverse_temperature,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return z_i . z_j / temperature, [BM, BN]; -infinity for j = i and beyond the last column."""
    dtype = z_ptr.dtype.element_ty
    scores = tl.zeros((BLOCK_M, BLOCK_N), dtype=dtype)
    for start in range(0, depth, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        left = tl.load(
            z_ptr + rows[:, None] * depth + d[None, :],
            mask=(rows < count)[:, None] & (d < depth)[None, :],
            other=0.0,
        )  # [BM, BD]
        right = tl.load(
            z_ptr + columns[None, :] * depth + d[:, None],
            mask=(columns < count)[None, :] & (d < depth)[:, None],
            other=0.0,
        )  # [BD, BN]
        # "ieee": TF32 would cost the loss three decimal digits at a temperature of 0.07.
        scores = tl.dot(left, right, scores, input_precision="ieee", out_dtype=dtype)
    scores = scores * tl.full((1, 1), inverse_temperature, dtype=dtype)
    keep = (columns < count)[None, :] & (rows[:, None] != columns[None, :])
    return tl.where(keep, scores, NOTHING)


@triton.jit
def _nt_xent_fwd_kernel(
    z_ptr,
    lse_ptr,
    row_loss_ptr,
    count,
    depth,
    inverse_temperature: tl.float64,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    dtype = z_ptr.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    half = count // 2
    partner = tl.where(rows < half, rows + half, rows - half)
    highest = tl.full((BLOCK_M,), NOTHING, dtype=dtype)
    total = tl.zeros((BLOCK_M,), dtype=dtype)
    positive = tl.zeros((BLOCK_M,), dtype=dtype)
    for start in range(0, count, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N).to(tl.int64)
        scores = _score_tile(
            z_ptr, rows, columns, count, depth, inverse_temperature, BLOCK_M, BLOCK_N, BLOCK_D
        )  # [BM, BN]
        positive += tl.sum(tl.where(columns[None, :] == partner[:, None], scores, 0.0), axis=1)
        # The first tile holds a finite score for every row, so that no exponent is -infinity minus -infinity.
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        total = total * tl.exp(highest - new_highest) + tl.sum(tl.exp(scores - new_highest[:, None]), axis=1)
        highest = new_highest
    lse = highest + tl.log(total)
    tl.store(lse_ptr + rows, lse, mask=rows < count)
    tl.store(row_loss_ptr + rows, lse - positive, mask=rows < count)


@triton.jit
def _nt_xent_bwd_kernel(
    z_ptr,
    lse_ptr,
    grad_ptr,
    result_ptr,
    count,
    depth,
    inverse_temperature: tl.float64,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    dtype = z_ptr.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    half = count // 2
    partner = tl.where(rows < half, rows + half, rows - half)
    own_lse = tl.load(lse_ptr + rows, mask=rows < count, other=0.0)
    pull = tl.zeros((BLOCK_M, BLOCK_D), dtype=dtype)
    for start in range(0, count, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N).to(tl.int64)
        scores = _score_tile(
            z_ptr, rows, columns, count, depth, inverse_temperature, BLOCK_M, BLOCK_N, BLOCK_D
        )  # [BM, BN]
        # Rows beyond the last one must not overflow against a column whose lse is far below zero.
        scores = tl.where((rows < count)[:, None], scores, NOTHING)
        their_lse = tl.load(lse_ptr + columns, mask=columns < count, other=0.0)
        weights = tl.exp(scores - own_lse[:, None]) + tl.exp(scores - their_lse[None, :])
        weights = tl.where(columns[None, :] == partner[:, None], weights - 2.0, weights)
        values = tl.load(
            z_ptr + columns[:, None] * depth + d[None, :],
            mask=(columns < count)[:, None] & (d < depth)[None, :],
            other=0.0,
        )  # [BN, BD]
        pull = tl.dot(weights, values, pull, input_precision="ieee", out_dtype=dtype)
    scale = tl.load(grad_ptr) * tl.full((1, 1), inverse_temperature, dtype=dtype) / count
    tl.store(
        result_ptr + rows[:, None] * depth + d[None, :],
        pull * scale,
        mask=(rows < count)[:, None] & (d < depth)[None, :],
    )


def _blocks(dtype: torch.dtype, depth: int) -> dict[str, int]:
    """Block sizes that fit the registers of sm_80 and later; a product needs 16 along every side."""
    side = 32 if dtype == torch.float64 else 64
    return {"BLOCK_M": side, "BLOCK_N": side, "BLOCK_D": min(side, max(16, triton.next_power_of_2(depth)))}


def nt_xent_fwd(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the loss, and the log-sum-exp (M,) of each row's scores, of unit rows ``z`` (M, D)."""
    z = z.contiguous()
    count, depth = z.shape
    lse, row_loss = z.new_empty(count), z.new_empty(count)
    blocks = _blocks(z.dtype, depth)
    with torch.cuda.device_of(z):
        _nt_xent_fwd_kernel[(triton.cdiv(count, blocks["BLOCK_M"]),)](
            z, lse, row_loss, count, depth, 1 / temperature, **blocks, **OPTIONS
        )
    return row_loss.mean(), lse


def nt_xent_bwd(grad: Tensor, z: Tensor, lse: Tensor, temperature: float) -> Tensor:
    """Return the gradient (M, D) of the loss, times ``grad``, with respect to the unit rows ``z``."""
    z, lse = z.contiguous(), lse.contiguous()
    count, depth = z.shape
    result = torch.empty_like(z)
    blocks = _blocks(z.dtype, depth)
    with torch.cuda.device_of(z):
        _nt_xent_bwd_kernel[(triton.cdiv(count, blocks["BLOCK_M"]), triton.cdiv(depth, blocks["BLOCK_D"]))](
            z, lse, grad, result, count, depth, 1 / temperature, **blocks, **OPTIONS
        )
    return result


def ahead() -> list[tuple[triton.JITFunction, dict[str, str], dict[str, int]]]:
    """Every kernel as it is launched: (kernel, signature, constants), for compilation without a device."""
    variants = []
    for dtype, name in ((torch.float32, "fp32"), (torch.float64, "fp64")):
        sizes = {"count": "i32", "depth": "i32", "inverse_temperature": "fp64"}
        outputs = {"lse_ptr": f"*{name}", "row_loss_ptr": f"*{name}"}
        inputs = {"lse_ptr": f"*{name}", "grad_ptr": f"*{name}", "result_ptr": f"*{name}"}
        for depth in (8, 128):
            blocks = _blocks(dtype, depth)
            variants.append((_nt_xent_fwd_kernel, {"z_ptr": f"*{name}", **outputs, **sizes}, blocks))
            variants.append((_nt_xent_bwd_kernel, {"z_ptr": f"*{name}", **inputs, **sizes}, blocks))
    return variants
