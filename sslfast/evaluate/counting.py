"""Counts of pairs of labels, and what chance alone would make of them; compiled by numba when they are first called."""

from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sslfast.errors import DataError, UsageError, first_line

Counts = NDArray[np.int64]

MOST_CELLS = 1 << 28
"""Cells of the largest table, 2 GiB of int64."""

_NEGLIGIBLE = 1e-30
"""Terms of the hypergeometric distribution below this share of the largest one are left out; they fall off faster
than geometrically."""


def label_array(labels: ArrayLike, what: str) -> Counts:
    """Give labels as an array (N,) of int64.

    Args:
        labels: whole numbers, or floating-point ones without a fraction; a tensor on any device as well.
        what: what they are called in an error.

    Raises:
        DataError: they are not one row of whole numbers, or there are none.
    """
    try:
        values = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    except ValueError as error:
        raise DataError(f"{what} must be one row of labels: {first_line(error)}") from error
    if values.ndim != 1:
        raise DataError(f"{what} must be one row of labels, got shape {values.shape}")
    if not len(values):
        raise DataError(f"{what} are empty; there is nothing to score")
    if values.dtype.kind == "f":
        whole = (values == np.rint(values)) & (np.abs(values) < 2**53)  # beyond, not every whole number is one
        if not whole.all():
            row = int(np.flatnonzero(~whole)[0])
            raise DataError(f"{what} must be whole numbers; row {row} is {values[row]}")
    elif values.dtype.kind not in "iu":
        raise DataError(f"{what} must be whole numbers, got {values.dtype}")
    return values.astype(np.int64)


def label_pair(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[Counts, Counts]:
    """Give true and predicted labels as arrays (N,) of int64.

    Raises:
        DataError: see `label_array`; or they differ in length.
    """
    true, predicted = label_array(y_true, "true labels"), label_array(y_pred, "predicted labels")
    if len(true) != len(predicted):
        raise DataError(f"there are {len(true)} true labels and {len(predicted)} predicted ones; give one for each row")
    return true, predicted


def contingency(true: Counts, predicted: Counts) -> tuple[Counts, Counts, Counts]:
    """Count rows by label and predicted label, leaving out labels that do not occur.

    Args:
        true: (N,).
        predicted: (N,).

    Returns:
        The table (R, C) of counts, the labels (R,) and the predicted labels (C,), each ascending.

    Raises:
        UsageError: the table would have more than `MOST_CELLS` cells.
    """
    rows, row = np.unique(true, return_inverse=True)
    columns, column = np.unique(predicted, return_inverse=True)
    if len(rows) * len(columns) > MOST_CELLS:
        raise UsageError(
            f"{len(rows):,} labels and {len(columns):,} clusters make a table of more than {MOST_CELLS:,} cells; "
            "are these class numbers?"
        )
    return count_pairs(row, column, len(rows), len(columns)), rows, columns


def count_pairs(row: Counts, column: Counts, rows: int, columns: int) -> Counts:
    """Count pairs of numbers: ``row`` (N,) in [0, rows) and ``column`` (N,) in [0, columns); (rows, columns), int64."""
    table: Counts = _count(row, column, rows, columns)
    return table


def expected_mutual_information(rows: Counts, columns: Counts) -> float:
    r"""Give the mean mutual information (nats) of two labellings of these class sizes that are put together blindly.

    .. math:: \sum_{ij} \sum_n P(n) \frac{n}{N} \log \frac{N n}{a_i b_j}, \quad P = \text{hypergeometric}(N, a_i, b_j)

    (Vinh, Epps and Bailey, 2010, equation 24a). P is summed outwards from its mode by the ratio of neighbouring terms
    and divided by its sum: no logarithm of a factorial of N is rounded. Pairs of equal sizes are computed once.

    Args:
        rows: sizes a (R,) of the classes; they sum to N.
        columns: sizes b (C,) of the clusters; they sum to N as well.
    """
    sizes, size_counts = np.unique(rows, return_counts=True)
    others, other_counts = np.unique(columns, return_counts=True)
    return float(_expected(sizes, size_counts, others, other_counts, int(rows.sum())))


def _compiled(function: Any) -> Any:
    # Not cached on the disk: numba's cache holds pickles, and stands beside the source or in a folder of the user's.
    # A number out of range is an IndexError, not a write beside the table.
    return numba.njit(function, nogil=True, boundscheck=True)


@_compiled
def _count(row, column, rows, columns):  # type: ignore[no-untyped-def]
    table = np.zeros((rows, columns), dtype=np.int64)
    for index in range(row.size):
        table[row[index], column[index]] += 1
    return table


@_compiled
def _expected(sizes, size_counts, others, other_counts, total):  # type: ignore[no-untyped-def]
    # Everything that is multiplied is float64: products of counts leave int64 from a few million rows on.
    number = np.float64(total)
    expected = 0.0
    for i in range(sizes.size):
        a = np.float64(sizes[i])
        for j in range(others.size):
            b = np.float64(others[j])
            low, high = max(0.0, a + b - number), min(a, b)
            mode = min(max(np.floor((a + 1.0) * (b + 1.0) / (number + 2.0)), low), high)
            scale = number / (a * b)
            mass = 1.0
            value = mode * np.log(scale * mode) if mode > 0 else 0.0
            term, n = 1.0, mode
            while n < high and term > _NEGLIGIBLE:
                term *= (a - n) * (b - n) / ((n + 1.0) * (number - a - b + n + 1.0))
                n += 1.0
                mass += term
                value += term * n * np.log(scale * n)
            term, n = 1.0, mode
            while n > low and term > _NEGLIGIBLE:
                term *= n * (number - a - b + n) / ((a - n + 1.0) * (b - n + 1.0))
                n -= 1.0
                mass += term
                if n > 0.0:
                    value += term * n * np.log(scale * n)
            expected += size_counts[i] * other_counts[j] * value / mass / number
    return expected
