"""The options of an architecture search, apart from the work: so that ``--help`` loads nothing heavy."""

import math
from dataclasses import dataclass
from typing import Literal

from sslfast._reference.primitives import PRIMITIVES
from sslfast.errors import UsageError
from sslfast.options import check_number, check_seed

Task = Literal["labels", "rotation", "random-labels"]
Balance = Literal["plain", "gradient"]


@dataclass(frozen=True)
class SearchConfig:
    """Everything that decides the result of a search.

    The loss is s x Barlow Twins + (1 - s) x cross-entropy. By default P-DARTS's three stages are searched with
    PC-DARTS's edges; cells, operations and skip_dropout have one entry for each stage.

    Args:
        s: share of the Barlow Twins loss, in [0, 1]; 0: cross-entropy alone, 1: no labels are read.
        task: what the cross-entropy predicts: the labels; or, as controls, which quarter turn the image was given
            (rotation), or a class that was drawn for each image once (random-labels).
        balance: plain: the Barlow Twins term is divided by the projection's width. gradient: it is scaled so that its
            gradient at the pooled last cell is as long as the cross-entropy's, for 0 < s < 1.
        cells: of the supernet.
        operations: that every edge holds; a later stage keeps the best of the one before.
        skip_dropout: probability that an entry of a skip connection is dropped at a stage's first epoch. It decays to
            nothing (P-DARTS, section 3.3.2).
        channels: of a node in the first cells.
        partial: k: one k-th of the channels take part in an edge; 1: all (DARTS).
        edge_normalisation: weigh a node's edges by soft-maxed betas (PC-DARTS).
        most_skips: skip connections that the normal cell may keep; -1: any number.
        unrolled: DARTS's second order; without it the first.
        epochs: of each stage.
        alpha_from: epoch from which alphas and betas move.
        alpha_until: epoch from which they stay as they are; 0: they move to the stage's end.
        batch_size: images of a step.
        train_fraction: share of the images that weights are trained on; alphas see the others.
        learning_rate: of the weights' SGD at the first epoch, with a cosine over the stage.
        final_rate: that the cosine ends at.
        momentum: of the weights' SGD.
        weight_decay: of the weights.
        clip: longest gradient of the weights; 0: any.
        alpha_rate: of alphas and betas, by Adam(0.5, 0.999).
        alpha_decay: L2 of alphas and betas.
        alpha_clip: longest gradient of alphas and betas; 0: any.
        projection: width of both layers of the Barlow Twins projector.
        redundancy: lambda, weight of the correlations beside the diagonal.
        policy: name of the views' plan, see `sslfast.data.views`; empty: paper002 where s > 0, else supervised.
        seed: of the division, the weights, the order and the views.
    """

    s: float = 1.0
    task: Task = "labels"
    balance: Balance = "plain"
    cells: tuple[int, ...] = (5, 11, 17)
    operations: tuple[int, ...] = (8, 5, 3)
    skip_dropout: tuple[float, ...] = (0.0, 0.4, 0.7)
    channels: int = 16
    partial: int = 4
    edge_normalisation: bool = True
    most_skips: int = 2
    unrolled: bool = False
    epochs: int = 25
    alpha_from: int = 10
    alpha_until: int = 0
    batch_size: int = 96
    train_fraction: float = 0.5
    learning_rate: float = 0.025
    final_rate: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip: float = 5.0
    alpha_rate: float = 6e-4
    alpha_decay: float = 1e-3
    alpha_clip: float = 5.0
    projection: int = 2048
    redundancy: float = 0.0051
    policy: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        for name in ("s", "momentum"):
            check_number(name, getattr(self, name), 0, 1)
        for name, values in (("task", ("labels", "rotation", "random-labels")), ("balance", ("plain", "gradient"))):
            if getattr(self, name) not in values:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; there are: {', '.join(values)}")
        self._check_stages()
        for name in ("learning_rate", "alpha_rate"):
            check_number(name, getattr(self, name), 0, open_low=True)
        for name in ("final_rate", "weight_decay", "clip", "alpha_decay", "alpha_clip", "redundancy"):
            check_number(name, getattr(self, name), 0)
        for name, least in (("epochs", 1), ("alpha_from", 0), ("alpha_until", 0), ("batch_size", 2), ("projection", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.alpha_from < (self.alpha_until or self.epochs) <= self.epochs:
            raise UsageError(
                f"alphas must move for an epoch at least: from {self.alpha_from} until "
                f"{self.alpha_until or self.epochs} of {self.epochs}"
            )
        if not 0 < self.train_fraction < 1:
            raise UsageError(f"train_fraction must lie between 0 and 1, got {self.train_fraction}")
        if self.most_skips < -1:
            raise UsageError(f"most_skips must be at least 0, or -1 for any number, got {self.most_skips}")
        check_seed(self.seed)

    def _check_stages(self) -> None:
        counts = {len(self.cells), len(self.operations), len(self.skip_dropout)}
        if len(counts) > 1 or not self.cells:
            raise UsageError(
                "cells, operations and skip_dropout need one number for each stage, got "
                f"{self.cells}, {self.operations} and {self.skip_dropout}"
            )
        if min(self.cells) < 3:
            raise UsageError(f"every stage needs 3 cells, of which two reduce, got cells {self.cells}")
        falling = all(after < before for before, after in zip(self.operations, self.operations[1:], strict=False))
        if self.operations[0] != len(PRIMITIVES) or self.operations[-1] < 2 or not falling:
            raise UsageError(
                f"operations must fall from {len(PRIMITIVES)}, all there are, to at least 2, got {self.operations}"
            )
        for probability in self.skip_dropout:
            check_number("skip_dropout", probability, 0, 1)
        if self.partial < 1 or self.channels < 1 or self.channels % self.partial:
            raise UsageError(
                f"channels must be a multiple of partial (K), got {self.channels} channels and K = {self.partial}"
            )

    @property
    def plan(self) -> str:
        """Name of the views' plan."""
        return self.policy or ("paper002" if self.s > 0 else "supervised")

    @property
    def needs_labels(self) -> bool:
        """Whether the images' labels are read."""
        return self.s < 1 and self.task == "labels"

    def moves_alphas(self, epoch: int) -> bool:
        """Say whether alphas and betas move in an epoch."""
        return self.alpha_from <= epoch < (self.alpha_until or self.epochs)

    def skip_dropout_at(self, stage: int, epoch: int) -> float:
        """Give the probability of an epoch: it falls along a line before alphas move, then exponentially (P-DARTS)."""
        start = self.skip_dropout[stage]
        if epoch < self.alpha_from:
            return start * (self.epochs - epoch - 1) / self.epochs
        return start * math.exp(-0.2 * (epoch - self.alpha_from))

    def learning_rate_at(self, epoch: int) -> float:
        """Give the weights' learning rate in an epoch of a stage."""
        fall = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.final_rate + (self.learning_rate - self.final_rate) * fall


@dataclass(frozen=True)
class NetworkConfig:
    """How a derived network is trained from scratch; the defaults are the papers' for CIFAR.

    Args:
        channels: of a node in the first cells.
        layers: cells.
        epochs: passes over the images.
        batch_size: images of a step.
        learning_rate: of SGD at the first epoch, with a cosine to 0.
        momentum: of SGD.
        weight_decay: of all weights.
        clip: longest gradient; 0: any.
        auxiliary: weight of the auxiliary classifier's loss; 0: there is none.
        drop_path: probability that an operation's output is dropped, at the end; it rises from 0 along a line.
        policy: name of the views' plan, see `sslfast.data.views`; cutout's square is half a side, as 16 of 32 pixels.
        seed: of the weights, the order and the views.

    Source: Liu et al. 2019, appendix A.2; Xu et al. 2020 and Chen et al. 2019 with a drop_path of 0.3.
    """

    channels: int = 36
    layers: int = 20
    epochs: int = 600
    batch_size: int = 96
    learning_rate: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip: float = 5.0
    auxiliary: float = 0.4
    drop_path: float = 0.3
    policy: str = "cutout"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        for name, least in (("channels", 1), ("layers", 1), ("epochs", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        check_number("learning_rate", self.learning_rate, 0, open_low=True)
        check_number("momentum", self.momentum, 0, 1)
        for name in ("weight_decay", "clip", "auxiliary"):
            check_number(name, getattr(self, name), 0)
        if not 0 <= self.drop_path < 1:
            raise UsageError(f"drop_path must be at least 0 and below 1, got {self.drop_path}")
        check_seed(self.seed)

    def learning_rate_at(self, epoch: int) -> float:
        """Give the learning rate of an epoch."""
        return self.learning_rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2

    def drop_path_at(self, epoch: int) -> float:
        """Give the probability of an epoch."""
        return self.drop_path * epoch / self.epochs
