"""The feature store's engine (csrc/store)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

def crc32(content: Buffer, value: int = 0) -> int:
    """Checksum one run of bytes as zlib does."""

def vector_bits(limit: int = 0) -> int:
    """Limit the vectors that are used to 64 (none), 128, 256 or 512 bits; give what is used."""

def moments(
    values: NDArray[np.float32],
    before: float,
    mean: NDArray[np.float64],
    squares: NDArray[np.float64],
    threads: int,
) -> None:
    """Merge rows into the mean of ``before`` rows and the sum of squared distances from it, in place."""

class File:
    """A file that is mapped for reading, with a CRC-32 per block; a buffer of its bytes."""

    def __init__(self, descriptor: int, size: int, expected: Sequence[int], block_bytes: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def check(self, first: int, stop: int, threads: int) -> int:
        """Compare those of a run of blocks that have not been compared; give the first damaged one, or -1."""

class Rows:
    """Rows of one length in runs: (file, rows, offset of the first one's first byte)."""

    def __init__(self, parts: Sequence[tuple[File, int, int]], features: int, dtype: str) -> None: ...
    def gather(
        self,
        rows: NDArray[np.int64],
        out: NDArray[np.uint8],
        as_stored: bool,
        mean: NDArray[np.float32] | None,
        deviation: NDArray[np.float32] | None,
        finite: bool,
        read_ahead: bool,
        threads: int,
    ) -> tuple[int, int, int]:
        """Copy rows to ``out``.

        Returns:
            0; or 1 and the position of a row that is not there; or 2, part and block that is damaged; or 3 and the
            position of a row that is not finite.
        """
