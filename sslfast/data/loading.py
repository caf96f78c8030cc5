"""`load`: from a name and a split to a data set, wherever its files are."""

from pathlib import Path

from sslfast.data.dataset import Dataset, printable
from sslfast.data.places import Place, searched
from sslfast.data.registry import NAMED, Named, names
from sslfast.errors import DataError, UsageError


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
    entry = _entry(name)
    split = entry.aliases.get(split, split)
    if split not in entry.splits:
        raise UsageError(f"{name} has no split {split!r}; it has: {', '.join(entry.splits)}")
    if not entry.folders:
        return entry.read(Path(), split)
    found = find(entry, split, root)
    if found is None:
        if not download:
            raise DataError(nowhere(entry, split, root, "downloading was not allowed"))
        raise DataError(nowhere(entry, split, root, "it could not be downloaded"))
    return entry.read(found.path, split)


def _entry(name: str) -> Named:
    if name not in NAMED:
        raise UsageError(f"there is no data set {printable(name)!r}; there are: {', '.join(names())}")
    return NAMED[name]


def candidates(entry: Named, root: Path | str | None) -> list[Place]:
    """List the folders in which the files of ``entry`` may lie, first to last."""
    found = []
    for place in searched(root):
        # A person may point at the set's own folder as well as at the one above it.
        if place.path.name.lower() in (folder.lower() for folder in entry.folders):
            found.append(place)
        found += [Place(place.path / folder, place.origin) for folder in entry.folders]
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
        note = f" (lacks {', '.join(lacking[:2])})" if place.path.is_dir() else ""
        tried.append(f"{printable(str(place.path))}{note}")
    ways = [f"apt-get install {entry.package}"] if entry.package else []
    ways.append(f"sslfast data {entry.name} --data-dir FOLDER (one that has {entry.folders[0]}/)")
    return f"{entry.name} {split} is not in {', '.join(tried)}; {failure}; try: {', or '.join(ways)}"
