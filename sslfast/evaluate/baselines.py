"""The linear classifiers that a tuned head must be compared with, on the same features and splits."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from sslfast.errors import DataError
from sslfast.evaluate.metrics import accuracy
from sslfast.models.head import Head, HeadSpec
from sslfast.progress import bar
from sslfast.search.sources import standardised
from sslfast.search.train import Recipe, train_head

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse regularisation strengths, in scikit-learn's scale: 1 / 2 |W|^2 + C * (sum of losses)."""

SELECTION_ROWS = 10_000
"""C is chosen on at most this many training rows: it is a fifth of the time, and the choice is flat around the best."""


@dataclass(frozen=True)
class Baseline:
    """A fitted linear classifier.

    Args:
        name: for tables.
        validation_accuracy: in [0, 1], on all validation rows.
        detail: learning rate and epoch, or C and whether it converged, and on which rows C was chosen.
        seconds: wall time of fitting and choosing.
        predictor: a ``Head`` without hidden layers that standardises its features itself; in evaluation mode.
    """

    name: str
    validation_accuracy: float
    detail: str
    seconds: float
    predictor: Head


def predict_probabilities(head: Head, features: Tensor, batch_size: int = 4096) -> Tensor:
    """Map features (N, D) to probabilities (N, classes), float32 on the CPU."""
    device = head.mean.device
    with torch.inference_mode():
        parts = [head(part.to(device).float()).softmax(1).cpu() for part in torch.split(features, batch_size)]
    return torch.cat(parts)


def linear_head(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    learning_rate: float,
    *,
    classes: int,
    epochs: int = 30,
    batch_size: int = 64,
    seed: int = 0,
    dtype: str = "float32",
) -> Baseline:
    """Train a linear classifier with the tuned head's recipe and learning rate: the autotuning paper's own baseline.

    Args:
        train: features (N, D) or (views, N, D), and labels (N,).
        val: features (M, D) and labels (M,); they choose the epoch.
        learning_rate: the tuned winner's.
        classes: number of classes.
        epochs: passes over the training rows.
        batch_size: rows of a step.
        seed: decides first weights and order.
        dtype: of the products.

    Raises:
        DataError: training diverged.
    """
    start = time.monotonic()
    rows = standardised(train, val, classes)
    spec = HeadSpec((), 0.0, learning_rate)
    with bar("linear head", epochs, "epoch") as shown:

        def on_epoch(number: int, epoch: int, accuracy: float) -> bool:
            shown.advance()
            return True

        trained = train_head(spec, rows, Recipe(epochs, batch_size, dtype=dtype, seed=seed), 0, on_epoch)
    if not trained.value >= 0:
        raise DataError(f"the linear head diverged at learning rate {learning_rate:g}; are the features finite?")
    detail = f"lr {learning_rate:.3g}, best epoch {trained.epoch + 1} of {epochs}"
    return Baseline("linear head", trained.value, detail, time.monotonic() - start, trained.head(rows, spec).eval())


def logistic_regression(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    classes: int,
    grid: Sequence[float] = C_GRID,
    max_iterations: int | None = None,
    selection_rows: int = SELECTION_ROWS,
    seed: int = 0,
    name: str = "logistic regression",
) -> Baseline:
    """Fit multinomial logistic regression by L-BFGS on standardised features, C chosen by validation accuracy.

    scikit-learn in float32 on one thread: with more, its threads and the linear algebra library's get into each other's
    way (20 steps on 54,000 x 128 took 0.8 s with one and 3.7 s with two on a busy two-core machine).

    Args:
        train: features (N, D) and labels; of (views, N, D) the first view is taken.
        val: features (M, D) and labels.
        classes: number of classes; one without a training row is never predicted.
        grid: values of C, tried in this order on a stratified part of ``selection_rows`` training rows.
        max_iterations: of the last fit; by default 300, or 100 where features are more than 20 million numbers.
            Those that choose C take 100 at most. ``detail`` says whether the last fit converged.
        selection_rows: most rows that C is chosen on.
        seed: decides which rows those are.
        name: for tables.

    Raises:
        DataError: features are not finite, or there is one class only.
    """
    start = time.monotonic()
    features = train[0][0] if train[0].dim() == 3 else train[0]
    labels = train[1].numpy()
    if not bool(torch.isfinite(features).all()) or not bool(torch.isfinite(val[0]).all()):
        raise DataError(f"{name}: features hold NaN or infinity; extract anew")
    if len(numpy.unique(labels)) < 2:
        raise DataError(f"{name}: there is one class only; a classifier needs two")
    rows = standardised((features.float(), train[1]), (val[0].float(), val[1]), classes)
    inputs, held_out = rows.features[0].numpy(), rows.validation_features.numpy()
    steps_allowed = max_iterations or (300 if inputs.size <= 20_000_000 else 100)
    part = _part(labels, selection_rows, seed)
    best = (-1.0, grid[0])
    with threadpool_limits(1), bar(name, len(grid) + 1, "fit") as shown:
        if len(grid) > 1:
            for strength in grid:
                model = _fit(inputs[part], labels[part], strength, min(100, steps_allowed))
                score = accuracy(val[1].numpy(), model.predict(held_out))
                best = max(best, (score, strength), key=lambda found: found[0])
                shown.advance()
        model = _fit(inputs, labels, best[1], steps_allowed)
        shown.advance()
        score = accuracy(val[1].numpy(), model.predict(held_out))
    steps = int(model.n_iter_[0])
    converged = f"converged in {steps} steps" if steps < steps_allowed else f"not converged in {steps} steps"
    chosen = f"all {len(part):,}" if len(part) == len(labels) else f"{len(part):,} of {len(labels):,}"
    detail = f"C {best[1]:g} chosen from {len(grid)} on {chosen} training rows; {converged}"
    return Baseline(name, score, detail, time.monotonic() - start, _as_head(model, rows.mean, rows.std, classes))


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


def _fit(
    inputs: NDArray[numpy.float32], labels: NDArray[numpy.int64], strength: float, max_iterations: int
) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the result's detail says it
        return LogisticRegression(C=strength, max_iter=max_iterations).fit(inputs, labels)


def _as_head(model: LogisticRegression, mean: Tensor, std: Tensor, classes: int) -> Head:
    """Put scikit-learn's coefficients into a linear head."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes: scikit-learn keeps the difference of the logits
        weight, bias = numpy.concatenate([-weight / 2, weight / 2]), numpy.concatenate([-bias / 2, bias / 2])
    head = Head(len(mean), classes, HeadSpec((), 0.0, 0.0))
    full_weight = torch.zeros(classes, len(mean))
    full_bias = torch.full((classes,), -1e9)
    full_weight[torch.from_numpy(model.classes_)] = torch.from_numpy(weight).float()
    full_bias[torch.from_numpy(model.classes_)] = torch.from_numpy(bias).float()
    head.load_state_dict({"mean": mean, "std": std, "layers.0.weight": full_weight, "layers.0.bias": full_bias})
    return head.eval()
