"""A feature store: the features of every image of a data set, read with verification."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sslfast.errors import IntegrityError, SslfastError, UsageError
from sslfast.features.format import BLOCK_BYTES, DTYPES, CheckedFile, check_file, layout
from sslfast.features.journal import JOURNAL_NAME
from sslfast.features.manifest import index_specs, read_manifest, shard_specs
from sslfast.models import Preprocess


@dataclass(frozen=True)
class Verification:
    """What `FeatureStore.verify` has compared.

    Attributes:
        files: number of files, the manifest among them.
        blocks: number of checksums of shards and index.
        bytes: length of shards and index together.
    """

    files: int
    blocks: int
    bytes: int


class FeatureStore:
    """Features, labels and ids of a data set, opened with `open`.

    Shards are memory-mapped, so a store may be larger than memory; each block of 1 MiB is compared with its
    checksum when it is first touched, so no damaged value is ever returned.

    Attributes:
        path: the folder.
        manifest: the content of manifest.json (docs/features.md).
        rows: number of images.
        features: length of a feature vector.
        views: names of the views, "identity" first by default.
        dtype: what features are stored as; they are returned as float32.
        classes: names of the classes, or None.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.rows: int = manifest["rows"]
        self.features: int = manifest["features"]
        self.views: tuple[str, ...] = tuple(manifest["views"])
        self.dtype = DTYPES[manifest["dtype"]]
        self.classes = None if manifest["classes"] is None else tuple(manifest["classes"])
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self._ends = np.cumsum([shard["rows"] for shard in self._shards])
        self._files: dict[int, CheckedFile] = {}

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        backbone_fingerprint: str | None = None,
        preprocess: Preprocess | None = None,
    ) -> Self:
        """Open a complete store.

        Args:
            path: its folder.
            backbone_fingerprint: what `Backbone.fingerprint` must have been; None: any.
            preprocess: what the backbone's preprocessing must have been; None: any.

        Raises:
            SslfastError: there is no store, or its extraction was not finished.
            IntegrityError: a file is missing, of the wrong length or no plain file, or the manifest is damaged.
            UsageError: the store was made by another backbone or with another preprocessing.
        """
        folder = Path(path)
        try:
            manifest = read_manifest(folder)
        except FileNotFoundError:
            if (folder / JOURNAL_NAME).exists():
                raise SslfastError(
                    f"{folder} holds an extraction that was not finished; run the same extract command again, "
                    "it continues"
                ) from None
            raise SslfastError(f"there is no feature store in {folder}; make one with sslfast extract") from None
        store = cls(folder, manifest)
        for entry in [*manifest["shards"], manifest["index"]]:
            check_file(folder / entry["name"], entry["bytes"])
        found = manifest["backbone"]["fingerprint"]
        if backbone_fingerprint is not None and backbone_fingerprint != found:
            raise UsageError(
                f"{folder} holds features of another backbone (fingerprint {found[:12]}, asked for "
                f"{backbone_fingerprint[:12]}); extract anew with this backbone"
            )
        if preprocess is not None and describe_preprocess(preprocess) != manifest["preprocess"]:
            raise UsageError(
                f"{folder} holds features of images preprocessed with {manifest['preprocess']}, asked for "
                f"{describe_preprocess(preprocess)}; extract anew"
            )
        return store

    def __len__(self) -> int:
        """Return the number of images."""
        return self.rows

    @cached_property
    def labels(self) -> Tensor | None:
        """Class numbers (rows,), int64, or None where the data set has no labels."""
        if not self.manifest["index"]["labels"]:
            return None
        return self._read_index("labels")

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """What each image is called in its data set: the file's path, or "train/000017"."""
        offsets = self._read_index("id_offsets").tolist()
        content = self._read_index("ids").numpy().tobytes()
        if offsets[0] != 0 or offsets[-1] != len(content) or any(np.diff(offsets) < 0):
            raise IntegrityError(f"{self._index.path} is damaged: its ids overlap; extract again into a new folder")
        parts = (content[start:stop] for start, stop in zip(offsets, offsets[1:], strict=False))
        return tuple(part.decode("utf-8", "surrogateescape") for part in parts)

    def batch(self, indices: Iterable[int] | Tensor | np.ndarray, view: str = "identity") -> Tensor:
        """Gather rows.

        Args:
            indices: row numbers in any order, repeated or not, from 0 to rows - 1.
            view: one of `views`.

        Returns:
            (B, features), float32.

        Raises:
            IndexError: a row number is out of range.
            IntegrityError: a block that holds such a row is damaged.
        """
        rows = _row_numbers(indices)
        if rows.size and (rows.min() < 0 or rows.max() >= self.rows):
            raise IndexError(f"row numbers go from 0 to {self.rows - 1}, got {rows.min()} to {rows.max()}")
        self._check_view(view)
        owners = np.searchsorted(self._ends, rows, side="right")
        # Rows are copied as plain numbers by numpy: a batch is too small to be worth torch's threads.
        kind = np.dtype(f"u{self.dtype.itemsize}")
        gathered = np.empty((len(rows), self.features), kind)
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            local = rows[places] - self._shards[number]["first_row"]
            self._check_rows(number, view, local)
            gathered[places] = self._view(number, view).view(torch.uint8).numpy().view(kind)[local]
        return torch.from_numpy(gathered.view(np.uint8)).view(self.dtype).float()

    def load(self, view: str = "identity") -> Tensor:
        """Read all features of a view into memory: (rows, features), float32."""
        self._check_view(view)
        result = torch.empty(self.rows, self.features)
        for number, shard in enumerate(self._shards):
            values = self._view(number, view)
            start = shard["data"][view]
            self._file(number).check_range(start, start + values.numel() * values.itemsize)
            result[shard["first_row"] : shard["first_row"] + shard["rows"]] = values
        return result

    def verify(self) -> Verification:
        """Compare the manifest, every block of every file and every header with what was written.

        Raises:
            IntegrityError: something differs; the message names the file and the block.
        """
        if read_manifest(self.path) != self.manifest:
            raise IntegrityError(f"{self.path} holds another store than the one that was opened; open it again")
        blocks, size = 0, 0
        for shard in self._shards:
            specs = shard_specs(list(self.views), self.manifest["dtype"], shard["rows"], self.features)
            blocks += _verify_file(self.path, shard, layout(specs).header)
            size += shard["bytes"]
        index = self.manifest["index"]
        blocks += _verify_file(
            self.path, index, layout(index_specs(self.rows, index["labels"], index["id_bytes"])).header
        )
        if len(self.ids) != self.rows:
            raise IntegrityError(f"{self._index.path} is damaged: it has {len(self.ids)} ids for {self.rows} rows")
        return Verification(len(self._shards) + 2, blocks, size + index["bytes"])

    @cached_property
    def _index(self) -> CheckedFile:
        index = self.manifest["index"]
        return CheckedFile(self.path / index["name"], index["bytes"], index["crc32"])

    def _read_index(self, name: str) -> Tensor:
        index = self.manifest["index"]
        spec = {spec.name: spec for spec in index_specs(self.rows, index["labels"], index["id_bytes"])}[name]
        start = index["data"][name]
        self._index.check_range(start, start + spec.bytes)
        return self._index.tensor(start, spec.dtype, spec.shape).clone()

    def _file(self, number: int) -> CheckedFile:
        if number not in self._files:
            shard = self._shards[number]
            self._files[number] = CheckedFile(self.path / shard["name"], shard["bytes"], shard["crc32"])
        return self._files[number]

    def _view(self, number: int, view: str) -> Tensor:
        shard = self._shards[number]
        return self._file(number).tensor(shard["data"][view], self.dtype, (shard["rows"], self.features))

    def _check_rows(self, number: int, view: str, local: np.ndarray) -> None:
        width = self.features * self.dtype.itemsize
        start = self._shards[number]["data"][view] + local * width
        first, last = start // BLOCK_BYTES, (start + width - 1) // BLOCK_BYTES
        touched = np.zeros(int(last.max()) + 1, dtype=bool)
        for step in range(int((last - first).max()) + 1):
            touched[np.minimum(first + step, last)] = True
        self._file(number).check_blocks(np.flatnonzero(touched))

    def _check_view(self, view: str) -> None:
        if view not in self.views:
            raise UsageError(f"{self.path} holds no view {view!r}; it holds: {', '.join(self.views)}")


def describe_preprocess(preprocess: Preprocess) -> dict[str, Any]:
    """Put a preprocessing in the form that the manifest holds."""
    values = asdict(preprocess)
    return {"size": values["size"], "mean": list(values["mean"]), "std": list(values["std"])}


def _row_numbers(indices: Iterable[int] | Tensor | np.ndarray) -> np.ndarray:
    if isinstance(indices, Tensor):
        indices = indices.cpu().numpy()
    rows = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise TypeError(f"row numbers must be a list of integers, got shape {rows.shape} of {rows.dtype}")
    return rows.astype(np.int64)


def _verify_file(folder: Path, entry: dict[str, Any], header: bytes) -> int:
    """Compare every block of a file, mapped afresh, and its header; return the number of blocks."""
    file = CheckedFile(folder / entry["name"], entry["bytes"], entry["crc32"])
    blocks = file.check_all()
    if file.content[: len(header)].numpy().tobytes() != header:
        raise IntegrityError(f"{file.path} is damaged in block 0: its header is not the one of these tensors")
    return blocks
