"""The IDX files of MNIST and Fashion-MNIST, plain or gzipped."""

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslfast.data.dataset import Dataset, printable
from sslfast.data.memory import ArrayPixels
from sslfast.data.naming import image_ids
from sslfast.errors import DataError

UINT8 = 0x08
"""IDX's code of the only element type that these sets use."""

GZIP_RATIO = 1100
"""No gzip stream unpacks to more times its length (deflate's limit is 1,032)."""


def _find(folder: Path, stem: str) -> Path | None:
    for name in (f"{stem}.gz", stem, f"{stem.replace('-idx', '.idx')}"):
        if os.path.isfile(folder / name):
            return folder / name
    return None


def _stems(split: str) -> tuple[str, str]:
    prefix = "train" if split == "train" else "t10k"
    return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"


def missing(folder: Path, split: str) -> list[str]:
    """Name the files of ``split`` that ``folder`` lacks."""
    return [stem for stem in _stems(split) if _find(folder, stem) is None]


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    Args:
        path: the file, gzipped where its name ends in .gz.
        dimensions: how many the array must have.

    Raises:
        DataError: the file is damaged, or holds something else.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            header = handle.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, UINT8, dimensions)):
                raise ValueError(f"begins with {header[:4].hex(' ') or 'nothing'}, not as IDX bytes of this rank do")
            shape = tuple(int(n) for n in np.frombuffer(header, dtype=">u4", offset=4))
            count = int(np.prod([int(n) for n in shape], dtype=object))
            if count > path.stat().st_size * (GZIP_RATIO if path.suffix == ".gz" else 1):
                raise ValueError(f"claims the shape {shape}, more than it can hold")
            content = handle.read(count + 1)
        if len(content) != count:
            what = "more" if len(content) > count else f"{len(content)}"
            raise ValueError(f"claims the shape {shape}, {count} bytes, and holds {what}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{printable(str(path))} is damaged ({error}); remove it and load again, or take a sound copy"
        ) from error
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def read(name: str, classes: tuple[str, ...], folder: Path, split: str) -> Dataset:
    """Read a split from the two IDX files in ``folder``.

    Raises:
        DataError: a file is damaged, or the two do not belong together.
    """
    image_path, label_path = (_find(folder, stem) or folder / stem for stem in _stems(split))
    images = read_idx(image_path, 3)
    labels = read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{printable(str(folder))}: {len(images)} {split} images and {len(labels)} labels do not belong together"
        )
    if not len(images) or 0 in images.shape:
        raise DataError(f"{printable(str(image_path))} holds no images (shape {images.shape})")
    if labels.max() >= len(classes):
        raise DataError(f"{printable(str(label_path))} holds label {labels.max()}; {name} has {len(classes)} classes")
    return Dataset(name, split, ArrayPixels(images), ids=image_ids(split, len(images)), labels=labels, classes=classes)
