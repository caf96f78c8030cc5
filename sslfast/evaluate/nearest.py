"""k-nearest neighbours on frozen features, as self-supervised learning is judged by: nothing is trained or chosen."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sslfast.errors import DataError, UsageError
from sslfast.evaluate.config import NearestConfig
from sslfast.evaluate.samples import Given, Samples, pair
from sslfast.options import check_number
from sslfast.progress import bar

TRAIN_ROWS = 32768
"""Training rows of a tile, which are read once; fewer where they are more than `TILE_BYTES`.

The search for the k largest of a row costs less per number the longer the row is, up to about this length."""

TEST_ROWS = 512
"""Test rows of a tile; 64 MB of similarities are in memory, whatever the numbers of rows are."""

TILE_BYTES = 64 << 20

_LEAST_ROWS = 8192


@dataclass(frozen=True)
class NearestScore:
    """One form of the vote.

    Args:
        number: k.
        temperature: T of exp(cos / T), or None where every neighbour has one vote.
        accuracy: on the test rows, in [0, 1].
        predicted: class of every test row (M,), int64.
    """

    number: int
    temperature: float | None
    accuracy: float
    predicted: Tensor

    @property
    def name(self) -> str:
        """How a table calls it."""
        votes = "majority" if self.temperature is None else f"T {self.temperature:g}"
        return f"k-NN, k {self.number}, {votes}"


def knn(
    train: Given,
    test: Given,
    config: NearestConfig = NearestConfig(),  # noqa: B008  (frozen)
    *,
    device: str | torch.device = "cpu",
) -> tuple[NearestScore, ...]:
    r"""Classify test rows by the votes of their k most similar training rows (cosine), in every form that is asked for.

    A neighbour i votes :math:`e^{\cos_i / T}` for its class (Wu et al., 2018), or 1 (majority; of classes with equally
    many votes the first). All forms come from one search. Nothing is selected: whoever reports the best of the rows has
    chosen it on the test split.

    Args:
        train: features of the training rows; of several views the first.
        test: features of the test rows, from the same backbone.
        config: values of k and T.
        device: where similarities are computed.

    Returns:
        One score per k and form: first the temperatures, then the majority.

    Raises:
        DataError: the rows do not belong together, there is one class only, a feature is not finite, or k is larger
            than the training set.
        UsageError: a k or T makes no sense.
    """
    check_nearest(config)
    one, other, classes = pair(train, test)
    check_nearest(config, len(one))
    similar, index = nearest(one, other, max(config.numbers), device)
    labels = one.labels[index]
    scores = []
    forms: list[float | None] = [*config.temperatures, *([None] if config.majority else [])]
    for number in config.numbers:
        for form in forms:
            predicted = vote(similar[:, :number], labels[:, :number], classes, form)
            right = int((predicted == other.labels).sum())
            scores.append(NearestScore(number, form, right / len(other), predicted))
    return tuple(scores)


def check_nearest(config: NearestConfig, rows: int | None = None) -> None:
    """Refuse values of k and T that make no sense, and a k that is larger than the number of training ``rows``.

    Raises:
        UsageError: the former.
        DataError: the latter.
    """
    if not config.numbers or not (config.temperatures or config.majority):
        raise UsageError("k-NN needs a value of k, and a temperature or the majority vote")
    for temperature in config.temperatures:
        check_number("the temperature", temperature, 0, open_low=True)
    for number in config.numbers:
        if number < 1:
            raise UsageError(f"k must be at least 1, got {number}")
        if rows is not None and number > rows:
            raise DataError(f"k is {number}, but there are {rows} training rows; give a smaller k")


def vote(similar: Tensor, labels: Tensor, classes: int, temperature: float | None) -> Tensor:
    """Give the class (M,) with most votes: similarities (M, k), the nearest first, of neighbours of classes (M, k)."""
    # Over the nearest one's vote: exp(1 / 0.01) is more than float32 holds, and the order is the same.
    closeness = similar - similar[:, :1]
    weights = torch.ones_like(similar) if temperature is None else (closeness / temperature).exp()
    return weights.new_zeros(len(labels), classes).scatter_add_(1, labels, weights).argmax(1)


def nearest(train: Samples, test: Samples, number: int, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """Find the ``number`` most similar training rows of every test row by the cosine.

    Tile by tile: training rows pass once, the test rows and what is best so far stay. Products are float32.

    Returns:
        Similarities (M, number), the largest first, and numbers of training rows, on the CPU.
    """
    size = min(TRAIN_ROWS, max(_LEAST_ROWS, TILE_BYTES // (4 * train.width)))
    queries = torch.cat([F.normalize(part, dim=1) for part in test.parts(size)]).to(device)
    best = torch.full((len(queries), number), -torch.inf, device=device)
    index = torch.zeros(len(queries), number, dtype=torch.int64, device=device)
    with bar("nearest neighbours", len(train), "rows") as shown:
        start = 0
        for part in train.parts(size):
            keys = F.normalize(part.to(device), dim=1).t().contiguous()
            for first in range(0, len(queries), TEST_ROWS):
                rows = slice(first, first + TEST_ROWS)
                found, where = (queries[rows] @ keys).topk(min(number, keys.shape[1]), dim=1)
                both = torch.cat([best[rows], found], 1)
                best[rows], place = both.topk(number, dim=1)
                index[rows] = torch.cat([index[rows], where + start], 1).gather(1, place)
            start += len(part)
            shown.advance(len(part))
    return best.cpu(), index.cpu()
