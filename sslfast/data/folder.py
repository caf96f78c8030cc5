"""A person's own images: folders of classes, and trees without labels."""

import difflib
import os
from pathlib import Path

import numpy as np

from sslfast.data.dataset import Dataset, Skipped, printable
from sslfast.data.image_files import file_dataset
from sslfast.data.tree import SPLIT_FOLDERS, FolderTree, ZipTree, open_tree
from sslfast.errors import DataError, UsageError

SYNONYMS = {"val": ("val", "valid", "validation"), "test": ("test", "val", "valid", "validation"), "train": ("train",)}
"""Folders that serve as a split, first to last: a tree without test/ is tested on val/, as torchvision's users do."""


def splits(path: Path | str) -> tuple[str, ...]:
    """List the splits that `read_classes` finds in a tree.

    Raises:
        DataError: it is no folder and no zip archive.
    """
    folders = open_tree(path).folders()
    found = [split for split in ("train", "val") if any(name in folders for name in SYNONYMS[split])]
    return (*found, "test") if "test" in folders else tuple(found)


def _split_folder(tree: FolderTree | ZipTree, name: str, split: str) -> str:
    folders = tree.folders()
    for folder in SYNONYMS.get(split, (split,)):
        if folder in folders:
            return folder
    if not any(folder in folders for folder in SPLIT_FOLDERS):
        shown = ", ".join(printable(folder) for folder in folders[:4]) or "no folders"
        raise DataError(
            f"{printable(name)} has no train/ with one folder per class (it has: {shown}); "
            "move the class folders into train/ and val/, or use folder:PATH for images without labels"
        )
    near = difflib.get_close_matches(split, folders, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"{printable(name)} has no split {split!r}; it has: {', '.join(map(printable, folders))}{hint}")


def read_classes(name: str, path: Path | str, split: str) -> Dataset:
    """Read a split of a tree PATH/<split>/<class>/...; the classes are its folders, sorted, as torchvision has it.

    A class folder without a usable image keeps its place among the classes and is listed in ``skipped``, so that labels
    of different splits mean the same.

    Args:
        name: of the data set, "imagefolder:PATH".
        path: a folder or a zip archive.
        split: "train", "val" or "test" (a tree without test/ gives val/).

    Raises:
        DataError: it is no such tree, or has no image that can be read.
        UsageError: it does not have this split.
    """
    tree = open_tree(path)
    folder = _split_folder(tree, name, split)
    listing = tree.listing(folder)
    classes = listing.folders
    if not classes:
        raise DataError(
            f"{printable(tree.full_path(folder))} has no class folders; put every image into a folder of its class"
        )
    label_of = {label: index for index, label in enumerate(classes)}
    members, labels, skipped = [], [], list(listing.skipped)
    for member in listing.members:
        inside = member.path[len(folder) + 1 :].split("/")
        if len(inside) < 2:
            skipped.append(Skipped(tree.full_path(member.path), "not in a class folder"))
            continue
        members.append(member)
        labels.append(label_of[inside[0]])
    dataset = file_dataset(name, split, tree, members, labels=labels, classes=classes, skipped=skipped)
    counts = np.bincount(np.asarray(dataset.labels), minlength=len(classes))
    empty = [
        Skipped(tree.full_path(f"{folder}/{label}"), "class folder without a usable image")
        for label, count in zip(classes, counts, strict=True)
        if not count
    ]
    dataset.skipped += tuple(empty)
    return dataset


def read_tree(name: str, path: Path | str, split: str) -> Dataset:
    """Read all images of a tree (a folder, a zip archive or a single image), without labels; any split is all of it.

    Raises:
        DataError: it does not exist, or has no image that can be read.
    """
    target = Path(path).expanduser()
    if os.path.isfile(target) and target.suffix.lower() != ".zip":
        single = FolderTree(target.parent)
        members, skipped = single.members([target.name])
        found = [member for member in members if member is not None]
        return file_dataset(name, split, single, found, skipped=skipped)
    tree = open_tree(target)
    listing = tree.listing()
    return file_dataset(name, split, tree, listing.members, skipped=listing.skipped)
