"""Files of a feature store: safetensors whose bytes are determined, with a CRC-32 per block of 1 MiB."""

import json
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslfast import _store
from sslfast.errors import IntegrityError, SslfastError
from sslfast.files import writing

BLOCK_BYTES = 1 << 20
"""A checksum covers so many bytes of a file, counted from its start; the last block may be shorter."""

HEADER_ALIGNMENT = 64
"""The first tensor starts at a multiple of this, so that rows of usual lengths are aligned for vector loads."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""What features may be stored as."""

_SAFETENSORS_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a file lies.

    Attributes:
        header: the file's first bytes: length, JSON, padding.
        offsets: of each tensor's first byte in the file, by name.
        bytes: length of the whole file.
    """

    header: bytes
    offsets: dict[str, int]
    bytes: int


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of a tensor in a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Length of the tensor's data."""
        return math.prod(self.shape) * self.dtype.itemsize


def layout(specs: Sequence[TensorSpec]) -> Layout:
    """Lay tensors out in the order given, without gaps, behind a header that depends on nothing else."""
    entries: dict[str, object] = {}
    position = 0
    for spec in specs:
        entries[spec.name] = {
            "dtype": _SAFETENSORS_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.bytes],
        }
        position += spec.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    padding = -(8 + len(text)) % HEADER_ALIGNMENT
    header = (len(text) + padding).to_bytes(8, "little") + text + b" " * padding
    offsets = {}
    start = len(header)
    for spec in specs:
        offsets[spec.name] = start
        start += spec.bytes
    return Layout(header, offsets, start)


def block_count(size: int) -> int:
    """How many checksums a file of ``size`` bytes has."""
    return -(-size // BLOCK_BYTES)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> tuple[Layout, str]:
    """Write contiguous CPU tensors as one safetensors file, atomically.

    Returns:
        The layout, and the checksums: eight hexadecimal digits per block.

    Raises:
        SslfastError: the disk is full, or the folder cannot be written.
    """
    plan = layout([TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()])
    pieces = [memoryview(plan.header), *map(_as_bytes, tensors.values())]
    with writing(path) as partial, partial.open("wb") as handle:
        for piece in pieces:
            handle.write(piece)
    return plan, _checksums(pieces)


def _as_bytes(tensor: Tensor) -> memoryview:
    content: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return content


def _checksums(pieces: Sequence[memoryview]) -> str:
    """Checksum consecutive pieces of a file block by block."""
    digits = []
    checksum, filled = 0, 0
    for piece in pieces:
        while len(piece):
            part = piece[: BLOCK_BYTES - filled]
            piece = piece[len(part) :]
            checksum = _store.crc32(part, checksum)
            filled += len(part)
            if filled == BLOCK_BYTES:
                digits.append(f"{checksum:08x}")
                checksum, filled = 0, 0
    if filled:
        digits.append(f"{checksum:08x}")
    return "".join(digits)


def check_file(path: Path, size: int) -> None:
    """See that ``path`` is a file of ``size`` bytes, and neither a link nor anything else.

    Raises:
        IntegrityError: it is not.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise IntegrityError(f"{path} is missing from the feature store; extract again into a new folder") from None
    except OSError as error:
        raise SslfastError(f"cannot read {path}: {error.strerror}") from error
    _check_stat(path, found, size)


def _check_stat(path: Path, found: os.stat_result, size: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise IntegrityError(f"{path} is not a regular file (a link, perhaps); a feature store holds plain files only")
    if found.st_size != size:
        raise IntegrityError(
            f"{path} is damaged: it has {found.st_size} bytes, the manifest says {size}; "
            "extract again into a new folder"
        )


class CheckedFile:
    """A memory-mapped file whose blocks are compared with their checksums when they are first touched.

    Args:
        path: the file.
        size: its length in bytes.
        checksums: eight hexadecimal digits per block.

    Raises:
        IntegrityError: the file is missing, of another length, or no regular file.
    """

    def __init__(self, path: Path, size: int, checksums: str) -> None:
        self.path = path
        self.size = size
        expected = np.frombuffer(bytes.fromhex(checksums), dtype=">u4").tolist()
        self.mapped = _map(path, size, expected)
        self._blocks = len(expected)

    def check_range(self, start: int, stop: int) -> None:
        """Compare the blocks that hold bytes ``start`` to ``stop - 1`` and have not been compared yet.

        Raises:
            IntegrityError: the content of a block is not what was written.
        """
        if stop > start:
            self._check(start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1)

    def check_all(self) -> int:
        """Compare every block and return their number."""
        self._check(0, self._blocks)
        return self._blocks

    def _check(self, first: int, stop: int) -> None:
        damaged = self.mapped.check(first, stop, torch.get_num_threads())
        if damaged >= 0:
            raise self.damage(damaged)

    def damage(self, block: int) -> IntegrityError:
        """Say that a block is damaged."""
        start = block * BLOCK_BYTES
        return IntegrityError(
            f"{self.path} is damaged in block {block} (bytes {start} to {min(start + BLOCK_BYTES, self.size) - 1}); "
            "extract again into a new folder"
        )

    def read(self, start: int, stop: int) -> bytes:
        """Copy bytes ``start`` to ``stop - 1``, compared before."""
        self.check_range(start, stop)
        return self._view()[start:stop].tobytes()

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Copy the bytes from ``offset`` as a tensor, compared before."""
        length = math.prod(shape) * dtype.itemsize
        self.check_range(offset, offset + length)
        content = self._view()[offset : offset + length].copy()
        return torch.from_numpy(content).view(dtype).view(shape)

    def _view(self) -> NDArray[np.uint8]:
        return np.frombuffer(memoryview(self.mapped), dtype=np.uint8)


def _map(path: Path, size: int, expected: list[int]) -> _store.File:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        check_file(path, size)  # names a missing file or a link
        raise SslfastError(f"cannot read {path}") from None
    try:
        # By descriptor: what was looked at is what is mapped. It is closed then, so a store may have more shards than a
        # process open files.
        _check_stat(path, os.fstat(descriptor), size)
        return _store.File(descriptor, size, expected, BLOCK_BYTES)
    except OSError as error:
        raise SslfastError(
            f"cannot map {path} ({error.strerror}); a limit on address space (ulimit -v) must be larger than the store"
        ) from error
    finally:
        os.close(descriptor)
