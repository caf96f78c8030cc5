"""Batches of a data set for a backbone, read ahead by a thread; images that cannot be read are left out."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sslfast.data.dataset import Dataset
from sslfast.errors import DataError
from sslfast.models import Preprocess


@dataclass
class Batch:
    """Images that are about to go through the backbone.

    Attributes:
        images: (B, H, W, 3), uint8, where all images of the set have one size; else (B, 3, size, size), preprocessed.
        positions: of each image in the data set, (B,), int64.
        dropped: positions that could not be read.
        skipped: id and reason of each of these.
    """

    images: Tensor
    positions: np.ndarray
    dropped: list[int] = field(default_factory=list)
    skipped: list[list[str]] = field(default_factory=list)


class BatchReader:
    """Reads batches one ahead of their use; images of files are decoded on all cores.

    Args:
        dataset: the images.
        preprocess: of the backbone; images of different sizes go through it one by one.
        batch_size: images per batch.
    """

    def __init__(self, dataset: Dataset, preprocess: Preprocess, batch_size: int) -> None:
        self.dataset = dataset
        self.preprocess = preprocess
        self.batch_size = batch_size
        self._reader = ThreadPoolExecutor(1)
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1)

    def __enter__(self) -> Self:
        """Hold the threads."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads."""
        self._reader.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Give images ``start`` to ``stop - 1`` in order; the last batch may be smaller."""
        parts = [np.arange(first, min(first + self.batch_size, stop)) for first in range(start, stop, self.batch_size)]
        ahead = self._reader.submit(self._read, parts[0])
        for number in range(len(parts)):
            batch = ahead.result()
            if number + 1 < len(parts):
                ahead = self._reader.submit(self._read, parts[number + 1])
            yield batch

    def _read(self, positions: np.ndarray) -> Batch:
        if self.dataset.image_size is not None:
            try:
                return Batch(torch.from_numpy(self.dataset.images(positions)), positions)
            except DataError:
                pass  # one of them is damaged: find out which
        images, kept = [], []
        batch = Batch(torch.empty(0, 3, self.preprocess.size, self.preprocess.size), positions)
        for position, result in zip(positions.tolist(), self._decoders.map(self._decode, positions), strict=True):
            if isinstance(result, Tensor):
                images.append(result)
                kept.append(position)
            else:
                batch.dropped.append(position)
                batch.skipped.append([self.dataset.ids[position], str(result)])
        batch.positions = np.array(kept, dtype=np.int64)
        if images:
            batch.images = torch.cat(images)
        return batch

    def _decode(self, position: int) -> Tensor | DataError:
        try:
            image, _ = self.dataset[int(position)]
        except DataError as error:
            return error
        return self.preprocess(torch.from_numpy(image)[None])
