"""The manifest of a feature store: its commit, and everything that a reader must know."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import torch

from sslfast.errors import IntegrityError, SslfastError
from sslfast.features.format import BLOCK_BYTES, DTYPES, Layout, TensorSpec, block_count, layout
from sslfast.files import write_bytes

FORMAT = "sslfast-features"
VERSION = 1
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.safetensors"
VIEWS = ("identity", "flip")

_SHARD_NAME = re.compile(r"shard-(\d{5,9})\.safetensors", re.ASCII)
_TAIL = re.compile(rb'\n  "sha256": "([0-9a-f]{64})"\n\}\n\Z')
_LARGEST_MANIFEST = 1 << 28
_LARGEST_NUMBER = 1 << 53
_FIELDS = {
    "format",
    "version",
    "rows",
    "features",
    "dtype",
    "views",
    "classes",
    "block_bytes",
    "shard_rows",
    "shards",
    "index",
    "backbone",
    "preprocess",
    "dataset",
    "compute_dtype",
    "skipped",
    "versions",
    "sha256",
}


def shard_name(number: int) -> str:
    """Name the file of shard ``number``."""
    return f"shard-{number:05d}.safetensors"


def shard_specs(views: list[str], dtype: str, rows: int, features: int) -> list[TensorSpec]:
    """Describe the tensors of a shard: one (rows, features) per view, in the order of the views."""
    return [TensorSpec(view, DTYPES[dtype], (rows, features)) for view in views]


def index_specs(rows: int, labels: bool, id_bytes: int) -> list[TensorSpec]:
    """Describe the tensors of the index: labels (where there are any), where each id starts, and the ids' bytes."""
    specs = [TensorSpec("labels", torch.int64, (rows,))] if labels else []
    return [*specs, TensorSpec("id_offsets", torch.int64, (rows + 1,)), TensorSpec("ids", torch.uint8, (id_bytes,))]


