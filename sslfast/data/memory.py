"""Images that are in memory as one array, or in an unnamed file that is mapped into it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslfast.data.dataset import Decoded, Digest, Images, Located, Rows
from sslfast.data.image import resized
from sslfast.data.places import writable_cache_folder
from sslfast.errors import DataError
from sslfast.progress import Bar, bar

CHUNK_BYTES = 32 << 20
"""Work on large arrays is done in pieces of about this size, so that no second copy of the set is ever held."""

BAR_FROM = 2000
"""Fewer images than this are done before a progress bar could be read."""


class ArrayPixels:
    """Images of one size.

    Args:
        array: (N, H, W) grey or (N, H, W, 3), uint8, of any strides; grey is expanded to RGB when it is read.
    """

    def __init__(self, array: Images) -> None:
        self.array = array
        height, width = array.shape[1:3]
        self._size = (int(height), int(width))

    def image_size(self, rows: Rows) -> tuple[int, int] | None:
        """Give height and width in pixels."""
        return self._size

    def measured(self, rows: Rows) -> Rows:
        """Give height and width of each of ``rows`` in pixels, (B, 2)."""
        return np.tile(np.array(self._size, dtype=np.int64), (len(rows), 1))

    def located(self, rows: Rows) -> Located | None:
        """Say where the images lie, unless their colours or columns are of another order."""
        first, row, column = self.array.strides[:3]
        channel = self.array.strides[3] if self.array.ndim == 4 else 0
        if min(first, row, channel) < 0 or (column, channel) != (3, 1) and column != 1 or not self.array.size:
            return None
        end = sum((many - 1) * step for many, step in zip(self.array.shape, self.array.strides, strict=True)) + 1
        buffer = np.lib.stride_tricks.as_strided(self.array, (end,), (1,), writeable=False)
        return Located(buffer, rows * first, np.full(len(rows), row, dtype=np.int64), column, channel)

    def encoded(self, row: int) -> bytes | None:
        """Give nothing: the image comes from no file of its own."""
        return None

    def read(self, row: int) -> Images:
        """Give one image (H, W, 3)."""
        image: Images = self.gather(np.array([row], dtype=np.int64))[0]
        return image

    def gather(self, rows: Rows) -> Images:
        """Give images (B, H, W, 3)."""
        picked = self._pick(rows)
        if picked.ndim == 4:
            return picked
        out = np.empty((*picked.shape, 3), dtype=np.uint8)
        # Channel by channel: four times as fast as one broadcast over the short last axis.
        for channel in range(3):
            out[..., channel] = picked
        return out

    def _pick(self, rows: Rows) -> Images:
        # take is the faster one, but it would copy a whole strided array first.
        if self.array.flags.c_contiguous:
            return np.asarray(np.take(self.array, rows, axis=0))
        return np.ascontiguousarray(self.array[rows])

    def _chunks(self, rows: Rows) -> Iterator[tuple[int, Images]]:
        step = max(1, CHUNK_BYTES // max(1, int(np.prod(self.array.shape[1:]))))
        for start in range(0, len(rows), step):
            yield start, self._pick(rows[start : start + step])

    def identify(self, digest: Digest, rows: Rows) -> None:
        """Add the shape and every pixel."""
        digest.update(f"pixels {self.array.shape[1:]}\0".encode())
        for _, chunk in self._chunks(rows):
            digest.update(chunk)

    def decoded(self, rows: Rows, size: int | None) -> Decoded | None:
        """Resize, where a size is given that is not the images' own."""
        if size is None or self._size == (size, size):
            return None
        out = allocated((len(rows), size, size, *self.array.shape[3:]))
        with watched(f"resizing to {size} x {size}", len(rows)) as progress:
            for start, chunk in self._chunks(rows):
                out[start : start + len(chunk)] = resized(chunk, size)
                progress.advance(len(chunk))
        return Decoded(ArrayPixels(out), np.arange(len(rows), dtype=np.int64), [])


