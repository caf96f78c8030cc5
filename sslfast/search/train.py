"""Trains the heads of a batch of trials on cached features, epoch by epoch, all at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslfast.errors import UsageError
from sslfast.models.head import Head, HeadSpec
from sslfast.search.bank import HeadBank, Optimizer, can_use_half, stream
from sslfast.search.sources import Source

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
        momentum: of Nesterov SGD and LARS; of Adam the decay of the first moment.
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
        # With trust 1 the learning rate of LARS is how far a step moves a weight, as a share of it: the same range.
        return Optimizer(spec.optimizer, self.momentum, weight_decay=self.weight_decay, trust=1.0)


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

    def head(self, rows: Source, spec: HeadSpec) -> Head:
        """Build the module that these weights belong to."""
        head = Head(len(rows.mean), rows.classes, spec)
        names = [name for name, _ in head.layers.named_parameters(prefix="layers")]
        head.load_state_dict({"mean": rows.mean, "std": rows.std, **dict(zip(names, self.weights, strict=True))})
        return head


def resolve_dtype(name: str, device: str | torch.device) -> str:
    """Turn "auto" into what products are computed in: bfloat16 where the device multiplies it in hardware.

    It does not change the validation accuracy: docs/tune.md has the measurement.

    Raises:
        UsageError: bfloat16 is asked for where the device does not multiply it.
    """
    if name == "bfloat16" and not can_use_half(device):
        raise UsageError(
            "dtype bfloat16 needs a processor that multiplies it (AVX512-BF16), or a GPU; take float32, or auto"
        )
    return ("bfloat16" if can_use_half(device) else "float32") if name == "auto" else name


def epoch_rows(seed: int, epoch: int, views: int, rows: int) -> tuple[Tensor, Tensor]:
    """Give an epoch's order of rows (rows,) and the view that each of them is seen in; equal for all trials."""
    generator = torch.Generator().manual_seed(stream(seed, 1, epoch))
    order = torch.randperm(rows, generator=generator)
    view = torch.randint(views, (rows,), generator=generator)
    return order, view


def train_heads(
    jobs: Sequence[Job],
    rows: Source,
    recipe: Recipe,
    on_epoch: Callable[[int, int, float], bool] = lambda number, epoch, accuracy: True,
) -> dict[int, Trained]:
    """Train heads side by side on cross-entropy, the learning rate falling along a cosine to 0 with every step.

    At step t of T a head's learning rate is ``spec.learning_rate * (1 + cos(pi t / T)) / 2``. Per epoch each row is
    seen once, in one of its views chosen at random. A head's result depends on its spec, its number and the other
    arguments: not on who else trains, and not on the number of threads.

    Args:
        jobs: number and head of each trial; the number and the seed decide first weights and dropout.
        rows: what ``standardised`` or ``open_rows`` made.
        recipe: epochs, batch size, optimiser, dtype, seed.
        on_epoch: called after each epoch with each head's number, the epoch and its validation accuracy; False
            stops that head there.

    Returns:
        By number, what each head came to.
    """
    bank = HeadBank(
        [spec for _, spec in jobs],
        len(rows.mean),
        rows.classes,
        recipe.seed,
        optimizers=[recipe.optimizer(spec) for _, spec in jobs],
        numbers=[number for number, _ in jobs],
        half=recipe.dtype == "bfloat16",
        device=rows.device,
    )
    rates = torch.tensor([spec.learning_rate for _, spec in jobs], dtype=torch.float64)
    accuracies: list[list[float]] = [[] for _ in jobs]
    best: list[tuple[int, list[Tensor]]] = [(0, []) for _ in jobs]
    diverged = set()
    for epoch in range(recipe.epochs):
        running = bank.running
        if not running:
            break
        train_epoch(bank, rows, recipe, epoch, rates[running])
        found = validation_accuracy(bank, rows)
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


def learning_rates(recipe: Recipe, rows: int, epoch: int) -> Tensor:
    """Give the share of its first learning rate that each step of an epoch has (steps,), float64."""
    steps = math.ceil(rows / recipe.batch_size)
    at = torch.arange(epoch * steps, (epoch + 1) * steps, dtype=torch.float64)
    return 0.5 * (1 + torch.cos(math.pi * at / (recipe.epochs * steps)))


def train_epoch(bank: HeadBank, rows: Source, recipe: Recipe, epoch: int, rates: Tensor) -> Tensor:
    """Train the running heads, whose learning rates were ``rates`` (R,) at first, for one epoch.

    Returns:
        Each head's mean loss over the rows (R,), float64, on the CPU: of a row before the step that it is in.
    """
    count = len(rows.labels)
    order, view = epoch_rows(recipe.seed, epoch, rows.views, count)
    schedule = rates[:, None] * learning_rates(recipe, count, epoch)
    done, total = 0, torch.zeros(len(rates), dtype=torch.float64)
    for features, labels, part in rows.chunks(view * count + order, rows.chunk_rows(recipe.batch_size)):
        taken = math.ceil(len(part) / recipe.batch_size)
        losses = bank.train(features, labels, part, schedule[:, done : done + taken], recipe.batch_size).cpu()
        done += taken
        sizes = torch.full((taken,), recipe.batch_size, dtype=torch.float64)
        sizes[-1] = len(part) - (taken - 1) * recipe.batch_size
        total += losses @ sizes
    return total / count


def validation_accuracy(bank: HeadBank, rows: Source) -> Tensor:
    """Give each running head's share of validation rows that it is right on; NaN where a logit is not finite."""
    right = torch.zeros(len(bank.running), dtype=torch.float64)
    for features, labels in rows.validation():
        accuracies, _ = bank.evaluate(features, labels)
        right += (accuracies.cpu() * len(labels)).round()
    return right / len(rows.validation_labels)


def train_head(
    spec: HeadSpec,
    rows: Source,
    recipe: Recipe,
    number: int = 0,
    on_epoch: Callable[[int, int, float], bool] = lambda number, epoch, accuracy: True,
) -> Trained:
    """Train one head as ``train_heads`` does."""
    return train_heads([(number, spec)], rows, recipe, on_epoch)[number]