def file_entry(name: str, plan: Layout, checksums: str) -> dict[str, Any]:
    """Describe a file in the form that the manifest holds."""
    return {"name": name, "bytes": plan.bytes, "data": plan.offsets, "crc32": checksums}


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Commit a store: write its manifest, which ends with the SHA-256 of itself (the digits taken as zeros)."""
    text = json.dumps({**content, "sha256": "0" * 64}, indent=2, ensure_ascii=True, allow_nan=False).encode() + b"\n"
    start = len(text) - 68
    write_bytes(folder / MANIFEST_NAME, text[:start] + hashlib.sha256(text).hexdigest().encode() + text[start + 64 :])


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of ``folder``; whatever it says of files is then consistent in itself.

    Raises:
        FileNotFoundError: there is none.
        IntegrityError: it is damaged, or says what cannot be.
        SslfastError: it cannot be read, or is of a later version.
    """
    path = folder / MANIFEST_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as handle:
            raw = handle.read(_LARGEST_MANIFEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SslfastError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > _LARGEST_MANIFEST:
        _damaged(path, f"it is longer than {_LARGEST_MANIFEST} bytes")
    tail = _TAIL.search(raw[-128:])
    if tail is None:
        _damaged(path, "it does not end with its own checksum")
    start = len(raw) - 68
    if hashlib.sha256(raw[:start] + b"0" * 64 + raw[start + 64 :]).hexdigest().encode() != tail.group(1):
        _damaged(path, "its content does not match its checksum")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        _damaged(path, "it is no JSON")
    check_manifest(path, content)
    return dict(content)


def check_manifest(path: Path, content: Any) -> None:
    """See that a manifest is complete and that its numbers fit together.

    Args:
        path: where it comes from, for the message.
        content: the parsed JSON.

    Raises:
        IntegrityError: they do not.
        SslfastError: the manifest is of a later version.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        _damaged(path, f"it is not of the format {FORMAT}")
    version = content.get("version")
    if version != VERSION or not _is_count(version):
        raise SslfastError(f"{path} has version {version!r}, this sslfast reads version {VERSION}; install a newer one")
    if set(content) != _FIELDS:
        _damaged(path, f"its fields are not the expected ones ({', '.join(sorted(set(content) ^ _FIELDS))})")
    for field in ("rows", "features", "shard_rows"):
        if not _is_count(content[field]):
            _damaged(path, f"{field} is {content[field]!r}, not a positive number")
    if content["block_bytes"] != BLOCK_BYTES or not _is_count(content["block_bytes"]):
        _damaged(path, f"block_bytes is not {BLOCK_BYTES}")
    for field in ("dtype", "compute_dtype"):
        if not isinstance(content[field], str) or content[field] not in DTYPES:
            _damaged(path, f"{field} is {content[field]!r}, not one of {', '.join(DTYPES)}")
    views = content["views"]
    if not _is_strings(views) or not views or len(set(views)) < len(views) or not set(views) <= set(VIEWS):
        _damaged(path, f"views are {views!r}, not some of {', '.join(VIEWS)}")
    if content["classes"] is not None and not _is_strings(content["classes"]):
        _damaged(path, "classes is not a list of names")
    _check_description(path, content)
    _check_shards(path, content)
    _check_index(path, content["index"], content["rows"])


def _check_description(path: Path, content: dict[str, Any]) -> None:
    expected = {
        "backbone": {"architecture", "fingerprint", "source"},
        "dataset": {"name", "split", "fingerprint"},
        "preprocess": {"size", "mean", "std"},
    }
    for field, keys in expected.items():
        if not isinstance(content[field], dict) or set(content[field]) != keys:
            _damaged(path, f"{field} does not hold {', '.join(sorted(keys))}")
    for field in ("backbone", "dataset", "versions"):
        if not isinstance(content[field], dict) or not _is_strings(list(content[field].values())):
            _damaged(path, f"{field} does not hold texts")
    preprocess = content["preprocess"]
    if not _is_count(preprocess["size"]):
        _damaged(path, "preprocess.size is not a positive number")
    for field in ("mean", "std"):
        values = preprocess[field]
        if not isinstance(values, list) or len(values) != 3 or not all(type(value) in (int, float) for value in values):
            _damaged(path, f"preprocess.{field} is not three numbers")
    skipped = content["skipped"]
    if not isinstance(skipped, list) or not all(_is_strings(item) and len(item) == 2 for item in skipped):
        _damaged(path, "skipped is not a list of path and reason")


def _check_shards(path: Path, content: dict[str, Any]) -> None:
    shards = content["shards"]
    if not isinstance(shards, list):
        _damaged(path, "shards is not a list")
    row, previous = 0, -1
    for shard in shards:
        if not isinstance(shard, dict) or set(shard) != {"name", "first_row", "rows", "bytes", "data", "crc32"}:
            _damaged(path, "a shard has unexpected fields")
        name = _SHARD_NAME.fullmatch(shard["name"]) if isinstance(shard["name"], str) else None
        # Names ascend, so that none comes twice; none leads out of the folder.
        if name is None or shard_name(int(name.group(1))) != shard["name"] or int(name.group(1)) <= previous:
            _damaged(path, f"a shard has the name {str(shard['name'])[:80]!r}")
        previous = int(name.group(1))
        if not _is_count(shard["rows"]) or type(shard["first_row"]) is not int or shard["first_row"] != row:
            _damaged(path, f"{shard['name']} does not continue at row {row}")
        row += shard["rows"]
        specs = shard_specs(content["views"], content["dtype"], shard["rows"], content["features"])
        _check_file_entry(path, shard, layout(specs))
    if row != content["rows"]:
        _damaged(path, f"its shards hold {row} rows, it says {content['rows']}")


def _check_index(path: Path, index: Any, rows: int) -> None:
    if not isinstance(index, dict) or set(index) != {"name", "bytes", "data", "crc32", "labels", "id_bytes"}:
        _damaged(path, "index has unexpected fields")
    if index["name"] != INDEX_NAME or type(index["labels"]) is not bool:
        _damaged(path, "index is not what it must be")
    if type(index["id_bytes"]) is not int or not 0 <= index["id_bytes"] <= _LARGEST_NUMBER:
        _damaged(path, "index.id_bytes is not a number")
    _check_file_entry(path, index, layout(index_specs(rows, index["labels"], index["id_bytes"])))


def _check_file_entry(path: Path, entry: dict[str, Any], plan: Layout) -> None:
    numbers = [entry["bytes"], *entry["data"].values()] if isinstance(entry["data"], dict) else [None]
    if any(type(number) is not int for number in numbers) or (entry["bytes"], entry["data"]) != (
        plan.bytes,
        plan.offsets,
    ):
        _damaged(path, f"{entry['name']} cannot have the length and offsets that it says")
    checksums = entry["crc32"]
    digits = 8 * block_count(plan.bytes)
    if not isinstance(checksums, str) or len(checksums) != digits or not re.fullmatch("[0-9a-f]*", checksums):
        _damaged(path, f"{entry['name']} has not one checksum per block")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_NUMBER


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _damaged(path: Path, reason: str) -> NoReturn:
    raise IntegrityError(f"{path} is damaged: {reason}; extract again into a new folder")
