"""`Dataset`: images with or without labels, whole in memory or decoded from files when they are asked for."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sslfast.errors import DataError

Images = NDArray[np.uint8]
Rows = NDArray[np.int64]


class Skipped(NamedTuple):
    """An image that was left out, and why.

    Args:
        path: where it lies; bytes that are no UTF-8 are kept by surrogate escapes, so that the path can be opened.
        reason: in a few words.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        """Say path and reason in one line that any terminal can show."""
        return f"{printable(self.path)}: {self.reason}"


def printable(text: str) -> str:
    r"""Give ``text`` as one line that any terminal shows: bytes that are no UTF-8 become ``\xff``, line ends ``\n``."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not decode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


class Digest(Protocol):
    """What collects the bytes of a fingerprint."""

    def update(self, data: Any, /) -> None:
        """Add bytes."""


class Decoded(NamedTuple):
    """What `Pixels.decoded` gives: the new pixels, one row per wanted image, and what could not be read.

    Args:
        pixels: whole in memory (or memory-mapped); row i is the i-th of the wanted rows.
        kept: positions among the wanted rows that were read, ascending.
        skipped: the others.
    """

    pixels: "Pixels"
    kept: Rows
    skipped: list[Skipped]


class Located(NamedTuple):
    """Where the bytes of images lie in memory.

    Args:
        buffer: (bytes,), uint8.
        offsets: (B,) of each image's first byte, int64.
        row: (B,) bytes from one of its rows to the next, int64.
        column: bytes from one pixel to the next: 3 where the colours lie together, else 1.
        channel: bytes from one colour to the next; 0: the images are grey.
    """

    buffer: Images
    offsets: Rows
    row: Rows
    column: int
    channel: int


class Pixels(Protocol):
    """Where a data set's images come from; rows count from 0 over all images of the source."""

    def image_size(self, rows: Rows) -> tuple[int, int] | None:
        """Height and width in pixels where the images of ``rows`` agree, else None."""

    def measured(self, rows: Rows) -> Rows:
        """Give height and width of each of ``rows`` in pixels, (B, 2)."""

    def located(self, rows: Rows) -> Located | None:
        """Say where the images of ``rows`` lie in memory; None where they have to be read first."""

    def encoded(self, row: int) -> bytes | None:
        """Give the content of an image's file; None where it comes from none."""

    def read(self, row: int) -> Images:
        """Give one image (H, W, 3)."""

    def gather(self, rows: Rows) -> Images:
        """Give images (B, H, W, 3) of one size."""

    def identify(self, digest: Digest, rows: Rows) -> None:
        """Add to ``digest`` what tells these images from others."""

    def decoded(self, rows: Rows, size: int | None) -> Decoded | None:
        """Give ``rows`` in memory, resized to size x size where a size is given; None: nothing is to be done."""


