"""A table of image paths and labels in a CSV file."""

import csv
import io
import os
from pathlib import Path
from typing import NamedTuple

from sslfast.data.dataset import Dataset, Skipped, printable
from sslfast.data.image_files import file_dataset
from sslfast.data.tree import FolderTree, is_image_name
from sslfast.errors import DataError, UsageError

IMAGE_COLUMNS = ("image", "path", "file", "filename", "image_path", "filepath", "file_name")
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")


class _Row(NamedTuple):
    line: int
    image: str
    label: str
    split: str


def _rows(path: Path) -> tuple[list[_Row], bool, bool]:
    """Give the rows, whether there are labels, and whether there are splits."""
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(
            f"cannot read the table {printable(str(path))}: {error.strerror}; give a CSV file with columns image,label"
        ) from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise DataError(f"the table {printable(str(path))} is empty; it needs the columns image,label")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: dict[str, int] | None = None
    rows = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if header is None:
                header = _header(path, cells)
                if not header.pop("is data", 0):
                    continue
            cell = {key: cells[i] if i < len(cells) else "" for key, i in header.items()}
            rows.append(_Row(reader.line_num, cell["image"], cell.get("label", ""), cell.get("split", "")))
    except csv.Error as error:
        raise DataError(f"{printable(str(path))}, line {reader.line_num}: {error}; mend that line") from error
    columns = header or {}
    return rows, "label" in columns, "split" in columns


def _header(path: Path, cells: list[str]) -> dict[str, int]:
    lowered = [cell.lower() for cell in cells]
    found = {}
    for key, accepted in (("image", IMAGE_COLUMNS), ("label", LABEL_COLUMNS), ("split", SPLIT_COLUMNS)):
        for name in accepted:
            if name in lowered and key not in found:
                found[key] = lowered.index(name)
    if "image" in found:
        return found
    if is_image_name(cells[0]):
        # No header: the first column is the image, the second, where there is one, the label.
        return {"image": 0, "is data": 1, **({"label": 1} if len(cells) > 1 else {})}
    raise DataError(
        f"{printable(str(path))} has no column image (its first line is {printable(', '.join(cells)[:80])}); "
        f"name a column one of: {', '.join(IMAGE_COLUMNS)}"
    )


def _class_names(labels: set[str]) -> tuple[str, ...]:
    # Numbers in their own order: 2 comes before 10.
    numeric = all(label.isascii() and label.isdigit() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label), label) if numeric else (0, label)))


def splits(path: Path | str) -> tuple[str, ...]:
    """List the splits of a table: those in its column ``split``, or "train" where it has none.

    Raises:
        DataError: it cannot be read.
    """
    rows, _, has_splits = _rows(Path(path).expanduser())
    return _splits(rows, has_splits)


def _splits(rows: list[_Row], has_splits: bool) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.split for row in rows if row.split)) if has_splits else ("train",)


def read(name: str, path: Path | str, split: str) -> Dataset:
    """Read a table of images; paths are relative to the table's folder.

    The first line names the columns: an image column, perhaps a label column, perhaps a split column; without such a
    line the first column is the image and the second the label. Without a split column all rows are "train". Rows whose
    image or label is missing, and images that are listed twice, are left out and listed in ``skipped``.

    Args:
        name: of the data set, "csv:PATH".
        path: the table: commas, semicolons or tabs.
        split: a value of the split column, "train" without one, or "all".

    Raises:
        DataError: it is no such table, or has no image that can be read.
        UsageError: it does not have this split.
    """
    table = Path(path).expanduser()
    rows, has_labels, has_splits = _rows(table)
    # Of the whole table, so that labels of different splits mean the same.
    classes = _class_names({row.label for row in rows if row.label}) if has_labels else None
    known = _splits(rows, has_splits)
    if split != "all":
        if split not in known:
            shown = ", ".join(map(printable, known))
            hint = "" if has_splits else "; a column named split divides a table"
            raise UsageError(f"{printable(name)} has no split {split!r}; it has: {shown}, all{hint}")
        rows = [row for row in rows if not has_splits or row.split == split]
    tree = FolderTree(table.parent)
    skipped: list[Skipped] = []
    seen: dict[str, _Row] = {}
    for row in rows:
        where = Skipped(f"{table}:{row.line}", "")
        earlier = seen.get(os.path.normpath(row.image))
        if not row.image:
            skipped.append(where._replace(reason="no image"))
        elif has_labels and not row.label:
            skipped.append(where._replace(reason="no label"))
        elif earlier is not None:
            other = "" if earlier.label == row.label else f" with another label, {printable(earlier.label)}"
            skipped.append(where._replace(reason=f"{printable(row.image)} stands in line {earlier.line} too{other}"))
        else:
            seen[os.path.normpath(row.image)] = row
    listed, unusable = tree.members(row.image for row in seen.values())
    members = [member for member in listed if member is not None]
    label_of = {label: index for index, label in enumerate(classes or ())}
    labels = None
    if classes:
        labels = [label_of[row.label] for row, member in zip(seen.values(), listed, strict=True) if member]
    return file_dataset(name, split, tree, members, labels=labels, classes=classes, skipped=[*skipped, *unusable])
