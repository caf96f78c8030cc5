"""Looks at features and labels before anything is trained on them."""

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from sslfast.errors import DataError

Labelled = tuple[Tensor, Tensor]
"""Features, float32, (N, D) or (views, N, D), and labels, int64, (N,)."""


def checked(what: str, rows: Labelled, *, views: bool) -> Labelled:
    """Give rows as contiguous float32 and int64 on the CPU.

    Raises:
        DataError: they cannot be trained on; it names the row.
    """
    features, labels = (value if isinstance(value, Tensor) else torch.as_tensor(value) for value in rows)
    if features.dim() not in ((2, 3) if views else (2,)):
        shape = "(rows, length) or (views, rows, length)" if views else "(rows, length)"
        raise DataError(f"{what} features must be of shape {shape}, got {tuple(features.shape)}")
    if labels.dim() != 1 or len(labels) != features.shape[-2]:
        raise DataError(
            f"{what} labels do not match the features: {features.shape[-2]} rows of features, "
            f"labels of shape {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"{what} labels must be whole numbers, got {labels.dtype}")
    if not len(labels):
        raise DataError(f"there are no {what} rows")
    features = features.detach().cpu().float()
    # A sum is finite where all its terms are, except where it overflows: then the slow look decides.
    if not math.isfinite(float(features.sum())):
        bad = ~torch.isfinite(features).all(-1)
        if bool(bad.any()):
            row = int(bad.nonzero()[0][-1])
            raise DataError(
                f"{what} features have {int(bad.sum())} rows with NaN or infinity, the first is row {row}; extract anew"
            )
    return features.contiguous(), labels.detach().cpu().long().contiguous()


def check_widths(train: Labelled, val: Labelled) -> None:
    """Refuse features of different lengths.

    Raises:
        DataError: training and validation features differ in length.
    """
    if train[0].shape[-1] != val[0].shape[-1]:
        raise DataError(
            f"training features have length {train[0].shape[-1]}, validation features {val[0].shape[-1]}; "
            "they must come from one backbone"
        )


def check_labels(train: Tensor, val: Tensor, classes: tuple[str, ...]) -> None:
    """Refuse labels that no classifier can learn.

    Raises:
        DataError: a label is out of range, a class is absent, or there is one class only.
    """
    for what, labels in (("training", train), ("validation", val)):
        bad = (labels < 0) | (labels >= len(classes))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise DataError(
                f"{what} row {row} has label {int(labels[row])}, but there are {len(classes)} classes "
                f"(labels 0 to {len(classes) - 1})"
            )
    counts = torch.bincount(train, minlength=len(classes))
    if bool((counts == 0).any()):
        absent = classes[int((counts == 0).nonzero()[0])]
        raise DataError(f"class {absent!r} has no training row; a head cannot learn it")
    if len(classes) < 2:
        raise DataError("there is one class only; a classifier needs two")


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Hash tensors: the same hash, the same numbers."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()[:32]
