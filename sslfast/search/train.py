"""Trains the heads of a batch of trials on cached features, epoch by epoch, all at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslfast.models.head import Head, HeadSpec
from sslfast.search.bank import HeadBank, Optimizer, stream

DTYPES = ("float32", "bfloat16")
"""What products may be computed in; weights, momentum, softmax and validation are float32 always."""

Job = tuple[int, HeadSpec]
"""A trial's number and its head."""


@dataclass(frozen=True)
class Recipe:
    """How every head of a search is trained; the defaults are the autotuning paper's.

    Args:
        epochs: passes over the training rows.
        batch_size: rows of a step; the last step of an epoch has what is left.
        momentum: of Nesterov SGD.
        weight_decay: L2 penalty, on weights and biases.
        dtype: of the products, ``"float32"`` or ``"bfloat16"``.
        seed: decides the order of rows and, with a trial's number, first weights and dropout.
    """

    epochs: int = 30
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 1e-4
    dtype: str = "float32"
    seed: int = 0

    def optimizer(self, spec: HeadSpec) -> Optimizer:
        """Give what trains a head."""
        return Optimizer("sgd", self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Rows:
    """Features and labels in the form that training reads them.

    Args:
        features: standardised training features (views, N, D), float32.
        labels: their classes (N,), int64.
        validation_features: standardised validation features (M, D), float32.
        validation_labels: their classes (M,), int64.
        mean: the training features' mean (D,).
        std: their standard deviation (D,), one where a feature is constant.
        classes: number of classes.
    """

    features: Tensor
    labels: Tensor
    validation_features: Tensor
    validation_labels: Tensor
    mean: Tensor
    std: Tensor
    classes: int

    def to(self, device: str) -> "Rows":
        """Give the same rows on another device."""
        return Rows(
            self.features.to(device),
            self.labels.to(device),
            self.validation_features.to(device),
            self.validation_labels.to(device),
            self.mean.to(device),
            self.std.to(device),
            self.classes,
        )


@dataclass(frozen=True)
class Trained:
    """What training one head gave.

    Args:
        accuracies: validation accuracy after each epoch, in [0, 1]; shorter than the recipe's epochs if it diverged.
        epoch: the epoch, counted from 0, after which the accuracy was best (the first of equals).
        value: that accuracy, the paper's objective; NaN where training diverged.
        weights: weight (out, in) and bias (out,) of each layer after that epoch, float32.
    """

    accuracies: tuple[float, ...]
    epoch: int
    value: float
    weights: tuple[Tensor, ...]

    def head(self, rows: Rows, spec: HeadSpec) -> Head:
        """Build the module that these weights belong to."""
        head = Head(len(rows.mean), rows.classes, spec)
        names = [name for name, _ in head.layers.named_parameters(prefix="layers")]
        head.load_state_dict({"mean": rows.mean, "std": rows.std, **dict(zip(names, self.weights, strict=True))})
        return head


def standardised(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: int) -> Rows:
    """Bring features (N, D) or (views, N, D) to zero mean and unit variance over the training rows of all views."""
    features = train[0] if train[0].dim() == 3 else train[0][None]
    std, mean = torch.std_mean(features.flatten(0, 1).double(), dim=0, correction=0)
    # A constant feature has a deviation of rounding errors only.
    std = torch.where(std > 1e-6 * mean.abs() + 1e-12, std, torch.ones_like(std)).float()
    mean = mean.float()
    return Rows(
        (features - mean) / std,
        train[1],
        (val[0] - mean) / std,
        val[1],
        mean,
        std,
        classes,
    )


def epoch_rows(seed: int, epoch: int, views: int, rows: int) -> tuple[Tensor, Tensor]:
    """Give an epoch's order of rows (rows,) and the view that each of them is seen in; equal for all trials."""
    generator = torch.Generator().manual_seed(stream(seed, 1, epoch))
    order = torch.randperm(rows, generator=generator)
    view = torch.randint(views, (rows,), generator=generator)
    return order, view


def train_heads(
    jobs: Sequence[Job],
    rows: Rows,
    recipe: Recipe,
    on_epoch: Callable[[int, int, float], bool] = lambda number, epoch, accuracy: True,
) -> dict[int, Trained]:
    """Train heads side by side on cross-entropy, the learning rate falling along a cosine to 0 with every step.

    At step t of T a head's learning rate is ``spec.learning_rate * (1 + cos(pi t / T)) / 2``. Per epoch each row is
    seen once, in one of its views chosen at random. A head's result depends on its spec, its number and the other
    arguments: not on who else trains, and not on the number of threads.

    Args:
        jobs: number and head of each trial; the number and the seed decide first weights and dropout.
        rows: what ``standardised`` made.
        recipe: epochs, batch size, optimiser, dtype, seed.
        on_epoch: called after each epoch with each head's number, the epoch and its validation accuracy; False
            stops that head there.

    Returns:
        By number, what each head came to.
    """
    views, count, inputs = rows.features.shape
    device = rows.features.device
    bank = HeadBank(
        [spec for _, spec in jobs],
        inputs,
        rows.classes,
        recipe.seed,
        optimizers=[recipe.optimizer(spec) for _, spec in jobs],
        numbers=[number for number, _ in jobs],
        half=recipe.dtype == "bfloat16",
        device=device,
    )
    steps = math.ceil(count / recipe.batch_size)
    rates = torch.tensor([spec.learning_rate for _, spec in jobs], dtype=torch.float64)
    accuracies: list[list[float]] = [[] for _ in jobs]
    best: list[tuple[int, list[Tensor]]] = [(0, []) for _ in jobs]
    diverged = set()
    for epoch in range(recipe.epochs):
        running = bank.running
        if not running:
            break
        order, view = epoch_rows(recipe.seed, epoch, views, count)
        at = torch.arange(epoch * steps, (epoch + 1) * steps, dtype=torch.float64)
        cosine = 0.5 * (1 + torch.cos(math.pi * at / (recipe.epochs * steps)))
        schedule = rates[running, None] * cosine
        bank.train(rows.features, rows.labels, (view * count + order).to(device), schedule, recipe.batch_size)
        found, _ = bank.evaluate(rows.validation_features, rows.validation_labels)
        for index, accuracy in zip(running, found.tolist(), strict=True):
            if not math.isfinite(accuracy):
                diverged.add(index)
                bank.stop(index)
                continue
            if not accuracies[index] or accuracy > accuracies[index][best[index][0]]:
                best[index] = epoch, bank.weights(index)
            accuracies[index].append(accuracy)
            if not on_epoch(jobs[index][0], epoch, accuracy):
                bank.stop(index)
    return {
        number: Trained(
            tuple(accuracies[index]),
            len(accuracies[index]) if index in diverged else best[index][0],
            math.nan if index in diverged else accuracies[index][best[index][0]],
            tuple(best[index][1]),
        )
        for index, (number, _) in enumerate(jobs)
    }


def train_head(
    spec: HeadSpec,
    rows: Rows,
    recipe: Recipe,
    number: int = 0,
    on_epoch: Callable[[int, int, float], bool] = lambda number, epoch, accuracy: True,
) -> Trained:
    """Train one head as ``train_heads`` does."""
    return train_heads([(number, spec)], rows, recipe, on_epoch)[number]
