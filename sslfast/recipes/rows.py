"""The rows of the demo's table: what the tuned head is compared with, each scored on the test images."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.data import Dataset
from sslfast.evaluate import Baseline, accuracy, linear_head, logistic_regression, predict_probabilities
from sslfast.evaluate.baselines import C_GRID
from sslfast.features import FeatureStore
from sslfast.files import read_json, write_json
from sslfast.recipes.config import DemoConfig
from sslfast.recipes.images import Images
from sslfast.search import HeadSpace, SearchResult

POWERS_OF_TEN = C_GRID[8:29:4]
"""Values of C from 1e-4 to 10: raw pixels are many, and a demo is short."""

RAW_SIDE = 32
"""Larger images are shrunk to this side, in pixels, before a classifier sees them raw."""


@dataclass(frozen=True)
class Row:
    """One classifier of the table.

    Args:
        name: what it is.
        test_accuracy: on the test images, in [0, 1]; None where there are none.
        validation_accuracy: on the held-out training images, which it was chosen by; None where it was left out.
        detail: its hyper-parameters, or why it was left out.
        seconds: that choosing and training took.
    """

    name: str
    test_accuracy: float | None
    validation_accuracy: float | None
    detail: str
    seconds: float


def searched_row(name: str, result: SearchResult, test: FeatureStore) -> Row:
    """Score the winner of a search on the test features."""
    best = result.best
    assert best.value is not None and best.epoch is not None
    detail = f"{HeadSpace.paper().spec(best.params).describe()}; trial {best.number}, epoch {best.epoch + 1}"
    return Row(
        name, _test_accuracy(result.head(), test.load(), test.labels), best.value, detail, result.budget["seconds"]
    )


def baseline_rows(
    config: DemoConfig, images: Images, stores: dict[str, FeatureStore], tuned: SearchResult, cache: Path
) -> list[Row]:
    """Fit and score the three baselines, or read those that an earlier run of the same job has written to ``cache``.

    They are: a linear head with the winner's learning rate, logistic regression on the same features, and logistic
    regression on raw pixels.
    """
    done = {entry["name"]: Row(**entry) for entry in read_json(cache)} if cache.exists() else {}
    learning_rate = HeadSpace.paper().spec(tuned.best.params).learning_rate
    classes = len(images.classes)

    def on_features() -> tuple[Tensor, Tensor]:
        return stores["train"].load(), stores["test"].load()

    def linear(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> Baseline:
        return linear_head(
            train,
            val,
            learning_rate,
            classes=classes,
            epochs=config.tune_epochs,
            batch_size=config.tune_batch_size,
            seed=config.seed,
        )

    def logistic(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> Baseline:
        return logistic_regression(train, val, classes=classes, grid=POWERS_OF_TEN, seed=config.seed)

    def on_pixels() -> tuple[Tensor, Tensor]:
        return raw_pixels(images.train), raw_pixels(images.test)

    plan = {
        "linear head, same learning rate": (on_features, linear),
        "logistic regression on the same features": (on_features, logistic),
        "logistic regression on raw pixels": (on_pixels, logistic),
    }
    rows = []
    for name, (inputs, fit) in plan.items():
        if name not in done:
            train, test = inputs()
            labels = torch.as_tensor(images.train.labels)
            rest, held_out = torch.from_numpy(images.rest), torch.from_numpy(images.held_out)
            fitted = fit((train[rest], labels[rest]), (train[held_out], labels[held_out]))
            score = _test_accuracy(fitted.predictor, test, torch.as_tensor(images.test.labels))
            done[name] = Row(name, score, fitted.validation_accuracy, fitted.detail, fitted.seconds)
            write_json(cache, [asdict(row) for row in done.values()])
        rows.append(done[name])
    return rows


def raw_pixels(dataset: Dataset) -> Tensor:
    """Flatten images to (N, pixels) in [0, 1]; grey images give one channel, large ones are shrunk to 32 pixels."""
    parts = []
    for rows in np.array_split(np.arange(len(dataset)), -(-len(dataset) // 4096)):
        pixels = torch.from_numpy(dataset.images(rows)).permute(0, 3, 1, 2).float() / 255
        if max(pixels.shape[2:]) > RAW_SIDE:
            pixels = F.interpolate(pixels, (RAW_SIDE, RAW_SIDE), mode="bilinear", antialias=True)
        parts.append(pixels)
    whole = torch.cat(parts)
    if torch.equal(whole[:, 0], whole[:, 1]) and torch.equal(whole[:, 1], whole[:, 2]):
        whole = whole[:, :1]
    return whole.flatten(1)


def _test_accuracy(head: nn.Module, features: Tensor, labels: Tensor | None) -> float:
    assert labels is not None
    return accuracy(labels.numpy(), predict_probabilities(head.eval(), features).argmax(1).numpy())
