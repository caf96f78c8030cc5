"""The Oxford-IIIT Pets: 37 breeds of cats and dogs, photographs of all sizes."""

import os
from pathlib import Path

from sslfast.data.dataset import Dataset, Skipped, printable
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
