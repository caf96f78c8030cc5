"""k-nearest neighbours on features: a classifier without training, as self-supervised learning is judged by."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.errors import DataError, UsageError
from sslfast.search.sources import Rows

NUMBERS = (1, 5, 10, 20, 50, 100, 200)
"""Values of k that validation chooses from."""

TEMPERATURE = 0.07
"""Of a neighbour's vote exp(similarity / temperature), as Wu et al. (2018) weight it."""

PAIRS_AT_A_TIME = 16_000_000
"""Most similarities that are in memory, 64 MB."""


class Neighbours(nn.Module):
    """Features to log-probabilities by the weighted votes of the most similar training rows (cosine).

    Args:
        rows: features of the training rows, of length one (N, D).
        labels: their classes (N,).
        classes: number of classes.
        number: k.
    """

    mean: Tensor
    rows: Tensor
    labels: Tensor

    def __init__(self, rows: Tensor, labels: Tensor, classes: int, number: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(rows.shape[1], device=rows.device))  # where the module is
        self.register_buffer("rows", rows)
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
    train: tuple[Tensor, Tensor] | Rows,
    val: tuple[Tensor, Tensor] | None = None,
    *,
    classes: int,
    numbers: Sequence[int] = NUMBERS,
) -> tuple[Neighbours, float, float]:
    """Choose k by validation accuracy, the smallest of equals.

    Args:
        train: features (N, D) and labels; of (views, N, D) the first view is taken. Or rows as the search has them;
            features are then what they were before they were standardised, but for rounding.
        val: features (M, D) and labels; None where ``train`` has them.
        classes: number of classes.
        numbers: values of k; those above N are N.

    Returns:
        The classifier, its validation accuracy and the seconds it took.

    Raises:
        DataError: features are not finite, or there are no rows.
    """
    start = time.monotonic()
    if isinstance(train, Rows):
        # One copy, in which everything is done in place: the features may be half of what memory holds.
        unit = torch.addcmul(train.mean, train.features[0], train.std)
        unit /= unit.norm(dim=1, keepdim=True).clamp_min_(1e-12)
        labels, held_out = train.labels, train.validation_labels
        parts: Iterator[Tensor] = (torch.addcmul(train.mean, part, train.std) for part, _ in train.validation())
    elif val is None:
        raise UsageError("val is missing: held-out features and labels to choose k by")
    else:
        features = train[0][0] if train[0].dim() == 3 else train[0]
        if not len(features) or not len(val[0]):
            raise DataError("k-NN: there are no rows")
        if not bool(torch.isfinite(features).all()) or not bool(torch.isfinite(val[0]).all()):
            raise DataError("k-NN: features hold NaN or infinity; extract anew")
        unit, labels, held_out = F.normalize(features.float(), dim=1), train[1], val[1]
        parts = iter([val[0]])
    numbers = sorted({min(number, len(unit)) for number in numbers})
    model = Neighbours(unit, labels, classes, numbers[0])
    right = torch.zeros(len(numbers), dtype=torch.int64)
    step, done = max(1, PAIRS_AT_A_TIME // len(unit)), 0
    for part in parts:
        for some in torch.split(part, step):
            expected = held_out[done : done + len(some)]
            found = model.votes(some, numbers)
            right += torch.stack([(votes.argmax(1) == expected).sum() for votes in found]).cpu()
            done += len(some)
    best = int(right.argmax())
    model.number = numbers[best]
    return model.eval(), int(right[best]) / len(held_out), time.monotonic() - start
