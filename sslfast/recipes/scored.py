"""Test rows: looked at before anything is searched, read chunk by chunk, and scored once per classifier."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sslfast.errors import DataError
from sslfast.evaluate import predict_probabilities
from sslfast.evaluate.guards import check_classes, check_origin
from sslfast.features import FeatureStore
from sslfast.search.sources import CHUNK_BYTES, described

ROWS = 4096
"""Rows are scored in multiples of this."""


class TestRows:
    """The identity view of a store whose rows nothing is chosen on.

    Making one reads every row once. Between two classifiers nothing of it is in memory.

    Args:
        store: of test features.
        train: the store that is trained and chosen on.
        classes: names of its classes.

    Raises:
        DataError: labels, classes, backbone or preprocessing do not fit, the rows are those of ``train``, or one of
            them is not finite; the message names its shard.
        IntegrityError: a block of the store is damaged.
    """

    __test__ = False  # pytest: no test

    def __init__(self, store: FeatureStore, train: FeatureStore, classes: Sequence[str]) -> None:
        check_origin(store, train)
        check_classes(store, train)
        if store.labels is None or not len(store.labels):
            raise DataError("the test features have no labels to score with")
        self.store, self.labels = store, store.labels
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(classes):
            raise DataError(f"test labels go from {low} to {high}, there are {len(classes)} classes")
        content = [*described(store), store.manifest["index"]["crc32"]]
        self.fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
        self._size = ROWS * max(1, CHUNK_BYTES // (4 * store.features * ROWS))
        for start in range(0, len(self), self._size):
            self._read(start, finite=True)

    def __len__(self) -> int:
        """Give the number of rows."""
        return len(self.labels)

    def _read(self, start: int, *, finite: bool = False) -> Tensor:
        numbers = np.arange(start, min(start + self._size, len(self)))
        out = torch.empty(len(numbers), self.store.features)
        self.store.gather(numbers, out, finite=finite)
        return out

    def accuracy(self, predictor: nn.Module) -> float:
        """Give the share of rows, in [0, 1], that a classifier is right on."""
        predictor.eval()
        right = 0
        for start in range(0, len(self), self._size):
            predicted = predict_probabilities(predictor, self._read(start)).argmax(1)
            right += int((predicted == self.labels[start : start + self._size]).sum())
        return right / len(self)
