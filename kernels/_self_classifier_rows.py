"""One row of all views of the Self-Classifier loss, some classes at a time, and its soft-maxes, for every kernel.

``rows`` and ``columns`` are what the kernels before have stored of the views: (kinds, V, B) and (kinds, V, K). VIEWS is
V, PADDED the next power of two.
"""

import triton
import triton.language as tl

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def load_views(views, columns_ptr, offset, k, classes, VIEWS: tl.constexpr, PADDED: tl.constexpr):
    """Some classes of one row of all views, [V, BK]; -infinity beyond the last view and class."""
    dtype = columns_ptr.dtype.element_ty
    index = tl.arange(0, PADDED)
    x = tl.full((PADDED, k.shape[0]), NOTHING, dtype=dtype)
    for view in tl.static_range(VIEWS):
        row = tl.load(views[view] + offset + k, mask=k < classes, other=NOTHING).to(dtype)
        x = tl.where(index[:, None] == view, row[None, :], x)
    return x


@triton.jit
def of_row(ptr, kind, row, count, VIEWS: tl.constexpr, PADDED: tl.constexpr):
    """One number per view, [V], of an array (kinds, V, B)."""
    index = tl.arange(0, PADDED)
    return tl.load(ptr + (kind * VIEWS + index) * count + row, mask=index < VIEWS, other=0.0)


@triton.jit
def of_columns(ptr, kind, k, classes, other, VIEWS: tl.constexpr, PADDED: tl.constexpr):
    """One number per view and class, [V, BK], of an array (kinds, V, K)."""
    index = tl.arange(0, PADDED)
    mask = (index < VIEWS)[:, None] & (k < classes)[None, :]
    return tl.load(ptr + (kind * VIEWS + index)[:, None] * classes + k[None, :], mask=mask, other=other)


@triton.jit
def column_softmax(x, columns_ptr, k, classes, column_scale, VIEWS: tl.constexpr, PADDED: tl.constexpr):
    """The soft-max along the columns, [V, BK]."""
    scale = tl.full((1, 1), column_scale, dtype=columns_ptr.dtype.element_ty)
    highest = of_columns(columns_ptr, 0, k, classes, 0.0, VIEWS, PADDED)
    return tl.exp((x - highest) * scale) / of_columns(columns_ptr, 1, k, classes, 1.0, VIEWS, PADDED)


@triton.jit
def row_softmax(x, rows_ptr, row, count, row_scale, VIEWS: tl.constexpr, PADDED: tl.constexpr):
    """The soft-max along the row, [V, BK]."""
    scale = tl.full((1, 1), row_scale, dtype=rows_ptr.dtype.element_ty)
    highest = of_row(rows_ptr, 0, row, count, VIEWS, PADDED)
    return tl.exp((x - highest[:, None]) * scale) * of_row(rows_ptr, 1, row, count, VIEWS, PADDED)[:, None]


@triton.jit
def others(value, global_views, VIEWS: tl.constexpr, PADDED: tl.constexpr):
    """Per view the sum over the views that it pairs with, [V, BK]."""
    index = tl.arange(0, PADDED)[:, None]
    value = tl.where(index < VIEWS, value, 0.0)
    of_globals = tl.sum(tl.where(index < global_views, value, 0.0), axis=0)[None, :]
    return tl.where(index < global_views, tl.sum(value, axis=0)[None, :] - value, of_globals)


@triton.jit
def log_and_share(q, columns_ptr, k, classes, factor, eps, VIEWS: tl.constexpr, PADDED: tl.constexpr):
    """log(p + eps) and p / (p + eps), [V, BK] each."""
    dtype = columns_ptr.dtype.element_ty
    least = tl.full((1, 1), eps, dtype=dtype)
    mass = of_columns(columns_ptr, 2, k, classes, 1.0, VIEWS, PADDED)
    p = tl.full((1, 1), factor, dtype=dtype) * (q / tl.where(mass < least, least, mass))
    return tl.log(p + least), p / (p + least)


@triton.jit
def scaled_pulls(columns_ptr, k, classes, eps, VIEWS: tl.constexpr, PADDED: tl.constexpr):
    """The first sum over the mass, [V, BK]; 0 where the mass is below eps."""
    least = tl.full((1, 1), eps, dtype=columns_ptr.dtype.element_ty)
    mass = of_columns(columns_ptr, 2, k, classes, 1.0, VIEWS, PADDED)
    pulls = of_columns(columns_ptr, 3, k, classes, 0.0, VIEWS, PADDED)
    return tl.where(mass < least, 0.0, pulls / tl.where(mass < least, least, mass))
