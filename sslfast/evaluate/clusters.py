"""k-means on frozen features: how well a backbone clusters by itself."""

import time
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sslfast.errors import DataError, UsageError
from sslfast.evaluate.clustering import ClusteringScores, clustering_scores
from sslfast.evaluate.config import ClusterConfig
from sslfast.evaluate.samples import Given, pair
from sslfast.options import check_seed
from sslfast.progress import console

PART_ROWS = 8192
"""Rows are read and assigned so many at a time."""


@dataclass(frozen=True)
class Clustered:
    """Clusters of training rows, and where the test rows fall.

    Args:
        scores: of the test rows.
        predicted: cluster of every test row (M,), int64.
        centres: (clusters, D), float32.
        iterations: of the beginning that was kept.
        seconds: wall time.
    """

    scores: ClusteringScores
    predicted: Tensor
    centres: Tensor
    iterations: int
    seconds: float


def kmeans(train: Given, test: Given, config: ClusterConfig = ClusterConfig()) -> Clustered:  # noqa: B008  (frozen)
    """Cluster training features by scikit-learn's k-means, put every test row to its nearest centre, and score those.

    Features are scaled to length one, as k-NN compares them. Labels are used for the scores alone.

    Args:
        train: training features; of several views the first, all in memory.
        test: test features from the same backbone.
        config: number of clusters, restarts, seed.

    Raises:
        DataError: the rows do not belong together, a feature is not finite, or there are more clusters than rows.
        UsageError: an option makes no sense.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    start = time.monotonic()
    one, other, classes = pair(train, test)
    clusters = config.clusters or classes
    check_clusters(config, clusters, len(one))
    points = torch.cat([F.normalize(part, dim=1) for part in one.parts(PART_ROWS)])
    console.print(f"k-means: {clusters} clusters of {len(one):,} rows, {config.restarts} beginnings", markup=False)
    # scikit-learn takes seeds of 32 bits.
    model = KMeans(
        clusters, n_init=config.restarts, max_iter=config.max_iterations, random_state=config.seed % (1 << 32)
    )
    with warnings.catch_warnings():
        # Of fewer different points than clusters some clusters stay empty; the scores say how many occur.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points.numpy())
    centres = torch.from_numpy(model.cluster_centers_).float()
    half = (centres * centres).sum(1) / 2
    predicted = torch.cat(
        [(F.normalize(part, dim=1) @ centres.t() - half).argmax(1) for part in other.parts(PART_ROWS)]
    )
    scores = clustering_scores(other.labels.numpy(), predicted.numpy())
    return Clustered(scores, predicted, centres, int(model.n_iter_), time.monotonic() - start)


def check_clusters(config: ClusterConfig, clusters: int, rows: int) -> None:
    """Refuse numbers that make no sense, and more clusters than training ``rows``.

    Raises:
        UsageError: the former.
        DataError: the latter.
    """
    check_seed(config.seed)
    if clusters < 2 or config.restarts < 1 or config.max_iterations < 1:
        raise UsageError(
            f"k-means needs two clusters, a beginning and an iteration; got {clusters}, {config.restarts} and "
            f"{config.max_iterations}"
        )
    if clusters > rows:
        raise DataError(f"there are {clusters} clusters, but {rows} training rows; give fewer clusters")
