"""CIFAR-10 and CIFAR-100 from the official binary files; the pickled ones are never read."""

import os
from pathlib import Path

import numpy as np

from sslfast.data.dataset import Dataset, printable
from sslfast.data.memory import ArrayPixels
from sslfast.data.naming import CIFAR10, CIFAR100_COARSE, CIFAR100_FINE, image_ids
from sslfast.errors import DataError

SIDE = 32
PLANES = 3 * SIDE * SIDE


def _files(name: str, split: str) -> list[str]:
    part = split.split("-")[0]
    if name == "cifar10":
        return [f"data_batch_{i}.bin" for i in range(1, 6)] if part == "train" else ["test_batch.bin"]
    return [f"{part}.bin"]


def missing(name: str, folder: Path, split: str) -> list[str]:
    """Name the files of ``split`` that ``folder`` lacks."""
    return [file for file in _files(name, split) if not os.path.isfile(folder / file)]


def read(name: str, folder: Path, split: str) -> Dataset:
    """Read a split: records of one label byte (cifar10) or a coarse and a fine one (cifar100), then R, G and B planes.

    Args:
        name: "cifar10" or "cifar100".
        folder: cifar-10-batches-bin or cifar-100-binary.
        split: "train" or "test"; for cifar100 "train-coarse" and "test-coarse" have the 20 coarse labels.

    Raises:
        DataError: a file is damaged.
    """
    coarse = split.endswith("-coarse")
    label_bytes = 1 if name == "cifar10" else 2
    classes = CIFAR10 if name == "cifar10" else CIFAR100_COARSE if coarse else CIFAR100_FINE
    record = label_bytes + PLANES
    paths = [folder / file for file in _files(name, split)]
    parts = []
    for path in paths:
        try:
            content = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise DataError(f"cannot read {printable(str(path))}: {error.strerror}") from error
        if not len(content) or len(content) % record:
            raise DataError(
                f"{printable(str(path))} is damaged: {len(content)} bytes are no multiple of {record}, the length of "
                "an image with its label; remove it and load again"
            )
        parts.append(content.reshape(-1, record))
    count = sum(map(len, parts))
    pixels = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    start = 0
    for path, part in zip(paths, parts, strict=True):
        stop = start + len(part)
        # Cut and transposed file by file: the set is held once, not twice.
        pixels[start:stop] = part[:, label_bytes:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        labels[start:stop] = part[:, 0 if coarse else label_bytes - 1]
        if labels[start:stop].max() >= len(classes):
            raise DataError(
                f"{printable(str(path))} holds label {labels[start:stop].max()}; {name} {split} has {len(classes)} "
                "classes: it is damaged or another set"
            )
        start = stop
    return Dataset(name, split, ArrayPixels(pixels), ids=image_ids(split, count), labels=labels, classes=classes)
