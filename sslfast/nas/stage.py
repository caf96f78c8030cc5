"""One stage of a search: a supernet from scratch, its two optimisers and its two halves of the images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslfast._reference.primitives import PRIMITIVES
from sslfast.data import Dataset, holdout
from sslfast.data.drawing import generator
from sslfast.data.loader import Batch, ViewLoader
from sslfast.data.views import plan
from sslfast.errors import DataError
from sslfast.models import Preprocess
from sslfast.nas.architect import Architect
from sslfast.nas.config import SearchConfig
from sslfast.nas.discretise import keep_best
from sslfast.nas.objective import QUARTERS, Objective
from sslfast.nas.search_network import SMALLEST, SearchNetwork

Primitives = tuple[tuple[str, ...], ...]
"""Names of each edge's operations."""

# Streams of random numbers under one seed.
_DIVISION, _CLASSES, _WEIGHTS, _STEP, _TURNS, _ORDER = range(10, 16)

RANDOM_CLASSES = 10
"""Classes of the random-labels task where the data set has none."""


@dataclass(frozen=True)
class Halves:
    """The images of a search, divided.

    Attributes:
        train: rows that weights are trained on, int64.
        valid: rows that the architecture is judged on, int64.
        classes: of the task; 1 where there is no cross-entropy.
        targets: class of every image of the set for the task, int64 (N,); None for rotation and for none.
    """

    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    classes: int
    targets: NDArray[np.int64] | None


def divide(dataset: Dataset, config: SearchConfig) -> Halves:
    """Divide a data set as the config says, class by class where it has labels.

    Raises:
        DataError: labels that are read are missing or all alike, a half has fewer than 2 images, or the images are
            smaller than two reductions allow.
    """
    if dataset.image_size is not None and min(dataset.image_size) < SMALLEST:
        raise DataError(
            f"a search needs images of at least {SMALLEST} x {SMALLEST} pixels, for cells halve them twice; "
            f"{dataset.name} has {dataset.image_size[0]} x {dataset.image_size[1]}"
        )
    labels = None if dataset.labels is None or not len(dataset.labels) else np.asarray(dataset.labels, np.int64)
    if labels is not None and labels.min() < 0:
        labels = None
    if config.needs_labels:
        if labels is None:
            raise DataError(
                f"cross-entropy needs a label for every image; {dataset.name} lacks some (--s 1 needs none)"
            )
        if len(np.unique(labels)) < 2:
            raise DataError(
                f"cross-entropy needs images of at least 2 classes, {dataset.name} has 1; give more classes, or --s 1"
            )
    if len(dataset) < 4:
        raise DataError(f"a search needs at least 4 images, 2 in each half, {dataset.name} has {len(dataset)}")
    if labels is not None and np.bincount(labels).max() > 1:
        train, valid = holdout(labels, 1 - config.train_fraction, config.seed)
    else:
        order = generator(config.seed, _DIVISION, 0).permutation(len(dataset))
        first = min(max(2, round(config.train_fraction * len(dataset))), len(dataset) - 2)
        train, valid = np.sort(order[:first]), np.sort(order[first:])
    if min(len(train), len(valid)) < 2:
        raise DataError(
            f"a search needs at least 2 images in each half, {dataset.name} gives {len(train)} and {len(valid)}; "
            "give more images, or another --train-fraction"
        )
    count = len(dataset.classes) if dataset.classes else int(labels.max()) + 1 if labels is not None else 0
    if config.s == 1:
        return Halves(train, valid, 1, None)
    if config.task == "rotation":
        return Halves(train, valid, QUARTERS, None)
    if config.task == "random-labels":
        count = count if count > 1 else RANDOM_CLASSES
        return Halves(train, valid, count, generator(config.seed, _CLASSES, 1).integers(0, count, len(dataset)))
    return Halves(train, valid, count, labels)


