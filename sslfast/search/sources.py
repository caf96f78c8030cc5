"""Where training reads its rows from: tensors in memory, or a feature store that is never in memory as a whole."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sslfast import _store
from sslfast.data import holdout, printable
from sslfast.errors import DataError, UsageError
from sslfast.memory import available_memory

if TYPE_CHECKING:
    from sslfast.features import FeatureStore

CHUNK_BATCHES = 64
"""So many minibatches are gathered at a time, ahead of those that are trained on."""

CHUNK_BYTES = 64 << 20
"""Fewer, where they would be larger than this; two such chunks are in memory."""

MEMORY = ("auto", "load", "stream")
"""Whether rows are read into memory."""

LOADED_SHARE = 0.5
"""Rows are loaded where they take at most this share of the memory that is free."""

MOMENT_ROWS = 1024
"""Means and deviations are merged from runs of so many rows, whose numbers then stay in the cache."""


class Source(ABC):
    """Rows that heads are trained on and chosen by; every form of it gives the same numbers, bit by bit.

    Args:
        labels: classes of the training rows (N,), int64, on the CPU or where features are.
        validation_labels: of the validation rows (M,).
        mean: the training features' mean over all views (D,), float32.
        std: their standard deviation (D,), one where a feature is constant.
        classes: number of classes.
        fingerprint: of what decides the rows, where that is a feature store.
    """

    labels: Tensor
    validation_labels: Tensor
    mean: Tensor
    std: Tensor
    classes: int
    fingerprint: str

    @property
    @abstractmethod
    def views(self) -> int:
        """Number of views of each training row."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where features are when they are trained on."""

    @abstractmethod
    def chunks(self, order: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give training rows in ``order``, ``rows`` at a time or all at once: features, labels, order among these.

        Features are standardised; row r of view v is number v N + r.
        """

    @abstractmethod
    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give standardised validation features and their labels, ``validation_rows`` of them at a time."""

    def chunk_rows(self, batch_size: int) -> int:
        """Say how many rows, whole minibatches, a chunk has."""
        row = 4 * len(self.mean)
        return batch_size * max(1, min(CHUNK_BATCHES, CHUNK_BYTES // (row * batch_size)))

    def validation_rows(self) -> int:
        """Say how many validation rows are looked at at a time."""
        return max(1, CHUNK_BYTES // (4 * len(self.mean)))


@dataclass(frozen=True)
class Rows(Source):
    """Features and labels in memory, or in a GPU's memory.

    Args:
        features: standardised training features (views, N, D), float32.
        labels: their classes (N,), int64.
        validation_features: standardised validation features (M, D), float32.
        validation_labels: their classes (M,), int64.
        mean: the training features' mean (D,).
        std: their standard deviation (D,), one where a feature is constant.
        classes: number of classes.
        fingerprint: of the store that they come from, if they do.
    """

    features: Tensor
    labels: Tensor
    validation_features: Tensor
    validation_labels: Tensor
    mean: Tensor
    std: Tensor
    classes: int
    fingerprint: str = ""

    @property
    def views(self) -> int:
        """Number of views of each training row."""
        return len(self.features)

    @property
    def device(self) -> torch.device:
        """Where features are."""
        return self.features.device

    def chunks(self, order: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give all rows at once, where they lie."""
        yield self.features, self.labels, order.to(self.device)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give validation rows where they lie."""
        size = self.validation_rows()
        yield from zip(
            torch.split(self.validation_features, size), torch.split(self.validation_labels, size), strict=True
        )

    def to(self, device: str | torch.device) -> "Rows":
        """Give the same rows on another device."""
        return Rows(
            self.features.to(device),
            self.labels.to(device),
            self.validation_features.to(device),
            self.validation_labels.to(device),
            self.mean.to(device),
            self.std.to(device),
            self.classes,
            self.fingerprint,
        )


class StoredRows(Source):
    """Training and validation rows of a feature store, gathered chunk by chunk while the chunk before is trained on.

    Making one reads every row once: for the mean and the deviation, for NaN and infinity, and for the checksums. On a
    GPU a chunk comes through one of two pinned buffers.

    Args:
        store: with labels.
        train: numbers of the training rows, int64 (N,).
        validation: numbers of the validation rows (M,).
        labels: of all rows of the store, int64.
        classes: number of classes.
        views: names of the views to train on; validation rows are seen in the first one.
        device: where to train.
        standardised: mean and deviation (D,), float32, on the CPU; by default the training rows' own, over all views.

    Raises:
        DataError: a row is not finite; the message names its shard.
        IntegrityError: a block of the store is damaged.
    """

    def __init__(
        self,
        store: "FeatureStore",
        train: np.ndarray,
        validation: np.ndarray,
        labels: Tensor,
        classes: int,
        views: tuple[str, ...] = ("identity",),
        device: str | torch.device = "cpu",
        standardised: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        if not len(train) or not len(validation):
            raise DataError("there are no training rows" if not len(train) else "there are no validation rows")
        self.store, self.view_names, self.classes = store, views, classes
        self._train = np.ascontiguousarray(train, dtype=np.int64)
        self._validation = np.ascontiguousarray(validation, dtype=np.int64)
        self._device = torch.device(device)
        # Where pages come and go, they are asked for before they are touched; elsewhere asking is a waste.
        self._cold = sum(shard["bytes"] for shard in store.manifest["shards"]) > available_memory()
        self.labels = labels[torch.from_numpy(self._train)]
        self.validation_labels = labels[torch.from_numpy(self._validation)]
        for _ in self._read(self._validation, views[0]):
            pass  # only to see that they are whole and finite
        runs = (run for view in views for run in self._read(self._train, view))
        own = moments(runs, store.features)  # of a pass that sees that rows are whole and finite, too
        mean, std = own if standardised is None else standardised
        self._standardise = mean.numpy(), std.numpy()
        self.mean, self.std = mean.to(device), std.to(device)

    @property
    def views(self) -> int:
        """Number of views of each training row."""
        return len(self.view_names)

    @property
    def device(self) -> torch.device:
        """Where chunks are."""
        return self._device

    def _read(self, rows: np.ndarray, view: str) -> Iterator[Tensor]:
        buffer = torch.empty(min(MOMENT_ROWS, len(rows)), self.store.features)
        for start in range(0, len(rows), MOMENT_ROWS):
            part = rows[start : start + MOMENT_ROWS]
            self.store.gather(part, buffer[: len(part)], view, finite=True, read_ahead=self._cold)
            yield buffer[: len(part)]

    def _numbers(self, order: Tensor) -> np.ndarray:
        views, places = np.divmod(order.cpu().numpy(), len(self._train))
        numbers: np.ndarray = self._train[places] + views * self.store.rows
        return numbers

    def _gather(self, numbers: np.ndarray, out: Tensor, threads: int | None = None) -> None:
        self.store.gather(
            numbers, out, self.view_names, standardise=self._standardise, read_ahead=self._cold, threads=threads
        )

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """A hash of everything that decides the rows: checksums of the store, its origin, which rows, their labels."""
        digest = hashlib.sha256(json.dumps([described(self.store), self.view_names], sort_keys=True).encode())
        for numbers in (self._train, self._validation, self.labels.numpy(), self.validation_labels.numpy()):
            digest.update(numbers.data)
        return digest.hexdigest()[:32]

    def bytes(self) -> int:
        """Say how much memory the rows take when they are loaded."""
        return 4 * self.store.features * (self.views * len(self._train) + len(self._validation))

    def load(self) -> Rows:
        """Read all rows into memory, or into the GPU's."""
        shape = (self.views, len(self._train), self.store.features)
        features = torch.empty(shape, device=self.device)
        held_out = torch.empty(len(self._validation), shape[2], device=self.device)
        if self.device.type == "cpu":  # gathered where it is to be: nothing but the rows themselves takes memory
            for number, view in enumerate(features):
                self._gather(self._train + number * self.store.rows, view)
            self._gather(self._validation, held_out)
        else:
            position = 0
            for part, _, _ in self.chunks(torch.arange(shape[0] * shape[1]), self.validation_rows()):
                features.view(-1, shape[2])[position : position + len(part)] = part
                position += len(part)
            position = 0
            for part, _ in self.validation():
                held_out[position : position + len(part)] = part
                position += len(part)
        labels = self.labels.to(self.device), self.validation_labels.to(self.device)
        return Rows(features, labels[0], held_out, labels[1], self.mean, self.std, self.classes, self.fingerprint)

    def chunks(self, order: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give training rows, the next ones gathered by a thread meanwhile."""
        order = order.cpu()
        parts = torch.split(order, rows)
        everything = torch.arange(min(rows, len(order)), device=self.device)
        for part, features in zip(parts, self._ahead(map(self._numbers, parts), rows), strict=True):
            yield features, self.labels[part % len(self._train)].to(self.device), everything[: len(part)]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give validation rows, the next ones gathered by a thread meanwhile."""
        size = self.validation_rows()
        parts = np.split(self._validation, range(size, len(self._validation), size))
        labels = torch.split(self.validation_labels, size)
        for part, features in zip(labels, self._ahead(iter(parts), min(size, len(self._validation))), strict=True):
            yield features, part.to(self.device)

    def _ahead(self, parts: Iterator[np.ndarray], rows: int) -> Iterator[Tensor]:
        """Gather parts into two buffers in turn: one is read while the other is filled."""
        on_gpu = self.device.type == "cuda"
        buffers = [torch.empty(rows, self.store.features, pin_memory=on_gpu) for _ in range(2)]
        copied = [torch.cuda.Event() for _ in range(2)] if on_gpu else []  # type: ignore[no-untyped-call]
        stream = torch.cuda.Stream(self.device) if on_gpu else None  # type: ignore[no-untyped-call]

        def fill(number: int, numbers: np.ndarray) -> Tensor:
            out = buffers[number % 2][: len(numbers)]
            if stream is None:
                self._gather(numbers, out, threads=1)
                return out
            copied[number % 2].synchronize()  # what this buffer held before has left it
            self._gather(numbers, out)
            with torch.cuda.stream(stream):
                features = out.to(self.device, non_blocking=True)
                copied[number % 2].record()
            return features

        with ThreadPoolExecutor(1) as gatherer:
            ahead = None
            for number, numbers in enumerate(parts):
                following = gatherer.submit(fill, number, numbers)
                if ahead is not None:
                    yield self._arrived(ahead.result(), stream)
                ahead = following
            if ahead is not None:
                yield self._arrived(ahead.result(), stream)

    def _arrived(self, features: Tensor, stream: "torch.cuda.Stream | None") -> Tensor:
        if stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(stream)
            features.record_stream(current)
        return features


def described(store: "FeatureStore") -> list[Any]:
    """Give what decides the numbers that a store holds: the checksums of its shards, and where they come from."""
    manifest = store.manifest
    parts = [manifest[name] for name in ("backbone", "preprocess", "dtype", "features")]
    return [*parts, [(shard["rows"], shard["crc32"]) for shard in manifest["shards"]]]


def labels_of(store: "FeatureStore") -> tuple[Tensor, tuple[str, ...]]:
    """Give a store's labels (rows,) and the names of the classes; without names they are 0, 1, ...

    Raises:
        DataError: there are no labels, or one is out of range; the message names the row of the store.
    """
    labels = store.labels
    if labels is None or not len(labels):
        raise DataError(f"{store.path} has no labels to tune a head with; extract a labelled data set")
    names = store.classes if store.classes is not None else tuple(map(str, range(max(0, int(labels.max())) + 1)))
    bad = (labels < 0) | (labels >= len(names))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise DataError(
            f"row {row} of {store.path} ({printable(store.ids[row])}) has label {int(labels[row])}, but there are "
            f"{len(names)} classes (labels 0 to {len(names) - 1}); {int(bad.sum())} rows have such labels"
        )
    return labels, names


def moments(runs: Iterable[Tensor], features: int) -> tuple[Tensor, Tensor]:
    """Merge runs of rows (n, D) into their mean and standard deviation (D,), float32, one where a feature is constant.

    Sums are float64; they depend on the runs and not on the number of threads.
    """
    mean, squares, count = np.zeros(features), np.zeros(features), 0
    for run in runs:
        _store.moments(run.numpy(), float(count), mean, squares, torch.get_num_threads())
        count += len(run)
    std = np.sqrt(squares / count)
    # A constant feature has a deviation of rounding errors only.
    std = np.where(std > 1e-6 * np.abs(mean) + 1e-12, std, 1.0)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))


def standardised(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: int) -> Rows:
    """Bring features (N, D) or (views, N, D) to zero mean and unit variance over the training rows of all views."""
    features = train[0] if train[0].dim() == 3 else train[0][None]
    runs = (run.float().contiguous() for view in features for run in torch.split(view, MOMENT_ROWS))
    mean, std = moments(runs, features.shape[-1])
    return Rows((features - mean) / std, train[1], (val[0] - mean) / std, val[1], mean, std, classes)


def too_large(store: "FeatureStore", memory: str = "auto", device: str | torch.device = "cpu") -> bool:
    """Say whether a store's rows are to be read chunk by chunk.

    Args:
        store: of features.
        memory: "load": never; "stream": always; "auto": where they would take more than half of what is free.
        device: where they would be loaded.

    Raises:
        UsageError: no such form.
    """
    if memory not in MEMORY:
        raise UsageError(f"memory must be one of {', '.join(MEMORY)}; got {memory!r}")
    size = 4 * store.features * len(store.views) * store.rows
    return memory == "stream" or memory == "auto" and size > LOADED_SHARE * available_memory(torch.device(device))


def open_rows(
    store: "FeatureStore",
    validation_share: float,
    seed: int,
    *,
    memory: str = "auto",
    device: str | torch.device = "cpu",
) -> Source:
    """Divide a store's rows, class by class, and open them in the form that fits.

    Args:
        store: of labelled images; training rows are seen in the views identity and flip, as far as there are.
        validation_share: share of the rows that is held out.
        seed: decides which.
        memory: "load": into memory (a GPU's with a device); "stream": chunk by chunk; "auto": loaded where that takes
            at most half of what is free.
        device: where to train.

    Raises:
        DataError: the store has no labels or one out of range, or a row is not finite; the message names the row.
        UsageError: no such form, or the share is not between 0 and 1.
    """
    streamed = too_large(store, memory, device)
    labels, names = labels_of(store)
    train, validation = holdout(labels.numpy(), validation_share, seed)
    views = ("identity", "flip") if "flip" in store.views else ("identity",)
    rows = StoredRows(store, train, validation, labels, len(names), views, device)
    return rows if streamed else rows.load()
