"""Tiny ImageNet: 200 classes of ImageNet, 64 x 64, from its folder or straight from its zip archive."""

import os
from collections import Counter
from pathlib import Path

from sslfast.data.dataset import Dataset, Skipped, printable
from sslfast.data.image import UnreadableImage
from sslfast.data.image_files import file_dataset
from sslfast.data.tree import FolderTree, ZipTree, open_tree
from sslfast.errors import DataError

SIZE = (64, 64)
FOLDERS = {"train": "train", "val": "val", "unlabeled": "test"}


def missing(top: Path, split: str) -> list[str]:
    """Name what ``split`` needs and ``top``, a folder or the zip archive, lacks."""
    if top.suffix == ".zip":
        return [] if os.path.isfile(top) else [top.name]
    needed = ["wnids.txt", *(["val/val_annotations.txt"] if split == "val" else []), FOLDERS[split]]
    return [name for name in needed if not os.path.exists(top / name)]


def _lines(tree: FolderTree | ZipTree, path: str) -> list[list[str]]:
    try:
        with tree.read(path) as stream:
            text = stream.read().decode("utf-8", "surrogateescape")
    except (OSError, UnreadableImage) as error:
        raise DataError(f"cannot read {printable(tree.full_path(path))}: {error}; load the set again") from error
    return [line.split("\t") for line in text.splitlines() if line.strip()]


def read(top: Path, split: str) -> Dataset:
    """Read "train", "val" (labelled) or "unlabeled" (the official test images, whose labels were never published).

    Raises:
        DataError: the set is damaged.
    """
    tree = open_tree(top)
    codes = sorted(fields[0] for fields in _lines(tree, "wnids.txt"))
    listing = tree.listing(FOLDERS[split])
    if split == "unlabeled":
        return file_dataset("tiny-imagenet", split, tree, listing.members, skipped=listing.skipped, size=SIZE)
    words = {fields[0]: fields[1].split(",")[0] for fields in _lines(tree, "words.txt") if len(fields) > 1}
    called = [words.get(code, code) for code in codes]
    used = Counter(called)
    # Two meanings of a word, a crane say, are told apart by their codes.
    classes = [word if used[word] == 1 else f"{word} ({code})" for word, code in zip(called, codes, strict=True)]
    label_of = {code: label for label, code in enumerate(codes)}
    if split == "train":
        code_of = {member.path: member.path.split("/")[1] for member in listing.members}
    else:
        annotations = _lines(tree, "val/val_annotations.txt")
        code_of = {f"val/images/{fields[0]}": fields[1] for fields in annotations if len(fields) > 1}
    members, labels, skipped = [], [], list(listing.skipped)
    for member in listing.members:
        label = label_of.get(code_of.get(member.path, ""))
        if label is None:
            skipped.append(Skipped(tree.full_path(member.path), "of no class that wnids.txt lists"))
        else:
            members.append(member)
            labels.append(label)
    return file_dataset(
        "tiny-imagenet", split, tree, members, labels=labels, classes=classes, skipped=skipped, size=SIZE
    )
