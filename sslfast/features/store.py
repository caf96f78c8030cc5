"""A feature store: the features of every image of a data set, read with verification."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sslfast import _store
from sslfast.errors import DataError, IntegrityError, SslfastError, UsageError
from sslfast.features.format import DTYPES, CheckedFile, check_file, layout
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
        dtype: what features are stored as; `batch` and `load` return float32.
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
        self._engines: dict[tuple[str, ...], _store.Rows] = {}

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

    def __reduce__(self) -> tuple[type[Self], tuple[Path, dict[str, Any]]]:
        """Copy into another process as what it is made of: files are mapped, and checksums compared, anew."""
        return type(self), (self.path, self.manifest)

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
        """Gather rows, on as many threads as PyTorch has.

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
        out = torch.empty(len(rows), self.features)
        self.gather(rows, out, view)
        return out

    def gather(
        self,
        rows: ArrayLike,
        out: Tensor,
        view: str | tuple[str, ...] = "identity",
        *,
        standardise: tuple[ArrayLike, ArrayLike] | None = None,
        finite: bool = False,
        read_ahead: bool = False,
        threads: int | None = None,
    ) -> None:
        """Gather rows into a tensor that is there, converted and standardised on the way.

        Args:
            rows: row numbers, whole numbers (B,).
            out: (B, features) on the CPU, contiguous, float32 or the store's own `dtype`; pinned or not.
            view: one of `views`, or several: row r of the v-th of them is number v * `rows` + r then.
            standardise: mean and deviation (features,), float32: out is (row - mean) / deviation.
            finite: refuse NaN and infinity.
            read_ahead: the store may not be in memory: its pages are asked for before they are touched.
            threads: None: as many as PyTorch has.

        Raises:
            IndexError: a row number is out of range.
            IntegrityError: a block that holds such a row is damaged.
            DataError: with ``finite``, a row that is not; the message names the shard and the row.
        """
        views = (view,) if isinstance(view, str) else view
        as_stored = out.dtype == self.dtype != torch.float32
        if not as_stored and out.dtype != torch.float32:
            raise TypeError(f"out must be float32 or {self.dtype}, got {out.dtype}")
        rows = np.asarray(rows)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise TypeError(f"rows must be whole numbers of one dimension, got {rows.dtype} {rows.shape}")
        if tuple(out.shape) != (len(rows), self.features):
            raise ValueError(f"out must be {(len(rows), self.features)}, got {tuple(out.shape)}")
        rows = np.ascontiguousarray(rows, np.int64)
        mean, deviation = (
            (None, None) if standardise is None else (np.ascontiguousarray(one, np.float32) for one in standardise)
        )
        outcome, where, block = self._engine(views).gather(
            rows,
            out.view(torch.uint8).numpy(),
            as_stored,
            mean,
            deviation,
            finite,
            read_ahead,
            torch.get_num_threads() if threads is None else threads,
        )
        if outcome == 1:
            last = len(views) * self.rows - 1
            raise IndexError(f"row numbers go from 0 to {last}, got {rows.min()} to {rows.max()}")
        if outcome == 2:
            raise self._files[where % len(self._files)].damage(block)
        if outcome == 3:
            number, row = divmod(int(rows[where]), self.rows)
            shard = next(s for s in self._shards if row < s["first_row"] + s["rows"])
            raise DataError(
                f"{self.path / shard['name']} holds features that are not finite: row {row - shard['first_row']} "
                f"of the shard, row {row} of the store, view {views[number]}; extract anew"
            )

    def load(self, view: str = "identity") -> Tensor:
        """Read all features of a view into memory: (rows, features), float32."""
        return self.batch(np.arange(self.rows), view)

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
        return self._index.tensor(index["data"][name], spec.dtype, spec.shape)

    @cached_property
    def _files(self) -> list[CheckedFile]:
        return [CheckedFile(self.path / shard["name"], shard["bytes"], shard["crc32"]) for shard in self._shards]

    def _engine(self, views: tuple[str, ...]) -> _store.Rows:
        if views not in self._engines:
            parts = [
                (file.mapped, shard["rows"], shard["data"][view])
                for view in map(self._checked_view, views)
                for file, shard in zip(self._files, self._shards, strict=True)
            ]
            self._engines[views] = _store.Rows(parts, self.features, self.manifest["dtype"])
        return self._engines[views]

    def _checked_view(self, view: str) -> str:
        if view not in self.views:
            raise UsageError(f"{self.path} holds no view {view!r}; it holds: {', '.join(self.views)}")
        return view


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
    return np.ascontiguousarray(rows, dtype=np.int64)


def _verify_file(folder: Path, entry: dict[str, Any], header: bytes) -> int:
    """Compare every block of a file, mapped afresh, and its header; return the number of blocks."""
    file = CheckedFile(folder / entry["name"], entry["bytes"], entry["crc32"])
    blocks = file.check_all()
    if file.read(0, len(header)) != header:
        raise IntegrityError(f"{file.path} is damaged in block 0: its header is not the one of these tensors")
    return blocks
