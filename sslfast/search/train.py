"""Trains one classifier head on cached features, by hand-written steps: no autograd, no module calls, bf16 if asked."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.optim.sgd import sgd

from sslfast.models.head import Head, HeadSpec

GATHERED_ROWS = 16384
"""Rows that are brought into the epoch's order at a time: few calls, and little memory beside the features."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What products may be computed in; weights, momentum, softmax and validation are float32 always."""


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


@dataclass(frozen=True)
class Rows:
    """Features and labels in the form that training reads them.

    Args:
        features: standardised training features (views, N, D) in the recipe's dtype.
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


def standardised(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: int, dtype: str) -> Rows:
    """Bring features (N, D) or (views, N, D) to zero mean and unit variance over the training rows of all views."""
    features = train[0] if train[0].dim() == 3 else train[0][None]
    std, mean = torch.std_mean(features.flatten(0, 1).double(), dim=0, correction=0)
    # A constant feature has a deviation of rounding errors only.
    std = torch.where(std > 1e-6 * mean.abs() + 1e-12, std, torch.ones_like(std)).float()
    mean = mean.float()
    return Rows(
        ((features - mean) / std).to(DTYPES[dtype]),
        train[1],
        (val[0] - mean) / std,
        val[1],
        mean,
        std,
        classes,
    )


def first_weights(widths: list[int], generator: torch.Generator) -> list[Tensor]:
    """Draw weight and bias of each layer as torch.nn.Linear does: uniform within 1 / sqrt(inputs)."""
    weights = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        bound = 1 / math.sqrt(inputs)
        for shape in ((outputs, inputs), (outputs,)):
            weights.append(torch.empty(shape).uniform_(-bound, bound, generator=generator))
    return weights


def dropout_mask(shape: torch.Size, dropout: float, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draw a mask of zeros (with probability ``dropout``, in steps of 1/65536) and of 1 / (1 - dropout).

    Sixteen random bits per element, so that one draw of the generator serves four elements.
    """
    count = shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=generator.device)
    bits.random_(-(2**63), None, generator=generator)
    steps = min(round(dropout * 65536), 65535)
    keep = bits.view(torch.int16)[:count].view(shape) >= steps - 32768
    return keep.to(dtype).mul_(65536 / (65536 - steps))


def epoch_rows(seed: int, epoch: int, views: int, rows: int) -> tuple[Tensor, Tensor]:
    """Give an epoch's order of rows (rows,) and the view that each of them is seen in; equal for all trials."""
    generator = torch.Generator().manual_seed(stream(seed, 1, epoch))
    order = torch.randperm(rows, generator=generator)
    view = torch.randint(views, (rows,), generator=generator)
    return order, view


