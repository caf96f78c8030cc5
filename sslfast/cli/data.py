"""``sslfast data``: looks for a data set or published weights, or downloads them, and says what is in them."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.text import Text

from sslfast.cli import weights
from sslfast.data.dataset import Dataset, printable
from sslfast.data.loading import find, load, splits_of
from sslfast.data.registry import NAMED, PREFIXES
from sslfast.errors import UsageError

SHOWN = 10
"""Skipped images that the table lists; --json has all of them."""


@dataclass
class Options:
    """Look for a data set, or download it; or, as ``fetch-weights`` and ``inspect-checkpoint``, the same for weights.

    Args:
        name: the data set ("cifar10", "imagefolder:PATH", ...); without it, all names and where each of them is;
            "fetch-weights" downloads published weights, "inspect-checkpoint" says what a file of weights is.
        item: of fetch-weights, which ("swav", "torchvision:resnet50", ...; without it, a list); of inspect-checkpoint,
            the file.
        split: one split only.
        data_dir: folder to look in first, and to download to.
        download: fetch a set that is nowhere.
        backbone: of inspect-checkpoint, the architecture; without it, what the weights look like.
        layout: of inspect-checkpoint, whose layout the file has, where more than one fits.
        allow_missing: of inspect-checkpoint, weights or modules that the file need not have.
        out: of inspect-checkpoint, where to write the weights as a backbone of ours.
        json: print JSON.
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    item: Annotated[str, tyro.conf.Positional] = ""
    split: str | None = None
    data_dir: str | None = None
    download: bool = True
    backbone: str | None = None
    layout: str | None = None
    allow_missing: tuple[str, ...] = ()
    out: Path | None = None
    json: bool = False


def run(options: Options) -> int:
    """Print what was asked for on the standard output."""
    if options.name == "fetch-weights":
        return weights.fetch(options.item, options.data_dir, options.json)
    if options.name == "inspect-checkpoint":
        return weights.inspect(
            options.item, options.backbone, options.layout, options.allow_missing, options.out, options.json
        )
    if options.item:
        raise UsageError(f"one data set at a time; what is {options.item!r}?")
    if not options.name:
        rows = [_place(name, options.data_dir) for name in NAMED]
        print(json.dumps(rows, indent=2)) if options.json else _print_names(rows)
        return 0
    splits = [options.split] if options.split else splits_of(options.name)
    described = [
        _describe(load(options.name, split, options.data_dir, options.download), options.data_dir) for split in splits
    ]
    print(json.dumps(described, indent=2)) if options.json else _print_sets(described)
    return 0


def _place(name: str, data_dir: str | None) -> dict[str, Any]:
    entry = NAMED[name]
    found = [place for split in entry.splits if (place := find(entry, split, data_dir)) is not None]
    if not entry.folders:
        where, state = "inside scikit-learn", "there"
    elif found:
        state = "there" if len(found) == len(entry.splits) else "some splits"
        where = f"{found[0].path} ({found[0].origin})"
    else:
        state = "not here"
        where = f"apt-get install {entry.package}, or downloaded" if entry.package else "downloaded when it is loaded"
    return {"name": name, "what": entry.what, "splits": list(entry.splits), "state": state, "where": printable(where)}


def _describe(dataset: Dataset, data_dir: str | None) -> dict[str, Any]:
    name, split = dataset.name, dataset.split
    entry = NAMED.get(name)
    place = find(entry, entry.aliases.get(split, split), data_dir) if entry is not None else None
    if place is not None:
        where = f"{place.path} ({place.origin})"
    else:
        where = "inside scikit-learn" if entry is not None else name.partition(":")[2]
    counts = None
    if dataset.labels is not None and dataset.classes is not None:
        of_label = Counter(dataset.labels.tolist())
        counts = [{"class": printable(c), "images": of_label[label]} for label, c in enumerate(dataset.classes)]
    return {
        "name": printable(name),
        "split": split,
        "where": printable(where),
        "images": len(dataset),
        "image_size": dataset.image_size,
        "classes": counts,
        "skipped": [{"path": printable(one.path), "reason": one.reason} for one in dataset.skipped],
    }


def _print_names(rows: list[dict[str, Any]]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    styles = {"there": "green", "some splits": "yellow", "not here": "dim"}
    width = max(map(len, [row["name"] for row in rows] + [f"{prefix}PATH" for prefix in PREFIXES]))
    for row in rows:
        line = Text(f"{row['name'].ljust(width)}  ", style="bold")
        line.append(f"{row['state']}: {row['where']}", style=styles[row["state"]])
        console.print(line)
        console.print(Text(f"{' ' * width}  {row['what']}; splits: {', '.join(row['splits'])}"))
    for prefix, what in PREFIXES.items():
        console.print(Text(f"{(prefix + 'PATH').ljust(width)}  {what}"))


def _print_sets(described: list[dict[str, Any]]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for one in described:
        size = "different sizes" if one["image_size"] is None else "{} x {} pixels".format(*one["image_size"])
        classes = one["classes"]
        console.print(
            Text(f"{one['name']} {one['split']}: {one['images']:,} images, {size}, from {one['where']}", style="bold")
        )
        if classes is None:
            console.print("  no labels")
        else:
            counts = [row["images"] for row in classes]
            console.print(f"  {len(classes)} classes of {min(counts):,} to {max(counts):,} images")
            width = max(len(row["class"]) for row in classes)
            for row in classes:
                console.print(Text(f"    {row['class'].ljust(width)}  {row['images']:>9,}"))
        if one["skipped"]:
            console.print(f"  {len(one['skipped']):,} left out:", style="yellow")
            for row in one["skipped"][:SHOWN]:
                console.print(Text(f"    {row['path']}: {row['reason']}"))
            if len(one["skipped"]) > SHOWN:
                console.print(f"    ... {len(one['skipped']) - SHOWN:,} more; --json lists all of them")