class Dataset:
    """Images in a fixed order, with labels where there are any.

    Args:
        name: as it was asked for: "fashion-mnist", "folder:holiday", ...
        split: "train", "test", ...
        pixels: where the images come from.
        ids: of each image: its path, or "train/000017".
        labels: index into ``classes`` of each image; None: without labels.
        classes: name of each class.
        skipped: images that were left out while the set was read.
        rows: of ``pixels``, one per image of this set; all of them, in order, by default.

    Attributes:
        name: see above; so are ``split``, ``ids``, ``classes`` and ``skipped``.
        labels: int64 array (N,), or None.
        image_size: (H, W) in pixels where all images agree, else None.
    """

    def __init__(
        self,
        name: str,
        split: str,
        pixels: Pixels,
        *,
        ids: Sequence[str],
        labels: ArrayLike | None = None,
        classes: Sequence[str] | None = None,
        skipped: Sequence[Skipped] = (),
        rows: Rows | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self.ids = tuple(ids)
        self.classes = None if classes is None else tuple(classes)
        self.labels = None if labels is None else np.ascontiguousarray(labels, dtype=np.int64)
        self.skipped = tuple(skipped)
        self._pixels = pixels
        self._rows = np.arange(len(self.ids), dtype=np.int64) if rows is None else rows
        if len(self._rows) != len(self.ids) or (self.labels is not None and len(self.labels) != len(self.ids)):
            raise DataError(
                f"{name} {split}: {len(self._rows)} images, {len(self.ids)} ids and "
                f"{'no' if self.labels is None else len(self.labels)} labels do not belong together"
            )
        self.image_size = pixels.image_size(self._rows)
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        """Count the images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Images, int]:
        """Give one image (H, W, 3), uint8, and its label (-1 without labels).

        Raises:
            IndexError: there is no such image.
            DataError: its file cannot be read any more, or is damaged behind its header.
        """
        row = int(self._rows[index])
        return self._pixels.read(row), -1 if self.labels is None else int(self.labels[index])

    def __repr__(self) -> str:
        """Say what it is in a line."""
        shape = "different sizes" if self.image_size is None else "{} x {}".format(*self.image_size)
        classes = "no labels" if self.classes is None else f"{len(self.classes)} classes"
        return f"<Dataset {printable(self.name)} {self.split}: {len(self)} images, {shape}, {classes}>"

    def images(self, indices: ArrayLike) -> Images:
        """Give the images at ``indices`` (B,) as one array (B, H, W, 3), uint8, that the caller owns.

        Raises:
            DataError: the images differ in size, or a file of them cannot be read.
        """
        if self.image_size is None:
            raise DataError(
                f"{printable(self.name)}: the images differ in size and do not fit one array; use decoded(size)"
            )
        picked = np.asarray(indices)
        return self._pixels.gather(self._rows[picked if picked.size else picked.astype(np.int64)])

    def sizes(self, indices: ArrayLike | None = None) -> Rows:
        """Give height and width in pixels of the images at ``indices`` (by default of all), (B, 2), int64."""
        return self._pixels.measured(self._rows if indices is None else self._rows[np.asarray(indices)])

    def located(self) -> Located | None:
        """Say where the images lie in memory; None where they have to be decoded, or do not lie in even steps."""
        return self._pixels.located(self._rows)

    def encoded(self, index: int) -> bytes | None:
        """Give the content of an image's file; None where it comes from none.

        Raises:
            DataError: the file cannot be read any more.
        """
        return self._pixels.encoded(int(self._rows[index]))

    def decoded(self, size: int | None = None) -> "Dataset":
        """Give this set with every image decoded in memory, without those that cannot be read.

        A set larger than half of the free memory lies in an unnamed file in the cache folder, memory-mapped.

        Args:
            size: side in pixels of the square that every image is resized to, as `models.Preprocess` does it: bilinear,
                antialiased, the whole image. None keeps the sizes.

        Returns:
            A new set, or this one where nothing is to be done; what was left out is added to ``skipped``.

        Raises:
            DataError: no image can be read, or there is no room.
        """
        result = self._pixels.decoded(self._rows, size)
        if result is None:
            return self
        if len(self) and not len(result.kept):
            raise DataError(f"{printable(self.name)} {self.split}: no image can be read; {result.skipped[0]}")
        return self._selected(result.kept, result.pixels, result.kept, result.skipped)

    def subset(self, indices: ArrayLike) -> "Dataset":
        """Give the images at ``indices`` (B,), in that order; pixels are shared, not copied."""
        picked = np.asarray(indices)
        if picked.dtype == np.bool_:
            picked = np.flatnonzero(picked)
        picked = picked.astype(np.int64)
        return self._selected(picked, self._pixels, self._rows[picked], ())

    def _selected(self, picked: Rows, pixels: Pixels, rows: Rows, skipped: Sequence[Skipped]) -> "Dataset":
        return Dataset(
            self.name,
            self.split,
            pixels,
            ids=[self.ids[i] for i in picked],
            labels=None if self.labels is None else self.labels[picked],
            classes=self.classes,
            skipped=(*self.skipped, *skipped),
            rows=rows,
        )

    def fingerprint(self) -> str:
        """Hash what makes this set: pixels (of files: paths, sizes and times), labels, class names and the order."""
        if self._fingerprint is None:
            digest = hashlib.sha256(f"sslfast-dataset-1 {len(self)}\0".encode())
            digest.update("\0".join(self.classes or ()).encode("utf-8", "surrogateescape"))
            digest.update(b"-" if self.labels is None else self.labels.tobytes())
            self._pixels.identify(digest, self._rows)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint
