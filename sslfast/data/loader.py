"""Batches of augmented views in an order that depends on seed, epoch and step alone."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslfast.data.buffers import Buffers
from sslfast.data.dataset import Dataset, Images, Rows, Skipped, printable
from sslfast.data.drawing import NOISE, ORDER, ViewParameters, draw_plan, generator
from sslfast.data.native import NativeRenderer, PixelTable
from sslfast.data.render import TorchRenderer, add_noise
from sslfast.data.views import ViewPlan
from sslfast.errors import DataError, UsageError

RENDERERS = ("native", "dali", "torch")
AHEAD = 2
"""Batches that are made before they are asked for, where threads or a GPU make them."""


@dataclass(frozen=True)
class Batch:
    """Views of some images.

    Attributes:
        views: one tensor a group of the plan, (V x B, 3, size, size), float32 in [0, 1]; view v of image b stands in
            row v x B + b.
        indices: the images in the data set, int64 (B,).
    """

    views: tuple[Tensor, ...]
    indices: Rows


class ViewLoader:
    """Reads a data set in shuffled batches and gives all views of a plan of every image.

    Each epoch holds every image exactly once: N images make ceil(N / batch_size) batches whose sizes differ by one
    at most, so that no tiny last batch upsets batch normalisation. Any step can be asked for first, and the
    views of a step are the same whenever they are asked for.

    Images in memory are not copied: the renderer reads them where they are. Images in files are decoded for each batch,
    by threads, ahead of the reader. Those that cannot be are left out of their batch and listed in ``skipped``; the
    other images of the batch have the views that they would have had.

    Args:
        dataset: in memory (`Dataset.decoded`) or in files.
        plan: which views.
        size: side of a full view, in pixels.
        batch_size: images of a batch, at most.
        seed: of order and views.
        device: where the views go.
        threads: that decode files; 0: one for each core.
        renderer: ``native`` (compiled, on the CPU), ``dali`` (on ``device``) or ``torch`` (the slow definition).

    Raises:
        UsageError: there is no such renderer.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: ViewPlan,
        size: int,
        batch_size: int,
        seed: int,
        *,
        device: torch.device | str = "cpu",
        threads: int = 0,
        renderer: str = "native",
    ) -> None:
        if renderer not in RENDERERS:
            raise UsageError(f"unknown renderer {renderer!r}; there are: {', '.join(RENDERERS)}")
        self.dataset = dataset
        self.plan = plan
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.threads = threads or len(os.sched_getaffinity(0))
        self.renderer = renderer
        if renderer == "dali":
            try:
                import nvidia.dali  # noqa: F401
            except ImportError as error:
                raise UsageError("the renderer dali needs NVIDIA DALI: pip install nvidia-dali-cuda130") from error
        self.sizes = tuple(group.pixels(size) for group in plan.groups)
        self._measures = dataset.sizes()
        located = dataset.located() if renderer == "native" else None
        self._table = None if located is None else PixelTable.of(located, self._measures)
        self._skipped: dict[int, Skipped] = {}
        self._epoch: tuple[int, list[Rows]] = (-1, [])
        self._buffers = Buffers()

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.dataset) // self.batch_size)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Images that could not be decoded so far, in the data set's order."""
        return tuple(self._skipped[index] for index in sorted(self._skipped))

    def indices(self, epoch: int, step: int) -> Rows:
        """List the images of a batch, those included that turn out to be unreadable."""
        return self._order(epoch)[step]

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Give the batches of the run's steps [first_step, last_step).

        Raises:
            DataError: no image of a batch can be decoded.
        """
        positions = iter(range(first_step, last_step))
        if self.renderer == "dali":
            from sslfast.data.dali_stream import dali_batches

            yield from dali_batches(self, positions)
            return
        if self._table is not None and self.device.type == "cpu":
            # Torch's own threads do the work: a thread that went ahead would only take them from the training.
            yield from map(self._made, positions)
            return
        reader, decoders = ThreadPoolExecutor(1), ThreadPoolExecutor(self.threads)
        try:
            waiting = deque(reader.submit(self._made, one, decoders) for one in islice(positions, AHEAD))
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(reader.submit(self._made, one, decoders) for one in islice(positions, 1))
                yield batch
        finally:
            reader.shutdown(cancel_futures=True)
            decoders.shutdown(cancel_futures=True)

    def rows_of(self, position: int) -> Rows:
        """List the images of the run's step ``position``."""
        return self.indices(*divmod(position, self.steps_per_epoch))

    def drawn(self, position: int, rows: Rows) -> list[ViewParameters]:
        """Draw what the views of a step need, one table a group."""
        heights, widths = self._measures[rows].T
        return draw_plan(self.plan, self.seed, position, heights, widths, self.size)

    def read(self, index: int) -> Images | None:
        """Decode one image; None, and an entry in ``skipped``, where that fails."""
        if index in self._skipped:
            return None
        try:
            image, _ = self.dataset[index]
        except DataError as error:
            self.leave_out(index, str(error.__cause__ or error))
            return None
        if image.shape[:2] != tuple(self._measures[index]):
            self.leave_out(index, "not of the size that its header says")
            return None
        return image

    @property
    def left_out(self) -> dict[int, str]:
        """Why each image that could not be decoded so far is left out, by its index."""
        return {index: skipped.reason for index, skipped in dict(self._skipped).items()}  # threads may add to it

    def leave_out(self, index: int, reason: str) -> None:
        """Note that an image cannot be used; it is not tried again."""
        self._skipped[index] = Skipped(self.dataset.ids[index], reason)

    def finished(self, position: int, rows: Rows, views: Sequence[Tensor], drawn: Sequence[ViewParameters]) -> Batch:
        """Add noise where the plan has any, move the views to their device and make a batch of them."""
        found = []
        for number, (one, parameters) in enumerate(zip(views, drawn, strict=True)):
            if parameters.noise.any():
                random = generator(self.seed, NOISE, position, *([number] if number else []))
                one = add_noise(one, parameters, random)
            found.append(one.to(self.device, non_blocking=True))
        return Batch(tuple(found), rows)

    def chosen(self, rows: Rows, kept: Sequence[int], drawn: Sequence[ViewParameters]) -> list[ViewParameters]:
        """Take the parameters of some images of a batch only."""
        if len(kept) == len(rows):
            return list(drawn)
        if not len(kept):
            raise DataError(
                f"{printable(self.dataset.name)}: none of the {len(rows)} images of a batch can be read, "
                f"the first: {self._skipped[int(rows[0])]}"
            )
        return [
            parameters.rows(np.arange(len(parameters)).reshape(-1, len(rows))[:, kept].reshape(-1))
            for parameters in drawn
        ]

    def _order(self, epoch: int) -> list[Rows]:
        known, order = self._epoch
        if known != epoch:
            shuffled = generator(self.seed, ORDER, epoch).permutation(len(self.dataset))
            order = np.array_split(shuffled, self.steps_per_epoch)
            self._epoch = epoch, order
        return order

    def _empty(self, count: int, size: int) -> Tensor:
        if self.device.type == "cuda":
            return torch.empty(count, 3, size, size, pin_memory=True)
        return self._buffers.take(count, 3, size, size)

    def _made(self, position: int, decoders: Executor | None = None) -> Batch:
        rows = self.rows_of(position)
        drawn = self.drawn(position, rows)
        if self._table is not None:
            views = [
                NativeRenderer(size).render(self._table, rows, parameters, self._empty(len(parameters), size))
                for size, parameters in zip(self.sizes, drawn, strict=True)
            ]
            return self.finished(position, rows, views, drawn)
        assert decoders is not None
        views = [self._empty(len(one), size) for size, one in zip(self.sizes, drawn, strict=True)]
        targets = [one.numpy() for one in views]

        def decode(place: int) -> bool:
            image = self.read(int(rows[place]))
            if image is None:
                return False
            for size, parameters, target in zip(self.sizes, drawn, targets, strict=True):
                # One image's views are made by the thread that decoded it, while its pixels are in the cache.
                of_image = np.arange(place, len(parameters), len(rows))
                target[of_image] = self._render(size, image, parameters.rows(of_image))
            return True

        kept = np.flatnonzero(np.fromiter(decoders.map(decode, range(len(rows))), bool, len(rows)))
        drawn = self.chosen(rows, kept.tolist(), drawn)
        if len(kept) < len(rows):
            views = [one.view(-1, len(rows), *one.shape[1:])[:, kept].flatten(0, 1) for one in views]
        return self.finished(position, rows[kept], views, drawn)

    def _render(self, size: int, image: Images, parameters: ViewParameters) -> NDArray[np.float32]:
        if self.renderer == "torch":
            return TorchRenderer(size)([image], parameters).numpy()
        return NativeRenderer(size, parallel=False)([image], parameters).numpy()