class Stage:
    """What a stage's steps change, and the step.

    Args:
        dataset: decoded, all images of one size.
        halves: its division.
        config: of the search.
        number: of the stage, from 0 on.
        normal: primitives of the normal cells' edges.
        reduce: primitives of the reduction cells' edges.
        size: side of a view in pixels.
        preprocess: mean and standard deviation of the pixels.
        device: that computes.
    """

    def __init__(
        self,
        dataset: Dataset,
        halves: Halves,
        config: SearchConfig,
        number: int,
        normal: Primitives,
        reduce: Primitives,
        size: int,
        preprocess: Preprocess,
        device: torch.device,
    ) -> None:
        self.config, self.number, self.device, self.preprocess = config, number, device, preprocess
        self.halves = halves
        views = plan(config.plan)
        self.views = views.views
        self.loaders = {
            name: ViewLoader(
                dataset.subset(rows),
                views,
                size,
                config.batch_size,
                _seed(config.seed, _ORDER, number, which),
                device=device,
            )
            for which, (name, rows) in enumerate((("train", halves.train), ("valid", halves.valid)), start=1)
        }
        torch.manual_seed(_seed(config.seed, _WEIGHTS, number, 1))
        self.network = SearchNetwork(
            config.channels,
            halves.classes,
            config.cells[number],
            k=config.partial,
            primitives_normal=normal,
            primitives_reduce=reduce,
            edge_normalisation=config.edge_normalisation,
            skip_dropout=config.skip_dropout_at(number, 0),
        )
        self.objective = Objective(self.network, config, self.views).to(device).train()
        self.optimizer = torch.optim.SGD(
            self.objective.parameters(),
            config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.architect = Architect(
            self.objective,
            self.network.arch_parameters(),
            learning_rate=config.alpha_rate,
            weight_decay=config.alpha_decay,
            clip=config.alpha_clip,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch: batches of the weights' half."""
        return self.loaders["train"].steps_per_epoch

    @property
    def steps(self) -> int:
        """Steps of the stage."""
        return self.config.epochs * self.steps_per_epoch

    def batches(self, first: int) -> Iterator[tuple[int, Batch, Batch | None]]:
        """Give every step from ``first`` on with its batch, and the architecture's where that moves."""
        moving = [epoch for epoch in range(self.config.epochs) if self.config.moves_alphas(epoch)]
        begin, end = moving[0] * self.steps_per_epoch, (moving[-1] + 1) * self.steps_per_epoch
        valid = self.loaders["valid"].batches(max(first, begin), end)
        for step, batch in enumerate(self.loaders["train"].batches(first, self.steps), start=first):
            yield step, batch, next(valid) if begin <= step < end else None

    def step(self, step: int, train: Batch, valid: Batch | None) -> tuple[Tensor, Tensor | None]:
        """Move the architecture, where it moves, then the weights; return both losses, scalars on the device.

        Whatever is drawn (dropout, turns) is a function of seed, stage and step.
        """
        config = self.config
        epoch = step // self.steps_per_epoch
        self.optimizer.param_groups[0]["lr"] = config.learning_rate_at(epoch)
        self.network.skip_dropout = config.skip_dropout_at(self.number, epoch)
        torch.manual_seed(_seed(config.seed, _STEP, self.number, step + 1))
        inputs = self._inputs("train", step, train)
        judged = None
        if valid is not None:
            second_order = (inputs, self.optimizer) if config.unrolled else ()
            judged = self.architect.step(self._inputs("valid", step, valid), *second_order)
        self.optimizer.zero_grad()
        loss = self.objective(*inputs)
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(self.objective.parameters(), config.clip)
        self.optimizer.step()
        return loss.detach(), judged

    def _inputs(self, half: str, step: int, batch: Batch) -> tuple[Tensor, Tensor]:
        images = self.preprocess.normalise(batch.views[0])
        rows = (self.halves.train if half == "train" else self.halves.valid)[batch.indices]
        if self.halves.targets is not None:
            targets = self.halves.targets[rows]
        elif self.objective.rotates:
            draw = generator(self.config.seed, _TURNS, self.number, step, 1 + (half == "valid"))
            targets = draw.integers(0, QUARTERS, len(images))
        else:
            targets = np.zeros(len(rows), np.int64)
        return images, torch.from_numpy(targets).to(self.device)

    def kept(self) -> tuple[Primitives, Primitives]:
        """Give the primitives of the next stage's normal and reduction cells."""
        count = self.config.operations[self.number + 1]
        with torch.no_grad():
            (normal, _), (reduce, _) = self.network.mixtures()
        return (
            keep_best(normal, self.network.primitives_normal, count),
            keep_best(reduce, self.network.primitives_reduce, count),
        )


def first_primitives(steps: int = 4) -> Primitives:
    """Give the primitives of the first stage's edges: all."""
    return (PRIMITIVES,) * sum(2 + i for i in range(steps))


def _seed(seed: int, *position: int) -> int:
    """Make a seed that belongs to a position; positions must not end in zero."""
    return int(np.random.SeedSequence([seed, *position]).generate_state(1, np.uint64)[0] >> np.uint64(1))
