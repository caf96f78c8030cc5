"""Run a frozen backbone over a data set, once, and store what comes out."""

import copy
import importlib.metadata
import platform
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslfast.data.dataset import Dataset
from sslfast.device import resolve_device
from sslfast.errors import DataError, IntegrityError, SslfastError, UsageError
from sslfast.features.format import BLOCK_BYTES, DTYPES, CheckedFile, write_tensors
from sslfast.features.images import BatchReader
from sslfast.features.journal import JOURNAL_NAME, LOCK_NAME, Journal, exclusive, remove_partial_files
from sslfast.features.manifest import (
    FORMAT,
    INDEX_NAME,
    MANIFEST_NAME,
    VERSION,
    VIEWS,
    file_entry,
    shard_name,
    write_manifest,
)
from sslfast.features.store import FeatureStore, describe_preprocess
from sslfast.models import Backbone
from sslfast.progress import Bar, bar


@dataclass(frozen=True)
class _Plan:
    """What one extraction computes and how."""

    backbone: Backbone
    dataset: Dataset
    views: tuple[str, ...]
    dtype: torch.dtype
    compute_dtype: torch.dtype
    batch_size: int
    shard_rows: int
    device: torch.device


@dataclass
class _Shard:
    """Features of a run of images, and which of these could not be read."""

    tensors: dict[str, Tensor]
    rows: int = 0
    dropped: list[int] = field(default_factory=list)
    skipped: list[list[str]] = field(default_factory=list)


def extract(
    backbone: Backbone,
    dataset: Dataset,
    out: Path | str,
    views: Sequence[str] = ("identity",),
    *,
    dtype: str = "float32",
    compute_dtype: str = "float32",
    batch_size: int = 256,
    shard_rows: int = 16384,
    device: str = "cpu",
    resume: bool = True,
) -> FeatureStore:
    """Compute the features of every image once and store them in the folder ``out``.

    A folder that holds a complete store of the same key is opened without work; one that holds a part of it is
    continued. The key is what decides the result: backbone, preprocessing, data set, views, dtypes and shard_rows.
    The batch size and the device change features by rounding only and are not part of it.

    Args:
        backbone: the network; it is used in evaluation mode and left as it is.
        dataset: the images (see `sslfast.data.load`).
        out: a new folder, or one with a store or an unfinished extraction.
        views: of each image: "identity", "flip" (mirrored left to right) or both.
        dtype: what features are stored as: "float32", "float16" or "bfloat16".
        compute_dtype: what the backbone computes in: "float32", or "bfloat16" or "float16" (autocast).
        batch_size: images per forward pass.
        shard_rows: images per file; a killed extraction loses at most the work on two of these.
        device: see `sslfast.device.resolve_device`.
        resume: False: refuse a folder that holds anything.

    Raises:
        UsageError: an argument makes no sense, or the folder holds something else.
        DataError: there are no images, or none could be read.
        SslfastError: a feature is not finite, or the folder cannot be written. What was there before stays.
    """
    plan = _Plan(
        backbone,
        dataset,
        _check_views(views),
        _check_dtype("dtype", dtype),
        _check_dtype("compute_dtype", compute_dtype),
        batch_size,
        shard_rows,
        resolve_device(device),
    )
    for name, count in (("batch_size", batch_size), ("shard_rows", shard_rows)):
        if count < 1:
            raise UsageError(f"{name} must be at least 1, got {count}")
    if len(dataset) == 0:
        raise DataError(f"{dataset.name} ({dataset.split}) has no images to extract features of")
    folder = Path(out)
    key = {  # in the order in which a difference is named; the backbone's fingerprint covers its preprocessing
        "preprocess": describe_preprocess(backbone.preprocess),
        "backbone": {"architecture": backbone.architecture, "fingerprint": backbone.fingerprint()},
        "dataset": {"name": dataset.name, "split": dataset.split, "fingerprint": dataset.fingerprint()},
        "classes": None if dataset.classes is None else list(dataset.classes),
        "views": list(plan.views),
        "dtype": dtype,
        "compute_dtype": compute_dtype,
        "features": backbone.features,
        "shard_rows": shard_rows,
    }
    if not resume:
        _refuse_used(folder)
    store = _complete_store(folder, key)
    if store is not None:
        return store
    with exclusive(folder):
        store = _complete_store(folder, key)  # another process may have finished it while this one waited
        if store is None:
            journal = _open_journal(folder, key)
            _compute_missing(plan, folder, journal)
            _commit(plan, folder, journal)
            store = FeatureStore.open(folder)
    return store


