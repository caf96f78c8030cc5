"""`load`: from a name and a split to a data set, wherever its files are."""

import os
from pathlib import Path

from sslfast.data import folder, table
from sslfast.data.dataset import Dataset, printable
from sslfast.data.download import check_recorded, fetch, locked
from sslfast.data.places import Place, download_folder, searched
from sslfast.data.registry import NAMED, PREFIXES, Named, names
from sslfast.data.unpack import unpack_tar
from sslfast.errors import DataError, SslfastError, UsageError

OWN = {"imagefolder:": folder.read_classes, "folder:": folder.read_tree, "csv:": table.read}
"""Readers of a person's own images."""


def load(name: str, split: str, root: Path | str | None = None, download: bool = True) -> Dataset:
    """Load a data set by name.

    Args:
        name: one of `names`: "fashion-mnist", "cifar10", ..., "imagefolder:PATH", "folder:PATH" or "csv:PATH".
        split: "train", "test" or another that the set has.
        root: folder to look in first, and to download to.
        download: whether to fetch a set that is nowhere.

    Raises:
        UsageError: the name or the split is unknown.
        DataError: the set is nowhere and could not be fetched, or is damaged.
    """
    for prefix, read in OWN.items():
        if name.startswith(prefix):
            path = name.removeprefix(prefix)
            if not path:
                raise UsageError(f"{prefix} needs a path behind it: {prefix}{PREFIXES[prefix]}")
            return read(name, path, split)
    entry = _entry(name)
    asked, split = split, entry.aliases.get(split, split)
    if split not in entry.splits:
        shown = ", ".join((*entry.splits, *entry.aliases))
        raise UsageError(f"{name} has no split {printable(asked)!r}; it has: {shown}")
    if not entry.folders:
        return entry.read(Path(), split)
    found = find(entry, split, root)
    if found is None:
        if not download:
            raise DataError(nowhere(entry, split, root, "downloading was not allowed"))
        try:
            fetch_set(entry, split, download_folder(root))
        except (SslfastError, OSError) as error:
            raise DataError(nowhere(entry, split, root, f"downloading it failed: {error}")) from error
        found = find(entry, split, root)
        if found is None:
            raise DataError(nowhere(entry, split, root, "what was downloaded does not hold it"))
    for wanted in entry.downloads:
        if wanted.checksum is None and not wanted.unpack:
            check_recorded(found.path / wanted.file if os.path.isdir(found.path) else found.path)
    dataset = entry.read(found.path, split)
    # As it was asked for: "test" of a set whose labelled test images are called "val".
    dataset.split = asked
    return dataset


def splits_of(name: str) -> tuple[str, ...]:
    """List the splits that a data set has; of an own tree or table, those that are in it.

    Raises:
        UsageError: the name is unknown.
        DataError: the tree or table cannot be read.
    """
    kind, _, path = name.partition(":")
    if f"{kind}:" not in OWN or not path:
        return _entry(name).splits
    if kind == "folder":
        return ("all",)
    return (folder.splits(path) if kind == "imagefolder" else table.splits(path)) or ("train",)


def fetch_set(entry: Named, split: str, root: Path) -> None:
    """Download what ``entry`` needs for ``split`` into the data folder ``root``.

    Raises:
        DataError: that failed; what has come so far is kept and continued by the next try.
    """
    with locked(root, entry.name):
        # Another process may have brought it while this one waited.
        if any(not entry.missing(root / name, split) for name in entry.folders):
            return
        for wanted in entry.downloads:
            # Of several files those that are there are kept; a set of one archive is there, but not whole.
            if len(entry.downloads) > 1 and os.path.exists(root / wanted.result):
                continue
            path = fetch(wanted.urls, root / wanted.folder, wanted.checksum)
            if wanted.unpack:
                unpack_tar(path, root / wanted.folder)
                path.unlink()


def _entry(name: str) -> Named:
    if name not in NAMED:
        raise UsageError(f"there is no data set {printable(name)!r}; there are: {', '.join(names())}")
    return NAMED[name]


def candidates(entry: Named, root: Path | str | None) -> list[Place]:
    """List the folders in which the files of ``entry`` may lie, first to last."""
    found = []
    for place in searched(root):
        # A person may point at the set's own folder as well as at the one above it.
        if place.path.name.lower() in (name.lower() for name in entry.folders):
            found.append(place)
        found += [Place(place.path / name, place.origin) for name in entry.folders]
    return found


def find(entry: Named, split: str, root: Path | str | None = None) -> Place | None:
    """Give the first folder that has all files of a split, or None."""
    for place in candidates(entry, root):
        if not entry.missing(place.path, split):
            return place
    return None


def nowhere(entry: Named, split: str, root: Path | str | None, failure: str) -> str:
    """Say in one line where a set was looked for and what to type."""
    tried = []
    for place in candidates(entry, root):
        lacking = entry.missing(place.path, split)
        note = f" (lacks {', '.join(lacking[:2])})" if os.path.isdir(place.path) else ""
        tried.append(f"{printable(str(place.path))}{note}")
    ways = [f"apt-get install {entry.package}"] if entry.package else []
    ways.append(f"sslfast data {entry.name} --data-dir FOLDER (one that has {entry.folders[0]}/)")
    return f"{entry.name} {split} is not in {', '.join(tried)}; {failure}; try: {', or '.join(ways)}"
