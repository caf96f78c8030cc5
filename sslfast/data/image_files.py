"""Images in files: scanned by their headers when the set is loaded, decoded when they are asked for."""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sslfast.data.dataset import Dataset, Decoded, Digest, Images, Located, Rows, Skipped, printable
from sslfast.data.image import UnreadableImage, decode, read_header, resized
from sslfast.data.memory import ArrayPixels, RaggedPixels, allocated, common_size, watched
from sslfast.data.tree import Member, Tree
from sslfast.errors import DataError

CHUNK = 32
"""Images that one thread decodes before the progress bar moves."""


class FilePixels:
    """Images that lie in a tree of files.

    Args:
        tree: the folder or archive.
        members: its images.
        sizes: (N, 2) height and width in pixels, as their headers say.
    """

    def __init__(self, tree: Tree, members: Sequence[Member], sizes: NDArray[np.int64]) -> None:
        self.tree, self.members, self.sizes = tree, members, sizes

    def image_size(self, rows: Rows) -> tuple[int, int] | None:
        """Height and width in pixels where the images of ``rows`` agree, else None."""
        return common_size(self.sizes[rows])

    def measured(self, rows: Rows) -> Rows:
        """Give height and width of each of ``rows`` in pixels, (B, 2), as their headers say."""
        return self.sizes[rows]

    def located(self, rows: Rows) -> Located | None:
        """Give nothing: the images have to be decoded."""
        return None

    def encoded(self, row: int) -> bytes | None:
        """Give the content of an image's file.

        Raises:
            DataError: it cannot be read any more.
        """
        try:
            with self.tree.read(self.members[row].path) as stream:
                return stream.read()
        except (OSError, UnreadableImage) as error:
            raise DataError(f"{printable(self.tree.full_path(self.members[row].path))}: {error}") from error

    def _decode(self, row: int) -> Images:
        try:
            with self.tree.read(self.members[row].path) as stream:
                return decode(stream)
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error

    def read(self, row: int) -> Images:
        """Decode one image (H, W, 3).

        Raises:
            DataError: it cannot be read.
        """
        try:
            return self._decode(row)
        except UnreadableImage as error:
            path = printable(self.tree.full_path(self.members[row].path))
            raise DataError(f"{path}: {error}; decoded() leaves such images out") from error

    def gather(self, rows: Rows) -> Images:
        """Decode images (B, H, W, 3) of one size.

        Raises:
            DataError: one cannot be read, or is not of the size that its header said.
        """
        size = self.image_size(rows) or (0, 0)
        out = np.empty((len(rows), *size, 3), dtype=np.uint8)
        for position, row in enumerate(rows):
            image = self.read(int(row))
            if image.shape != out.shape[1:]:
                path = printable(self.tree.full_path(self.members[row].path))
                raise DataError(f"{path} has changed since the set was loaded; load it again")
            out[position] = image
        return out

    def identify(self, digest: Digest, rows: Rows) -> None:
        """Add path, length and time of change of every file."""
        digest.update(b"files\0")
        for row in rows:
            member = self.members[row]
            digest.update(member.path.encode("utf-8", "surrogateescape"))
            digest.update(struct.pack("<xqq", member.size, member.time))

    def decoded(self, rows: Rows, size: int | None) -> Decoded:
        """Decode all ``rows`` with a pool of threads, resized where a size is given."""
        import torch

        sizes = self.sizes[rows]
        common = (size, size) if size is not None else common_size(sizes)
        offsets = np.zeros(len(rows), dtype=np.int64)
        if common is not None:
            out = allocated((len(rows), *common, 3))
        else:
            lengths = sizes.prod(axis=1) * 3
            offsets[1:] = np.cumsum(lengths)[:-1]
            out = allocated((int(lengths.sum()),))
        ragged = RaggedPixels(out, offsets, sizes)

        def decode_chunk(start: int) -> list[tuple[int, str]]:
            failed = []
            for position in range(start, min(start + CHUNK, len(rows))):
                try:
                    image = self._decode(int(rows[position]))
                    if image.shape[:2] != tuple(sizes[position]):
                        raise UnreadableImage("not of the size that its header says")
                    if size is not None and image.shape[:2] != (size, size):
                        image = resized(image[None], size)[0]
                    target = ragged.view(position) if common is None else out[position]
                    target[...] = image
                except UnreadableImage as error:
                    failed.append((position, str(error)))
            return failed

        bad: list[tuple[int, str]] = []
        starts = range(0, len(rows), CHUNK)
        threads = torch.get_num_threads()
        # The pool's threads are the parallelism: each of them resizes alone.
        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,))
        try:
            with watched("decoding", len(rows)) as progress:
                for start, failed in zip(starts, pool.map(decode_chunk, starts), strict=True):
                    bad += failed
                    progress.advance(min(CHUNK, len(rows) - start))
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
        kept = np.setdiff1d(np.arange(len(rows), dtype=np.int64), np.array([p for p, _ in bad], dtype=np.int64))
        skipped = [Skipped(self.tree.full_path(self.members[int(rows[p])].path), reason) for p, reason in bad]
        return Decoded(ragged if common is None else ArrayPixels(out), kept, skipped)


def _headers(tree: Tree, members: Iterable[Member]) -> Iterator[tuple[int, int] | str]:
    for member in members:
        try:
            with tree.open(member.path) as stream:
                yield read_header(stream)
        except UnreadableImage as error:
            yield str(error)
        except OSError as error:
            yield error.strerror or "cannot be read"


def file_dataset(
    name: str,
    split: str,
    tree: Tree,
    members: Sequence[Member],
    *,
    labels: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    skipped: Sequence[Skipped] = (),
    size: tuple[int, int] | None = None,
) -> Dataset:
    """Make a data set of files, without those whose header shows that they cannot be used.

    Args:
        name: of the set.
        split: of it.
        tree: where the files lie.
        members: the files.
        labels: of each file (N,), or None.
        classes: names of the classes, or None.
        skipped: what was left out already.
        size: (H, W) that all images are known to have; their headers are not read then.

    Raises:
        DataError: no image is left.
    """
    if size is not None:
        sizes = np.tile(np.array(size, dtype=np.int64), (len(members), 1))
        kept = np.arange(len(members))
        bad: list[Skipped] = []
    else:
        found: list[tuple[int, int]] = []
        rows = []
        bad = []
        with watched("reading image headers", len(members)) as progress:
            for row, header in enumerate(_headers(tree, members)):
                progress.advance()
                if isinstance(header, str):
                    bad.append(Skipped(tree.full_path(members[row].path), header))
                else:
                    found.append(header)
                    rows.append(row)
        sizes = np.array(found, dtype=np.int64).reshape(-1, 2)
        kept = np.array(rows, dtype=np.int64)
    left_out = (*skipped, *bad)
    if not len(kept):
        reason = f"; {len(left_out)} skipped, the first: {left_out[0]}" if left_out else ""
        raise DataError(f"{printable(name)} {split} has no image that can be read{reason}; give a folder of images")
    used = [members[int(row)] for row in kept]
    return Dataset(
        name,
        split,
        FilePixels(tree, used, sizes),
        ids=[tree.full_path(member.path) for member in used],
        labels=None if labels is None else np.asarray(labels, dtype=np.int64)[kept],
        classes=classes,
        skipped=left_out,
    )
