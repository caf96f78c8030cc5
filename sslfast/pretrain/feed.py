"""The batches of a training: augmented views from a loader, this process's rows of each, and their labels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslfast.data import Dataset
from sslfast.data.loader import ViewLoader
from sslfast.data.views import plan
from sslfast.pretrain.parallel import Ranks


@dataclass(frozen=True)
class Batch:
    """Rows of a step.

    Attributes:
        views: one tensor per group of the plan, (V x B, 3, s, s); view v of image b stands in row v x B + b.
        indices: of the images, (B,).
        labels: (B,), int64; None without labels.
        share: of all processes' rows of the step, as a fraction.
    """

    views: tuple[Tensor, ...]
    indices: NDArray[np.int64]
    labels: Tensor | None
    share: float


class Feed:
    """Gives every step's batch in parts.

    Args:
        dataset: decoded.
        policy_name: of the views' plan.
        size: side of a view of relative size 1, in pixels.
        batch_size: images of a step, of all processes together.
        seed: of order and views.
        device: where the views go.
        parts: of a step.
        ranks: this process among others.
        labelled: whether batches carry labels.
    """

    def __init__(
        self,
        dataset: Dataset,
        policy_name: str,
        size: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        parts: int = 1,
        ranks: Ranks | None = None,
        labelled: bool = False,
    ) -> None:
        self.dataset = dataset
        self.device = device
        self.parts = parts
        self.ranks = ranks or Ranks()
        self.views: tuple[int, ...] = views_of(policy_name)
        self.loader = ViewLoader(dataset, plan(policy_name), size, batch_size, seed, device=device)
        self.labels = None if not labelled else torch.from_numpy(np.asarray(dataset.labels)).long()

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.loader.steps_per_epoch

    def images_done(self, step: int) -> int:
        """Count the images of the steps before ``step``, of all processes."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * len(self.dataset) + sum(len(self.loader.indices(epochs, i)) for i in range(rest))

    def images(self, step: int) -> int:
        """Count the images of a step, of all processes."""
        return len(self.loader.indices(*divmod(step, self.steps_per_epoch)))

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """Give the parts of every step in [first, last), as this process sees them."""
        for batch in self.loader.batches(first, last):
            yield self._parts(batch.views, batch.indices)

    def _parts(self, views: tuple[Tensor, ...], indices: NDArray[np.int64]) -> list[Batch]:
        count = len(indices)
        if self.parts == 1 and self.ranks.group is None:
            return [Batch(views, indices, self._labels(indices), 1.0)]
        shares = np.array_split(np.arange(count), min(self.parts, max(1, count // 2)))
        batches = []
        for rows, part in zip(self.ranks.rows(count, len(shares)), shares, strict=True):
            chosen = torch.from_numpy(rows)
            own = tuple(group.view(-1, count, *group.shape[1:])[:, chosen].flatten(0, 1) for group in views)
            batches.append(Batch(own, indices[rows], self._labels(indices[rows]), len(part) / count))
        return batches

    def _labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        return None if self.labels is None else self.labels[torch.from_numpy(indices)].to(self.device)


def views_of(policy_name: str) -> tuple[int, ...]:
    """Count the views of each group of a plan.

    Raises:
        UsageError: there is no such plan.
    """
    return tuple(len(group.policies) for group in plan(policy_name).groups)
