"""Test rows: looked at before anything is searched, read chunk by chunk, and scored once per classifier."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sslfast.errors import DataError
from sslfast.evaluate import predict_probabilities
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
        _check_origin(store, train)
        _check_classes(store, train)
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


def _check_origin(store: FeatureStore, train: FeatureStore) -> None:
    """Refuse features of another backbone, and the training rows themselves."""
    one, other = train.manifest, store.manifest
    if one["preprocess"] != other["preprocess"]:
        raise DataError("the test features were extracted with another preprocess than the training features")
    if one["backbone"]["fingerprint"] != other["backbone"]["fingerprint"]:
        raise DataError("the test features were extracted with another backbone than the training features")
    same_images = one["dataset"]["fingerprint"] == other["dataset"]["fingerprint"]
    if same_images or [shard["crc32"] for shard in one["shards"]] == [shard["crc32"] for shard in other["shards"]]:
        raise DataError(
            f"{store.path} holds the same {'images' if same_images else 'features'} as {train.path} "
            f"({other['dataset']['name']}, {other['dataset']['split']}): rows that were chosen on are no test"
        )


def _check_classes(store: FeatureStore, train: FeatureStore) -> None:
    """Refuse labels that stand for other classes than in training."""
    one, other = train.classes, store.classes
    if one == other:
        return
    if one is None or other is None:
        unnamed = "training" if one is None else "test"
        raise DataError(
            f"the {unnamed} features have no names of classes, the others have: labels may not mean the same"
        )
    if sorted(one) == sorted(other):
        raise DataError("the test features' classes are those of the training features in another order")
    for what, names in (
        ("the test features lack class", [name for name in one if name not in other]),
        ("the training features lack class", [name for name in other if name not in one]),
    ):
        if names:
            raise DataError(
                f"{what} {names[0]!r}: {len(other)} classes against {len(one)}, so that labels do not mean the same; "
                "extract both with the same classes"
            )
    raise DataError("the test features' classes are not those of the training features")