def train_head(
    spec: HeadSpec,
    rows: Rows,
    recipe: Recipe,
    number: int = 0,
    on_epoch: Callable[[int, float], None] = lambda epoch, accuracy: None,
) -> Trained:
    """Train one head by Nesterov SGD on cross-entropy, the learning rate falling along a cosine to 0 with every step.

    At step t of T the learning rate is ``spec.learning_rate * (1 + cos(pi t / T)) / 2``. Per epoch each row is seen
    once, in one of its views chosen at random. The result depends on arguments and dtype, not on who else trains; the
    caller holds the number of threads at one where results must not depend on the machine's cores.

    Args:
        spec: widths, dropout, learning rate; no widths: a linear classifier.
        rows: what ``standardised`` made.
        recipe: epochs, batch size, optimiser, dtype, seed.
        number: the trial's number; with the seed it decides first weights and dropout.
        on_epoch: called after each epoch with its number and validation accuracy.
    """
    device = rows.features.device
    dtype = rows.features.dtype
    views, count, inputs = rows.features.shape
    flat = rows.features.flatten(0, 1)
    start = torch.Generator().manual_seed(stream(recipe.seed, 2, number))
    weights = [weight.to(device) for weight in first_weights([inputs, *spec.units, rows.classes], start)]
    momentum: list[Tensor | None] = [torch.zeros_like(weight) for weight in weights]
    low = weights if dtype == torch.float32 else [weight.to(dtype) for weight in weights]
    noise = torch.Generator(device).manual_seed(stream(recipe.seed, 3, number))
    steps = recipe.epochs * math.ceil(count / recipe.batch_size)
    chunk = max(1, GATHERED_ROWS // recipe.batch_size) * recipe.batch_size
    step = 0
    accuracies: list[float] = []
    best: list[Tensor] = []
    best_epoch = 0
    with torch.inference_mode():
        for epoch in range(recipe.epochs):
            order, view = epoch_rows(recipe.seed, epoch, views, count)
            for first in range(0, count, chunk):
                part = order[first : first + chunk]
                features = flat[(view[first : first + chunk] * count + part).to(device)]
                labels = rows.labels[part.to(device)]
                for at in range(0, len(part), recipe.batch_size):
                    gradients = _gradients(
                        low, features[at : at + recipe.batch_size], labels[at : at + recipe.batch_size], spec, noise
                    )
                    sgd(
                        weights,
                        gradients,
                        momentum,
                        fused=True,
                        weight_decay=recipe.weight_decay,
                        momentum=recipe.momentum,
                        lr=spec.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps)),
                        dampening=0.0,
                        nesterov=True,
                        maximize=False,
                    )
                    if low is not weights:
                        torch._foreach_copy_(low, weights)
                    step += 1
            accuracy = validation_accuracy(weights, rows)
            if not math.isfinite(accuracy):
                return Trained(tuple(accuracies), epoch, math.nan, tuple(weights))
            on_epoch(epoch, accuracy)
            if not accuracies or accuracy > accuracies[best_epoch]:
                best_epoch, best = epoch, [weight.clone() for weight in weights]
            accuracies.append(accuracy)
    return Trained(tuple(accuracies), best_epoch, accuracies[best_epoch], tuple(best))


def logits_of(weights: list[Tensor], features: Tensor) -> Tensor:
    """Map standardised features (N, D) to logits (N, classes), without dropout."""
    for index in range(0, len(weights) - 2, 2):
        features = functional.linear(features, weights[index], weights[index + 1]).relu_()
    return functional.linear(features, weights[-2], weights[-1])


def validation_accuracy(weights: list[Tensor], rows: Rows) -> float:
    """Give the share of validation rows that are classified rightly; NaN where a logit is not finite."""
    right = 0
    for first in range(0, len(rows.validation_labels), 2048):
        logits = logits_of(weights, rows.validation_features[first : first + 2048])
        if not bool(torch.isfinite(logits).all()):
            return math.nan
        right += int((logits.argmax(1) == rows.validation_labels[first : first + 2048]).sum())
    return right / len(rows.validation_labels)


def _gradients(
    low: list[Tensor], features: Tensor, labels: Tensor, spec: HeadSpec, noise: torch.Generator
) -> list[Tensor]:
    """Give the gradient of the mean cross-entropy by every weight, float32, with dropout drawn from ``noise``.

    A layer is h' = m * (W h + b), where m is the dropout mask times the derivative of ReLU, so that the backward pass
    needs only m and h.
    """
    hidden = len(spec.units)
    inputs = [features]
    masks = []
    for index in range(hidden):
        output = functional.linear(inputs[-1], low[2 * index], low[2 * index + 1])
        mask = (output > 0).to(output.dtype)
        if spec.dropout:
            mask.mul_(dropout_mask(output.shape, spec.dropout, output.dtype, noise))
        inputs.append(output.mul_(mask))
        masks.append(mask)
    error = functional.linear(inputs[-1], low[-2], low[-1]).float().softmax(1)
    error.scatter_add_(1, labels[:, None], error.new_full((len(labels), 1), -1.0))
    error = error.div_(len(labels)).to(features.dtype)
    gradients: list[Tensor] = []
    for index in range(hidden, -1, -1):
        gradients[:0] = [error.t().mm(inputs[index]).float(), error.sum(0, dtype=torch.float32)]
        if index:
            error = error.mm(low[2 * index]).mul_(masks[index - 1])
    return gradients


def stream(*key: int) -> int:
    """Give a seed that depends on every number of ``key``, and is unlike that of any other key."""
    return int(numpy.random.SeedSequence(key).generate_state(1, numpy.uint64)[0] >> numpy.uint64(1))
