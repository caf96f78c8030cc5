"""Batches of augmented views in an order that depends on seed, epoch and step alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslfast.data.dataset import Dataset
from sslfast.data.render import TorchRenderer
from sslfast.data.views import ViewParameters, ViewPolicy, draw_views, generator

# Streams of random numbers under one seed.
ORDER, VIEWS = 0, 1


@dataclass(frozen=True)
class ViewLoader:
    """Reads a decoded data set in shuffled batches and gives several views of every image.

    Each epoch holds every image exactly once: N images make ceil(N / batch_size) batches whose sizes differ by one
    at most, so that no tiny last batch upsets batch normalisation. Any step can be asked for first, and the
    views of a step are the same whenever they are asked for.

    Args:
        dataset: decoded (all images of one size in memory).
        policy: what a view is drawn from.
        size: side of a view, in pixels.
        batch_size: images of a batch, at most.
        seed: of order and views.
        views: of each image.
        device: where the views go.
        threads: of the renderer.
    """

    dataset: Dataset
    policy: ViewPolicy
    size: int
    batch_size: int
    seed: int
    views: int = 2
    device: torch.device = torch.device("cpu")
    threads: int = 2

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.dataset) // self.batch_size)

    def indices(self, epoch: int, step: int) -> NDArray[np.int64]:
        """List the images of a batch."""
        return self._order(epoch)[step]

    def batches(self, first_step: int, last_step: int) -> Iterator[Tensor]:
        """Give the batches of global steps [first_step, last_step) as (views x B, 3, size, size) in [0, 1].

        View v of image b stands in row v x B + b.
        """
        jobs = self._jobs(first_step, last_step)
        try:
            from sslfast.data.dali import DaliRenderer
        except ImportError:
            render = TorchRenderer(self.size)
            for images, parameters in jobs:
                yield render(images, parameters).to(self.device)
            return
        largest = self.views * min(self.batch_size, len(self.dataset))
        yield from DaliRenderer(self.size, largest, self.threads, self.device).stream(jobs)

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        order = generator(self.seed, ORDER, epoch).permutation(len(self.dataset))
        return np.array_split(order, self.steps_per_epoch)

    def _jobs(self, first_step: int, last_step: int) -> Iterator[tuple[NDArray[np.uint8], ViewParameters]]:
        assert self.dataset.image_size is not None
        height, width = self.dataset.image_size
        order: list[NDArray[np.int64]] = []
        for position in range(first_step, last_step):
            epoch, step = divmod(position, self.steps_per_epoch)
            if step == 0 or not order:
                order = self._order(epoch)
            images = self.dataset.images(order[step])
            random = generator(self.seed, VIEWS, position)
            count = self.views * len(images)
            yield np.concatenate([images] * self.views), draw_views(self.policy, random, count, height, width)
