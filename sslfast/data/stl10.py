"""STL-10 from its binary files: 96 x 96, few labels and 100,000 images without any."""

import os
from pathlib import Path

import numpy as np

from sslfast.data.dataset import Dataset, Images, printable
from sslfast.data.memory import ArrayPixels
from sslfast.data.naming import STL10, image_ids
from sslfast.errors import DataError

SIDE = 96
RECORD = 3 * SIDE * SIDE


def _files(split: str) -> list[str]:
    return ["unlabeled_X.bin"] if split == "unlabeled" else [f"{split}_X.bin", f"{split}_y.bin"]


def missing(folder: Path, split: str) -> list[str]:
    """Name the files of ``split`` that ``folder`` lacks."""
    return [file for file in _files(split) if not os.path.isfile(folder / file)]


def read(folder: Path, split: str) -> Dataset:
    """Read "train", "test" or "unlabeled"; the last, 2.8 GB, is mapped from its file and read where it is needed.

    Raises:
        DataError: a file is damaged.
    """
    path = folder / _files(split)[0]
    try:
        length = path.stat().st_size
        if not length or length % RECORD:
            raise DataError(
                f"{printable(str(path))} is damaged: {length} bytes are no multiple of {RECORD}, the length of an "
                "image; remove it and load again"
            )
        stored: Images = np.memmap(path, dtype=np.uint8, mode="r", shape=(length // RECORD, 3, SIDE, SIDE))
        # Every plane is stored column by column.
        pixels = stored.transpose(0, 3, 2, 1)
        if split == "unlabeled":
            return Dataset("stl10", split, ArrayPixels(pixels), ids=image_ids(split, len(pixels)))
        labels = np.fromfile(folder / _files(split)[1], dtype=np.uint8).astype(np.int64) - 1
    except OSError as error:
        raise DataError(f"cannot read {printable(str(error.filename or path))}: {error.strerror}") from error
    if len(labels) != len(pixels) or labels.min() < 0 or labels.max() >= len(STL10):
        raise DataError(
            f"{printable(str(folder))}: {len(pixels)} {split} images and {len(labels)} labels "
            f"({labels.min() + 1}..{labels.max() + 1}, of 1..10) do not belong together"
            if len(labels)
            else f"{printable(str(folder / _files(split)[1]))} is empty; remove it and load again"
        )
    return Dataset(
        "stl10",
        split,
        ArrayPixels(np.ascontiguousarray(pixels)),
        ids=image_ids(split, len(pixels)),
        labels=labels,
        classes=STL10,
    )
