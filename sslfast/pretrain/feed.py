"""The batches of a training: augmented views from a loader, this process's rows of each, and their labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslfast.data import Dataset, printable
from sslfast.data.drawing import ViewParameters
from sslfast.data.loader import Batch as LoadedBatch
from sslfast.data.loader import ViewLoader
from sslfast.data.views import plan
from sslfast.errors import DataError
from sslfast.pretrain.parallel import Ranks


@dataclass(frozen=True)
class Batch:
    """Rows of a step.

    Attributes:
        views: one tensor per group of the plan, (V x B, 3, s, s); view v of image b stands in row v x B + b.
        indices: of the images, (B,).
        labels: (B,), int64; None without labels.
        share: of the step's rows that this part of all processes' has, as a fraction.
    """

    views: tuple[Tensor, ...]
    indices: NDArray[np.int64]
    labels: Tensor | None
    share: float


class Feed:
    """Gives every step's batch in parts.

    Args:
        dataset: in memory or in files; of these, what cannot be decoded is missing in its batch.
        policy_name: of the views' plan.
        size: side of a view of relative size 1, in pixels.
        batch_size: images of a step, of all processes together.
        seed: of order and views.
        device: where the views go.
        parts: of a step.
        ranks: this process among others.
        labelled: whether batches carry labels.
        renderer: of the loader.
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
        renderer: str = "native",
    ) -> None:
        self.dataset = dataset
        self.device = device
        self.parts = parts
        self.ranks = ranks or Ranks()
        self.views: tuple[int, ...] = views_of(policy_name)
        views = plan(policy_name)
        noisy = any(policy.noise for group in views.groups for policy in group.policies)
        # Noise is drawn for a whole batch at once, so a process needs all of it to have what one process would.
        self._shared = self.ranks.group is not None and not noisy
        if self._shared:
            shared = _SharedLoader(dataset, views, size, batch_size, seed, device=device, renderer=renderer)
            shared.mine = self._mine
            self.loader: ViewLoader = shared
        else:
            self.loader = ViewLoader(dataset, views, size, batch_size, seed, device=device, renderer=renderer)
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
        """Count the images of a step, of all processes, without those that are known to be unreadable."""
        planned = self._planned(step)
        return len(planned) - int(np.isin(planned, list(self.loader.left_out)).sum())

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """Give the parts of every step in [first, last), as this process sees them.

        Raises:
            DataError: fewer than two images of a part can be decoded.
        """
        for step, batch in enumerate(self.loader.batches(first, last), start=first):
            if self.parts == 1 and self.ranks.group is None:
                parts = [Batch(batch.views, batch.indices, self._labels(batch.indices), 1.0)]
            else:
                parts = list(self._divided(step, batch))
            if min(len(part.indices) for part in parts) < 2:
                raise DataError(
                    f"{printable(self.dataset.name)}: fewer than 2 images of step {step} can be read, of "
                    f"{len(self.loader.skipped)} that cannot the first is {self.loader.skipped[0]}; remove them"
                )
            yield parts

    def _divided(self, step: int, batch: LoadedBatch) -> Iterator[Batch]:
        # What the parts are does not depend on what can be read: every process knows it.
        planned = self._planned(step)
        rows = self.ranks.rows(len(planned), self._part_count(len(planned)))
        sizes = [len(part) for part in np.array_split(planned, len(rows))]
        for part, size in zip(rows, sizes, strict=True):
            chosen = np.flatnonzero(np.isin(batch.indices, planned[part]))
            places = torch.from_numpy(chosen).to(self.device)
            views = tuple(
                group.view(-1, len(batch.indices), *group.shape[1:])[:, places].flatten(0, 1) for group in batch.views
            )
            indices = batch.indices[chosen]
            yield Batch(views, indices, self._labels(indices), size / len(planned))

    def _planned(self, step: int) -> NDArray[np.int64]:
        return self.loader.indices(*divmod(step, self.steps_per_epoch))

    def _part_count(self, count: int) -> int:
        return min(self.parts, max(1, count // 2))

    def _mine(self, count: int) -> NDArray[np.int64]:
        return np.concatenate(self.ranks.rows(count, self._part_count(count)))

    def _labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        return None if self.labels is None else self.labels[torch.from_numpy(indices)].to(self.device)


class _SharedLoader(ViewLoader):
    """Renders some rows of every batch; what is drawn for them is what one process draws for the whole."""

    mine: Callable[[int], NDArray[np.int64]]

    def rows_of(self, position: int) -> NDArray[np.int64]:
        """List the images of this process's rows."""
        whole = super().rows_of(position)
        return whole[self.mine(len(whole))]

    def drawn(self, position: int, rows: NDArray[np.int64]) -> list[ViewParameters]:
        """Draw for the whole batch, and take what belongs to this process's rows."""
        whole = super().rows_of(position)
        mine = self.mine(len(whole))
        return [
            drawn.rows(np.arange(len(drawn)).reshape(-1, len(whole))[:, mine].reshape(-1))
            for drawn in super().drawn(position, whole)
        ]


def views_of(policy_name: str) -> tuple[int, ...]:
    """Count the views of each group of a plan.

    Raises:
        UsageError: there is no such plan.
    """
    return tuple(len(group.policies) for group in plan(policy_name).groups)
