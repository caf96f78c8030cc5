"""The Oxford-IIIT Pets: 37 breeds of cats and dogs, photographs of all sizes."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslfast.data.dataset import Dataset, Skipped, printable
from sslfast.data.image import UnreadableImage, decode_indices
from sslfast.data.image_files import file_dataset
from sslfast.data.tree import FolderTree
from sslfast.errors import DataError


def _list(split: str) -> str:
    return "annotations/trainval.txt" if split == "train" else "annotations/test.txt"


def missing(folder: Path, split: str) -> list[str]:
    """Name what ``split`` needs and ``folder`` lacks."""
    return [
        *([] if os.path.isdir(folder / "images") else ["images/"]),
        *([] if os.path.isfile(folder / _list(split)) else [_list(split)]),
    ]


def read(folder: Path, split: str) -> Dataset:
    """Read "train" (the official trainval) or "test", labelled by breed.

    Raises:
        DataError: the list of images is damaged, or no image can be read.
    """
    path = folder / _list(split)
    stems, labels = [], []
    breeds: dict[int, str] = {}
    number = 0
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        for line in lines:
            number += 1
            if not line.strip() or line.startswith("#"):
                continue
            stem, label = line.split()[:2]
            stems.append(stem)
            labels.append(int(label) - 1)
            breeds[labels[-1]] = " ".join(word.title() for word in stem.rsplit("_", 1)[0].split("_"))
    except OSError as error:
        raise DataError(f"cannot read {printable(str(path))}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(
            f"{printable(str(path))}, line {number}: {printable(line)[:60]!r} is no image with its class; load it again"
        ) from error
    if sorted(breeds) != list(range(len(breeds))):
        raise DataError(f"{printable(str(path))} does not number its classes from 1 on; remove it and load again")
    tree = FolderTree(folder)
    found, skipped = tree.members(f"images/{stem}.jpg" for stem in stems)
    pairs = [(member, label) for member, label in zip(found, labels, strict=True) if member is not None]
    return file_dataset(
        "oxford-pets",
        split,
        tree,
        [member for member, _ in pairs],
        labels=[label for _, label in pairs],
        classes=[breeds[label] for label in range(len(breeds))],
        skipped=[Skipped(*one) for one in skipped],
    )


PIXEL_CLASSES = ("background", "pet")
"""Classes of a trimap's pixels, as `trimap` numbers them."""

_TRIMAP = np.array([255, 1, 0, 255], dtype=np.uint8)
"""What the file's values stand for: 1 pet, 2 background, 3 the undecided strip between them."""


def trimap_path(image: str) -> str:
    """Give the path of the trimap that belongs to an image's path."""
    path = Path(image)
    return str(path.parent.parent / "annotations" / "trimaps" / f"{path.stem}.png")


def trimap(image: str) -> NDArray[np.uint8]:
    """Read the trimap of an image: (H, W), 0 background, 1 pet, 255 undecided.

    Args:
        image: path of the image, as its id in the set.

    Raises:
        UnreadableImage: there is none, or it is damaged.
    """
    try:
        with open(trimap_path(image), "rb") as stream:
            values = decode_indices(stream)
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error
    if values.min() < 1 or values.max() > 3:
        raise UnreadableImage(f"a trimap holds 1, 2 and 3, this one {values.min()} to {values.max()}")
    return _TRIMAP[values]
