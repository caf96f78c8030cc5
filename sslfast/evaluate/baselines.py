"""The simple classifiers that a tuned head must be compared with, on the same features and splits."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from sslfast.errors import DataError, UsageError
from sslfast.evaluate.logistic import c_grid, fit_logistic
from sslfast.evaluate.neighbours import NUMBERS, choose_neighbours
from sslfast.models.head import Head, HeadSpec
from sslfast.progress import bar
from sslfast.search.sources import Rows, Source, standardised
from sslfast.search.train import Recipe, resolve_dtype, train_head

Labelled = tuple[Tensor, Tensor]
"""Features and labels."""

C_GRID = c_grid()
"""Inverse regularisation strengths, in scikit-learn's scale: 1 / 2 |W|^2 + C * (sum of losses)."""

SELECTION_ROWS = 10_000
"""C is chosen on at most this many training rows: it is a fifth of the time, and the choice is flat around the best."""


@dataclass(frozen=True)
class Baseline:
    """A fitted classifier.

    Args:
        name: for tables.
        validation_accuracy: in [0, 1], on all validation rows.
        detail: learning rate and epoch, or k, or C and whether it converged, and on which rows C was chosen.
        seconds: wall time of fitting and choosing.
        predictor: maps features to logits, or to log-probabilities; in evaluation mode. A linear one is a ``Head``
            without hidden layers that standardises its features itself.
    """

    name: str
    validation_accuracy: float
    detail: str
    seconds: float
    predictor: nn.Module


def predict_probabilities(head: nn.Module, features: Tensor, batch_size: int = 4096) -> Tensor:
    """Map features (N, D) to probabilities (N, classes), float32 on the CPU."""
    device = next(head.buffers()).device
    with torch.inference_mode():
        parts = [head(part.to(device).float()).softmax(1).cpu() for part in torch.split(features, batch_size)]
    return torch.cat(parts)


def linear_head(
    train: Labelled | Source,
    val: Labelled | None,
    learning_rate: float,
    *,
    classes: int,
    epochs: int = 30,
    batch_size: int = 64,
    seed: int = 0,
    dtype: str = "float32",
    optimizer: str = "sgd",
) -> Baseline:
    """Train a linear classifier with the tuned head's recipe and learning rate: the autotuning paper's own baseline.

    Args:
        train: features (N, D) or (views, N, D), and labels (N,). Or rows as the search has them, validation rows among
            them.
        val: features (M, D) and labels (M,); they choose the epoch. None where ``train`` has them.
        learning_rate: the tuned winner's.
        classes: number of classes.
        epochs: passes over the training rows.
        batch_size: rows of a step.
        seed: decides first weights and order.
        dtype: of the products, "float32", "bfloat16" or "auto".
        optimizer: the tuned winner's.

    Raises:
        DataError: training diverged.
        UsageError: bfloat16 where the device does not multiply it.
    """
    start = time.monotonic()
    rows = _rows(train, val, classes)
    spec = HeadSpec((), 0.0, learning_rate, optimizer)
    dtype = resolve_dtype(dtype, rows.device)
    with bar("linear head", epochs, "epoch") as shown:

        def on_epoch(number: int, epoch: int, accuracy: float) -> bool:
            shown.advance()
            return True

        trained = train_head(spec, rows, Recipe(epochs, batch_size, dtype=dtype, seed=seed), 0, on_epoch)
    if not trained.value >= 0:
        raise DataError(f"the linear head diverged at learning rate {learning_rate:g}; are the features finite?")
    rate = spec.describe().removeprefix("linear, ")
    detail = f"{rate}, best epoch {trained.epoch + 1} of {epochs}"
    return Baseline("linear head", trained.value, detail, time.monotonic() - start, trained.head(rows, spec).eval())


def k_nearest(
    train: Labelled | Rows,
    val: Labelled | None = None,
    *,
    classes: int,
    numbers: Sequence[int] = NUMBERS,
) -> Baseline:
    """Let the most similar training rows vote (cosine, weights exp(similarity / 0.07)), k chosen by validation.

    Args:
        train: features (N, D) and labels; of (views, N, D) the first view is taken. Or rows as the search has them.
        val: features (M, D) and labels; None where ``train`` has them.
        classes: number of classes.
        numbers: values of k.

    Raises:
        DataError: features are not finite, or there are no rows.
    """
    model, score, seconds = choose_neighbours(train, val, classes=classes, numbers=numbers)
    return Baseline("k-NN", score, f"k {model.number} of {list(numbers)}, cosine", seconds, model)


