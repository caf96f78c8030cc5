"""Tiles of scores, which the contrastive losses share."""

import torch
import triton
import triton.language as tl

OPTIONS = {"enable_fp_fusion": True}
"""Said aloud, because Triton is about to change the default."""


@triton.jit
def dot_tile(
    left_ptr,
    right_ptr,
    rows,  # [BM] int64
    columns,  # [BN] int64
    row_count,
    column_count,
    depth,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Return the products of ``rows`` of one matrix and ``columns`` of another, both row-major, [BM, BN]."""
    products = tl.zeros((BLOCK_M, BLOCK_N), dtype=DTYPE)
    for start in range(0, depth, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        left = tl.load(
            left_ptr + rows[:, None] * depth + d[None, :],
            mask=(rows < row_count)[:, None] & (d < depth)[None, :],
            other=0.0,
        )  # [BM, BD]
        right = tl.load(
            right_ptr + columns[None, :] * depth + d[:, None],
            mask=(columns < column_count)[None, :] & (d < depth)[:, None],
            other=0.0,
        )  # [BD, BN]
        # "ieee": TF32 would cost the loss three decimal digits at a temperature of 0.07. Half precision ignores it.
        products = tl.dot(left, right, products, input_precision="ieee", out_dtype=DTYPE)
    return products


def accumulator(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """Return what sums over numbers of a dtype are kept in, for PyTorch and for Triton."""
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def blocks(dtype: torch.dtype, depth: int) -> dict[str, int]:
    """Block sizes that fit the registers of sm_80 and later, not tuned; a product needs 16 along every side."""
    side = 32 if dtype == torch.float64 else 64
    width = max(16, triton.next_power_of_2(depth))
    return {"BLOCK_M": side, "BLOCK_N": side, "BLOCK_D": min(side, width), "BLOCK_V": min(2 * side, width)}
