"""k-nearest neighbours on features: a classifier without training, as self-supervised learning is judged by."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.errors import DataError

NUMBERS = (1, 5, 10, 20, 50, 100, 200)
"""Values of k that validation chooses from."""

TEMPERATURE = 0.07
"""Of a neighbour's vote exp(similarity / temperature), as Wu et al. (2018) weight it."""

PAIRS_AT_A_TIME = 50_000_000


class Neighbours(nn.Module):
    """Features to log-probabilities by the weighted votes of the most similar training rows (cosine).

    Args:
        features: of the training rows (N, D).
        labels: their classes (N,).
        classes: number of classes.
        number: k.
    """

    mean: Tensor
    rows: Tensor
    labels: Tensor

    def __init__(self, features: Tensor, labels: Tensor, classes: int, number: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features.shape[1]))  # where the module is
        self.register_buffer("rows", F.normalize(features.float(), dim=1))
        self.register_buffer("labels", labels.long())
        self.classes, self.number = classes, number

    def votes(self, features: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        """Give the votes (M, classes) for every k in ``numbers``, from one search."""
        most = min(max(numbers), len(self.rows))
        similar, index = (F.normalize(features.float(), dim=1) @ self.rows.t()).topk(most, dim=1)
        # The nearest one has weight 1: exp(1 / 0.07) is no trouble, but a zero vector's votes would be.
        weights = ((similar - similar[:, :1]) / TEMPERATURE).exp()
        chosen = self.labels[index]
        empty = weights.new_zeros(len(features), self.classes)
        return [empty.scatter_add(1, chosen[:, :k], weights[:, :k]) for k in numbers]

    def forward(self, features: Tensor) -> Tensor:
        """Map features (M, D) to log-probabilities (M, classes); a class without a vote has a large negative one."""
        step = max(1, PAIRS_AT_A_TIME // len(self.rows))
        votes = torch.cat([self.votes(part, [self.number])[0] for part in torch.split(features, step)])
        return (votes / votes.sum(1, keepdim=True)).clamp_min(1e-12).log()


def choose_neighbours(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    classes: int,
    numbers: Sequence[int] = NUMBERS,
) -> tuple[Neighbours, float, float]:
    """Choose k by validation accuracy, the smallest of equals.

    Args:
        train: features (N, D) and labels; of (views, N, D) the first view is taken.
        val: features (M, D) and labels.
        classes: number of classes.
        numbers: values of k; those above N are N.

    Returns:
        The classifier, its validation accuracy and the seconds it took.

    Raises:
        DataError: features are not finite, or there are no rows.
    """
    start = time.monotonic()
    features = train[0][0] if train[0].dim() == 3 else train[0]
    if not len(features) or not len(val[0]):
        raise DataError("k-NN: there are no rows")
    if not bool(torch.isfinite(features).all()) or not bool(torch.isfinite(val[0]).all()):
        raise DataError("k-NN: features hold NaN or infinity; extract anew")
    numbers = sorted({min(number, len(features)) for number in numbers})
    model = Neighbours(features, train[1], classes, numbers[0])
    right = torch.zeros(len(numbers), dtype=torch.int64)
    step = max(1, PAIRS_AT_A_TIME // len(features))
    for part, labels in zip(torch.split(val[0], step), torch.split(val[1], step), strict=True):
        found = model.votes(part, numbers)
        right += torch.stack([(votes.argmax(1) == labels).sum() for votes in found])
    best = int(right.argmax())
    model.number = numbers[best]
    return model.eval(), int(right[best]) / len(val[0]), time.monotonic() - start
