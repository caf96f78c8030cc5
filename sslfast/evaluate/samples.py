"""Features with labels, as every protocol takes them: a feature store, or tensors in memory."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from sslfast.errors import DataError, first_line
from sslfast.features import FeatureStore

Given: TypeAlias = FeatureStore | tuple[Tensor, Tensor]
"""A store of labelled images, or features (N, D) or (views, N, D) with labels (N,)."""


class Samples:
    """Labelled features that are read part by part, in their first view.

    Args:
        given: the features.
        what: what they are called in an error: "training", "test".

    Raises:
        DataError: shapes do not fit, there are no rows or no labels, a label is negative or no whole number.
    """

    def __init__(self, given: Given, what: str) -> None:
        self.what = what
        self.store = given if isinstance(given, FeatureStore) else None
        if isinstance(given, FeatureStore):
            if given.labels is None:
                raise DataError(f"{given.path} has no labels; extract a labelled data set")
            self.tensor, labels, self.width = None, given.labels, given.features
            self.names: tuple[str, ...] | None = given.classes
        elif not isinstance(given, tuple) or len(given) != 2:
            raise DataError(
                f"{what} features must be a FeatureStore (FeatureStore.open opens one), or a tuple of features and "
                f"labels, got a {type(given).__name__}"
            )
        else:
            try:
                features, labels = (torch.as_tensor(value) for value in given)
            except (TypeError, ValueError, RuntimeError) as error:
                raise DataError(f"{what} features and labels must be numbers: {first_line(error)}") from error
            if features.dim() not in (2, 3):
                raise DataError(
                    f"{what} features must be (rows, length) or (views, rows, length), got {tuple(features.shape)}"
                )
            first = features[0] if features.dim() == 3 else features
            self.tensor, self.width, self.names = first, first.shape[1], None
            if labels.dim() != 1 or len(labels) != len(first):
                raise DataError(
                    f"there are {len(first)} rows of {what} features and labels of shape {tuple(labels.shape)}"
                )
        if not len(labels):
            raise DataError(f"there are no {what} rows")
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise DataError(f"{what} labels must be whole numbers, got {labels.dtype}")
        self.labels = labels.cpu().long()
        low = int(self.labels.min())
        if low < 0:
            raise DataError(f"{what} row {int(self.labels.argmin())} has label {low}; classes are counted from 0")

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.labels)

    def read(self, start: int, stop: int) -> Tensor:
        """Give rows ``start`` to ``stop - 1`` of the first view (n, D), float32.

        Raises:
            DataError: a number of them is NaN or infinite.
        """
        stop = min(stop, len(self))
        if self.store is not None:
            out = torch.empty(stop - start, self.width)
            self.store.gather(np.arange(start, stop), out, self.store.views[0], finite=True)
            return out
        assert self.tensor is not None
        part = self.tensor[start:stop].detach().float()
        bad = ~torch.isfinite(part).all(1)
        if bool(bad.any()):
            raise DataError(
                f"{self.what} features hold NaN or infinity, first in row {start + int(bad.nonzero()[0])}; extract anew"
            )
        return part

    def parts(self, rows: int) -> Iterator[Tensor]:
        """Give all rows in order, ``rows`` of them at a time."""
        for start in range(0, len(self), rows):
            yield self.read(start, start + rows)


def pair(train: Given, test: Given) -> tuple[Samples, Samples, int]:
    """Give training rows, test rows and the number of classes, seen to belong together.

    Stores must be of one backbone, preprocessing and list of classes, and of different images (`check_origin`);
    features in memory must not be the same ones.

    Raises:
        DataError: they do not belong together, or a test label occurs in no training row and has no name.
    """
    from sslfast.evaluate.guards import check_classes, check_origin, same_rows

    one, other = Samples(train, "training"), Samples(test, "test")
    if isinstance(train, FeatureStore) and isinstance(test, FeatureStore):
        check_origin(test, train)
        check_classes(test, train)
    if same_rows(train, test):
        raise DataError("what is trained on are the test rows themselves; give rows that training does not see")
    if one.width != other.width:
        raise DataError(
            f"training features have length {one.width}, test features {other.width}; they must come from one backbone"
        )
    names = one.names or other.names
    classes = len(names) if names is not None else int(one.labels.max()) + 1
    for samples in (one, other):
        high = int(samples.labels.max())
        if high >= classes:
            raise DataError(
                f"{samples.what} row {int(samples.labels.argmax())} has label {high}, but there are {classes} classes "
                f"(labels 0 to {classes - 1})"
            )
    if len(torch.unique(one.labels)) < 2:
        raise DataError("the training rows have one class only; a classifier needs two")
    return one, other, classes
