"""How well a clustering agrees with classes: NMI, AMI, ARI and the accuracy of the best matching."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from sslfast.evaluate.counting import Counts, contingency, expected_mutual_information, label_pair


@dataclass(frozen=True)
class ClusteringScores:
    """A clustering against classes.

    Args:
        nmi: mutual information over the arithmetic mean of the two entropies, in [0, 1].
        ami: the same with what chance would give subtracted from both; 0 for a random clustering, at most 1.
        ari: the Rand index, likewise adjusted (Hubert and Arabie, 1985).
        acc: accuracy of the assignment, in [0, 1]; with more clusters than classes see `clustering_scores`.
        one_to_one_acc: the accuracy where clusters without a class of their own count as wrong; ``acc`` otherwise.
        classes: that occur.
        clusters: that occur.
        rows: that were scored.
        assignment: class of each cluster that occurs.
    """

    nmi: float
    ami: float
    ari: float
    acc: float
    one_to_one_acc: float
    classes: int
    clusters: int
    rows: int
    assignment: dict[int, int]

    def assigned(self, clusters: ArrayLike) -> NDArray[np.int64]:
        """Turn clusters (N,) into the classes that they were matched with; -1 for one without a class."""
        numbers, where = np.unique(np.asarray(clusters), return_inverse=True)
        classes = np.array([self.assignment.get(int(number), -1) for number in numbers], dtype=np.int64)
        return classes[where]


def clustering_scores(y_true: ArrayLike, y_pred: ArrayLike) -> ClusteringScores:
    r"""Compare clusters with classes, whatever numbers either goes by.

    ``acc`` is that of the one-to-one matching of clusters and classes that is right most often (Kuhn, 1955). With more
    clusters than classes (over-clustering) the clusters that are left over go to the class that most of their rows
    have, as the Self-Classifier's evaluation does it, so that every row has a class; that is generous where clusters
    are many, and ``one_to_one_acc`` stands beside it. With fewer clusters than classes some are never predicted.
    NMI and AMI are normalised by the arithmetic mean of the entropies, as scikit-learn does it by default. Where there
    is one class and one cluster all are 1.

    Args:
        y_true: class of each row (N,), whole numbers.
        y_pred: cluster of each row (N,), whole numbers.

    Raises:
        DataError: lengths differ, there are no rows, or these are no whole numbers.
        UsageError: there are more than 2^28 pairs of a class and a cluster.
    """
    true, predicted = label_pair(y_true, y_pred)
    table, classes, clusters = contingency(true, predicted)
    matched, assignment = _match(table)
    right = int(table[assignment, np.arange(len(clusters))][assignment >= 0].sum())
    information, entropies = _information(table)
    expected = expected_mutual_information(table.sum(1), table.sum(0))
    mean = sum(entropies) / 2
    trivial = len(classes) == len(clusters) == 1
    return ClusteringScores(
        nmi=1.0 if trivial else information / mean,
        ami=1.0 if trivial else _adjusted(information, expected, mean),
        ari=_adjusted_rand(table),
        acc=right / len(true),
        one_to_one_acc=matched / len(true),
        classes=len(classes),
        clusters=len(clusters),
        rows=len(true),
        assignment={
            int(cluster): int(classes[index]) for cluster, index in zip(clusters, assignment, strict=True) if index >= 0
        },
    )


def _match(table: Counts) -> tuple[int, Counts]:
    """Give how many rows the best one-to-one matching is right on, and the row of ``table`` of each column, or -1."""
    rows, columns = linear_sum_assignment(table, maximize=True)
    assignment = np.full(table.shape[1], -1, dtype=np.int64)
    assignment[columns] = rows
    if table.shape[1] > table.shape[0]:
        left = assignment < 0
        assignment[left] = table[:, left].argmax(0)
    return int(table[rows, columns].sum()), assignment


def _information(table: Counts) -> tuple[float, tuple[float, float]]:
    """Give the mutual information and both entropies, in nats."""
    total = float(table.sum())
    shares = table / total
    rows, columns = shares.sum(1), shares.sum(0)
    i, j = np.nonzero(table)
    cells = shares[i, j]
    information = float((cells * (np.log(cells) - np.log(rows[i]) - np.log(columns[j]))).sum())
    return max(information, 0.0), (float(-(rows * np.log(rows)).sum()), float(-(columns * np.log(columns)).sum()))


def _adjusted(value: float, expected: float, most: float) -> float:
    # Rounding may leave the room above chance at 0 or below it, where every row is a cluster of its own, say.
    room = most - expected
    if abs(room) < 1e-15 * max(1.0, most):
        return 1.0 if abs(value - most) < 1e-12 * max(1.0, most) else 0.0
    return (value - expected) / room


def _adjusted_rand(table: Counts) -> float:
    """Give the adjusted Rand index; pairs are counted in Python's integers, which have no largest one."""

    def pairs(counts: Counts) -> int:
        sizes, times = np.unique(counts, return_counts=True)
        return sum(int(n) * (int(n) - 1) // 2 * int(m) for n, m in zip(sizes, times, strict=True))

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    total = int(table.sum())
    everything = total * (total - 1) // 2
    if rows == columns == both:  # the same partition, or nothing but single rows
        return 1.0
    expected = rows * columns / everything
    return (both - expected) / ((rows + columns) / 2 - expected)