class RaggedPixels:
    """Images of different sizes, one after the other in one buffer.

    Args:
        buffer: (total bytes,), uint8.
        offsets: (N,) where each image begins.
        sizes: (N, 2) height and width in pixels.
    """

    def __init__(self, buffer: Images, offsets: Rows, sizes: NDArray[np.int64]) -> None:
        self.buffer, self.offsets, self.sizes = buffer, offsets, sizes

    def image_size(self, rows: Rows) -> tuple[int, int] | None:
        """Height and width in pixels where the images of ``rows`` agree, else None."""
        return common_size(self.sizes[rows])

    def measured(self, rows: Rows) -> Rows:
        """Give height and width of each of ``rows`` in pixels, (B, 2)."""
        return self.sizes[rows]

    def located(self, rows: Rows) -> Located | None:
        """Say where the images lie."""
        return Located(self.buffer, self.offsets[rows], 3 * self.sizes[rows, 1], 3, 1)

    def encoded(self, row: int) -> bytes | None:
        """Give nothing: the image is decoded."""
        return None

    def view(self, row: int) -> Images:
        """Give one image (H, W, 3) as a part of the buffer."""
        height, width = map(int, self.sizes[row])
        start = int(self.offsets[row])
        return self.buffer[start : start + height * width * 3].reshape(height, width, 3)

    def read(self, row: int) -> Images:
        """Give one image (H, W, 3)."""
        return self.view(row).copy()

    def gather(self, rows: Rows) -> Images:
        """Give images (B, H, W, 3) of one size."""
        return np.stack([self.view(int(row)) for row in rows])

    def identify(self, digest: Digest, rows: Rows) -> None:
        """Add every image's size and pixels."""
        for row in rows:
            digest.update(self.sizes[row].tobytes())
            digest.update(np.ascontiguousarray(self.view(int(row))))

    def decoded(self, rows: Rows, size: int | None) -> Decoded | None:
        """Resize, where a size is given."""
        if size is None:
            return None
        out = allocated((len(rows), size, size, 3))
        with watched(f"resizing to {size} x {size}", len(rows)) as progress:
            for position, row in enumerate(rows):
                out[position] = resized(self.view(int(row))[None], size)[0]
                progress.advance()
        return Decoded(ArrayPixels(out), np.arange(len(rows), dtype=np.int64), [])


def common_size(sizes: NDArray[np.int64]) -> tuple[int, int] | None:
    """Give the (H, W) that all rows of ``sizes`` (N, 2) share, or None."""
    if not len(sizes) or (sizes != sizes[0]).any():
        return None
    return int(sizes[0, 0]), int(sizes[0, 1])


def memory_limit() -> int:
    """Half of the memory that is free now, in bytes: a larger set goes to a file."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // 2
    return 4 << 30


def allocated(shape: tuple[int, ...]) -> Images:
    """Give an array of uint8 in memory, or mapped from an unnamed file in the cache folder where it is too large.

    Raises:
        DataError: the disk has no room for it.
    """
    total = int(np.prod(shape, dtype=np.int64))
    if total <= memory_limit():
        return np.empty(shape, dtype=np.uint8)
    folder = writable_cache_folder()
    try:
        # The file has no name from the start: nothing is left behind, whatever ends this process.
        with tempfile.TemporaryFile(dir=folder) as handle:
            # Reserved now, because a page that finds the disk full later kills the process with SIGBUS.
            os.posix_fallocate(handle.fileno(), 0, total)
            return np.memmap(handle, dtype=np.uint8, mode="r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"the decoded images need {total / 2**30:.1f} GiB, more than half of the free memory, and {folder} cannot "
            f"hold them: {error.strerror}; set XDG_CACHE_HOME to a folder with room, or choose a smaller size"
        ) from error


@contextmanager
def watched(title: str, total: int) -> Iterator[Bar]:
    """Show a progress bar over ``total`` images, unless they are so few that it would only flicker."""
    if total >= BAR_FROM:
        with bar(title, total, "images") as progress:
            yield progress
    else:
        yield _NoBar()


class _NoBar:
    def advance(self, count: int = 1) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""