def _check_views(views: Sequence[str]) -> tuple[str, ...]:
    views = (views,) if isinstance(views, str) else tuple(views)
    if not views or len(set(views)) < len(views) or not set(views) <= set(VIEWS):
        raise UsageError(f"views must be some of {', '.join(VIEWS)}, each once; got {', '.join(views) or 'none'}")
    return views


def _check_dtype(name: str, dtype: str) -> torch.dtype:
    if dtype not in DTYPES:
        raise UsageError(f"{name} must be one of {', '.join(DTYPES)}; got {dtype!r}")
    return DTYPES[dtype]


def _refuse_used(folder: Path) -> None:
    for name in (MANIFEST_NAME, JOURNAL_NAME):
        if (folder / name).exists():
            raise UsageError(f"{folder} already holds features; add --resume to continue, or choose another --out")


def _complete_store(folder: Path, key: dict[str, Any]) -> FeatureStore | None:
    if not (folder / MANIFEST_NAME).exists():
        return None
    store = FeatureStore.open(folder)
    found = {name: store.manifest[name] for name in key}
    found["backbone"] = {name: found["backbone"][name] for name in ("architecture", "fingerprint")}
    _check_key(folder, found, key)
    return store


def _check_key(folder: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    for name in [*asked, *(name for name in found if name not in asked)]:
        old, new = found.get(name), asked.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            for part in sorted({*old, *new}):
                _refuse_different(folder, f"{name} {part}", old.get(part), new.get(part))
        _refuse_different(folder, name, old, new)


def _refuse_different(folder: Path, name: str, found: Any, asked: Any) -> None:
    if found != asked:
        raise UsageError(
            f"{folder} was extracted with {name} {_shorten(found)}, now it is {_shorten(asked)}; "
            "choose another --out, or remove that folder"
        )


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _open_journal(folder: Path, key: dict[str, Any]) -> Journal:
    """Continue what is in ``folder``, whose lock is held, or start in an empty one."""
    journal = Journal.read(folder)
    remove_partial_files(folder)
    if journal is None:
        foreign = sorted(path.name for path in folder.iterdir() if path.name != LOCK_NAME)
        if foreign:
            raise UsageError(f"{folder} holds other files ({foreign[0]}); choose a new or empty folder with --out")
        return Journal.start(folder, key, {})
    _check_key(folder, journal.key, key)
    return Journal.start(folder, key, {n: entry for n, entry in journal.shards.items() if _is_whole(folder, entry)})


def _is_whole(folder: Path, entry: dict[str, Any]) -> bool:
    """Compare a finished shard with its checksums; one that is damaged is computed again."""
    if not entry["rows"]:
        return True
    try:
        CheckedFile(folder / entry["name"], entry["bytes"], entry["crc32"]).check_all()
    except IntegrityError:
        return False
    return True


def _compute_missing(plan: _Plan, folder: Path, journal: Journal) -> None:
    """Compute, write and record the shards that the journal does not have."""
    total = len(plan.dataset)
    starts = dict(enumerate(range(0, total, plan.shard_rows)))
    missing = [number for number in starts if number not in journal.shards]
    if not missing:
        return
    # A copy: the caller's network keeps its mode, its device and its memory format.
    network = copy.deepcopy(plan.backbone).eval().to(plan.device)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    done = total - sum(min(plan.shard_rows, total - starts[number]) for number in missing)
    title = f"features of {plan.dataset.name} ({plan.dataset.split})"
    written: Future[None] | None = None
    # One writer, so that the backbone does not wait for checksums and disk; at most two shards are in memory.
    with (
        bar(title, total, "images", done) as progress,
        BatchReader(plan.dataset, plan.backbone.preprocess, plan.batch_size) as reader,
        ThreadPoolExecutor(1) as writer,
    ):
        for number in missing:
            stop = min(starts[number] + plan.shard_rows, total)
            shard = _compute_shard(plan, network, reader, starts[number], stop, progress)
            if written is not None:
                written.result()
            written = writer.submit(_write_shard, folder, number, shard, journal)
        if written is not None:
            written.result()


def _write_shard(folder: Path, number: int, shard: _Shard, journal: Journal) -> None:
    name = shard_name(number)
    entry: dict[str, Any] = {"name": name}
    if shard.rows:
        tensors = {view: tensor[: shard.rows] for view, tensor in shard.tensors.items()}
        entry = file_entry(name, *write_tensors(folder / name, tensors))
    journal.append({"number": number, "rows": shard.rows, "dropped": shard.dropped, "skipped": shard.skipped, **entry})


@torch.inference_mode()
def _compute_shard(plan: _Plan, network: Backbone, reader: BatchReader, start: int, stop: int, progress: Bar) -> _Shard:
    """Compute the features of images ``start`` to ``stop - 1``; batches never reach into the next shard."""
    shape = (stop - start, plan.backbone.features)
    shard = _Shard({view: torch.empty(shape, dtype=plan.dtype) for view in plan.views})
    for batch in reader.batches(start, stop):
        shard.dropped += batch.dropped
        shard.skipped += batch.skipped
        progress.advance(len(batch.positions) + len(batch.dropped))
        if not len(batch.positions):
            continue
        x = batch.images.to(plan.device)
        if x.dtype == torch.uint8:
            x = network.preprocess(x)
        row = slice(shard.rows, shard.rows + len(x))
        for view in plan.views:
            with torch.autocast(plan.device.type, plan.compute_dtype, enabled=plan.compute_dtype != torch.float32):
                features = network(x.flip(3) if view == "flip" else x)
            if features.shape != (len(x), plan.backbone.features):
                raise SslfastError(
                    f"the backbone gives features of shape {tuple(features.shape)} for {len(x)} images, "
                    f"not ({len(x)}, {plan.backbone.features})"
                )
            stored = shard.tensors[view][row]
            stored.copy_(features)
            _check_finite(plan, stored, batch.positions, view)
        shard.rows += len(x)
    return shard


def _check_finite(plan: _Plan, stored: Tensor, positions: np.ndarray, view: str) -> None:
    finite = stored.isfinite()
    if finite.all():
        return
    position = int(positions[int(finite.all(dim=1).logical_not().nonzero()[0])])
    advice = (
        "; float16 ends at 65504: try --dtype bfloat16" if torch.float16 in (plan.dtype, plan.compute_dtype) else ""
    )
    raise SslfastError(
        f"the features of image {position} ({plan.dataset.ids[position]}, view {view}) are not finite; "
        f"check the backbone's weights{advice}; nothing was committed"
    )


def _commit(plan: _Plan, folder: Path, journal: Journal) -> None:
    """Write the index and then the manifest, which makes the folder a store."""
    entries = [journal.shards[number] for number in sorted(journal.shards)]
    dropped = [position for entry in entries for position in entry["dropped"]]
    kept = np.delete(np.arange(len(plan.dataset)), dropped)
    if not len(kept):
        raise DataError(f"none of the {len(plan.dataset)} images of {plan.dataset.name} could be read")
    shards, row = [], 0
    for entry in entries:
        if entry["rows"]:
            described = {name: entry[name] for name in ("rows", "bytes", "data", "crc32")}
            shards.append({"name": entry["name"], "first_row": row, **described})
            row += entry["rows"]
    if row != len(kept):
        raise IntegrityError(f"{folder} holds {row} rows for {len(kept)} images; remove it and extract again")
    key = journal.key
    write_manifest(
        folder,
        {
            "format": FORMAT,
            "version": VERSION,
            "rows": row,
            **{name: key[name] for name in ("features", "dtype", "views", "classes")},
            "block_bytes": BLOCK_BYTES,
            "shard_rows": plan.shard_rows,
            "shards": shards,
            "index": _write_index(plan.dataset, kept, folder),
            "backbone": {**key["backbone"], "source": plan.backbone.source},
            "preprocess": key["preprocess"],
            "dataset": key["dataset"],
            "compute_dtype": key["compute_dtype"],
            "skipped": [
                *([str(item.path), item.reason] for item in plan.dataset.skipped),
                *(item for entry in entries for item in entry["skipped"]),
            ],
            "versions": {
                "python": platform.python_version(),
                "sslfast": _own_version(),
                "torch": torch.__version__,
            },
        },
    )
    journal.remove()


def _own_version() -> str:
    try:
        return importlib.metadata.version("sslfast")
    except importlib.metadata.PackageNotFoundError:
        return "source tree"  # built in place, not installed


def _write_index(dataset: Dataset, kept: np.ndarray, folder: Path) -> dict[str, Any]:
    encoded = [str(dataset.ids[position]).encode("utf-8", "surrogateescape") for position in kept.tolist()]
    content = b"".join(encoded)
    tensors = {}
    if dataset.labels is not None:
        tensors["labels"] = torch.from_numpy(np.asarray(dataset.labels, dtype=np.int64)[kept])
    tensors["id_offsets"] = torch.from_numpy(np.cumsum([0, *map(len, encoded)], dtype=np.int64))
    tensors["ids"] = torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())
    entry = file_entry(INDEX_NAME, *write_tensors(folder / INDEX_NAME, tensors))
    return {**entry, "labels": dataset.labels is not None, "id_bytes": len(content)}