def logistic_regression(
    train: Labelled | Rows,
    val: Labelled | None = None,
    *,
    classes: int,
    grid: Sequence[float] = C_GRID,
    max_iterations: int | None = None,
    selection_rows: int = SELECTION_ROWS,
    seed: int = 0,
    name: str = "logistic regression",
) -> Baseline:
    """Fit multinomial logistic regression by L-BFGS on standardised features, C chosen by validation accuracy.

    All values of C are fitted at once (``fit_logistic``), on a stratified part of the training rows; the best one, the
    smallest of equals, is then fitted on all of them.

    Args:
        train: features (N, D) and labels; of (views, N, D) the first view is taken. Or rows as the search has them,
            which are standardised over all views.
        val: features (M, D) and labels; None where ``train`` has them.
        classes: number of classes; one without a training row is never predicted.
        grid: values of C.
        max_iterations: of the last fit; by default 300, or 100 where features are more than 20 million numbers.
            Those that choose C take 100 at most. ``detail`` says whether the last fit converged.
        selection_rows: most rows that C is chosen on.
        seed: decides which rows those are.
        name: for tables.

    Raises:
        DataError: features are not finite, or there is one class only.
    """
    start = time.monotonic()
    if isinstance(train, tuple):
        features = train[0][0] if train[0].dim() == 3 else train[0]
        if val is not None:
            if not bool(torch.isfinite(features).all()) or not bool(torch.isfinite(val[0]).all()):
                raise DataError(f"{name}: features hold NaN or infinity; extract anew")
            val = val[0].float(), val[1]
        train = features.float(), train[1]
    given = train[1] if isinstance(train, tuple) else train.labels
    present, labels = torch.unique(given, return_inverse=True)
    if len(present) < 2:
        raise DataError(f"{name}: there is one class only; a classifier needs two")
    rows = _rows(train, val, classes)
    inputs = rows.features[0]
    allowed = max_iterations or (300 if inputs.numel() <= 20_000_000 else 100)
    strength, count = grid[0], len(labels)
    with bar(name, 2, "fit") as shown:
        if len(grid) > 1:
            strength, _, count = choose_strength(rows, present, labels, grid, min(100, allowed), selection_rows, seed)
        shown.advance()
        fit = fit_logistic(inputs, labels, len(present), [strength], allowed)
        shown.advance()
    score = _share(rows.validation_features, rows.validation_labels, present, fit.weight[0], fit.bias[0])
    converged = f"{'' if fit.converged[0] else 'not '}converged in {fit.steps[0]} steps"
    chosen = f"all {count:,}" if count == len(labels) else f"{count:,} of {len(labels):,}"
    detail = f"C {strength:.3g} chosen from {len(grid)} on {chosen} training rows; {converged}"
    predictor = logistic_head(fit.weight[0], fit.bias[0], present, rows.mean, rows.std, classes)
    return Baseline(name, score, detail, time.monotonic() - start, predictor)


def choose_strength(
    rows: Rows,
    present: Tensor,
    labels: Tensor,
    grid: Sequence[float],
    max_iterations: int = 100,
    selection_rows: int = SELECTION_ROWS,
    seed: int = 0,
) -> tuple[float, float, int]:
    """Choose C, the smallest of equals, by validation accuracy after fits on a stratified part of the training rows.

    Args:
        rows: training and validation rows.
        present: classes that have a training row, ascending.
        labels: of the training rows, as places in ``present``.
        grid: values of C.
        max_iterations: of each fit.
        selection_rows: most rows to fit on.
        seed: decides which.

    Returns:
        C, its validation accuracy and the number of rows that were fitted.
    """
    inputs = rows.features[0]
    part = torch.from_numpy(_part(labels.cpu().numpy(), selection_rows, seed)).to(inputs.device)
    fits = fit_logistic(inputs[part], labels[part], len(present), grid, max_iterations)
    scores = [
        _share(rows.validation_features, rows.validation_labels, present, weight, bias)
        for weight, bias in zip(fits.weight, fits.bias, strict=True)
    ]
    best = scores.index(max(scores))
    return grid[best], scores[best], len(part)


@overload
def _rows(train: Labelled | Rows, val: Labelled | None, classes: int) -> Rows: ...


@overload
def _rows(train: Labelled | Source, val: Labelled | None, classes: int) -> Source: ...


def _rows(train: Labelled | Source, val: Labelled | None, classes: int) -> Source:
    if isinstance(train, Source):
        return train
    if val is None:
        raise UsageError("val is missing: held-out features and labels to choose by")
    return standardised(train, val, classes)


def _share(features: Tensor, labels: Tensor, present: Tensor, weight: Tensor, bias: Tensor) -> float:
    return int((present[(features @ weight.t() + bias).argmax(1)] == labels).sum()) / len(labels)


def _part(labels: NDArray[numpy.int64], count: int, seed: int) -> NDArray[numpy.int64]:
    """Give ``count`` rows with every class in its share, or all where there are no more."""
    rows = numpy.arange(len(labels))
    if len(labels) <= count:
        return rows
    # A class with one row cannot be split; it is kept.
    single = numpy.flatnonzero(numpy.bincount(labels)[labels] < 2)
    rest = numpy.setdiff1d(rows, single)
    # The split wants a row of every class on both sides; so few rows more are not worth leaving out.
    if len(rest) - count < len(numpy.unique(labels[rest])):
        return rows
    kept, _ = train_test_split(rest, train_size=count, stratify=labels[rest], random_state=seed)
    return numpy.sort(numpy.concatenate([single, kept]))


def logistic_head(weight: Tensor, bias: Tensor, present: Tensor, mean: Tensor, std: Tensor, classes: int) -> Head:
    """Put the coefficients of the classes that are there into a linear head."""
    head = Head(len(mean), classes, HeadSpec((), 0.0, 0.0))
    full_weight = torch.zeros(classes, len(mean))
    full_bias = torch.full((classes,), -1e9)
    full_weight[present.cpu()], full_bias[present.cpu()] = weight.float().cpu(), bias.float().cpu()
    head.load_state_dict({"mean": mean, "std": std, "layers.0.weight": full_weight, "layers.0.bias": full_bias})
    return head.eval()
