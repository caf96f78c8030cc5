"""k-means on features."""

import pytest
import torch

from sslfast.errors import DataError, UsageError
from sslfast.evaluate import ClusterConfig, kmeans


@pytest.fixture(scope="module")
def apart():
    """Clouds in five directions of any length: k-means finds them once lengths do not count."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(500) % 5
    directions = torch.eye(5, 8)[labels] + 0.1 * torch.randn(500, 8, generator=generator)
    features = directions * (0.1 + 10 * torch.rand(500, 1, generator=generator))
    return (features[:400], labels[:400]), (features[400:], labels[400:])


def test_clusters_that_are_there_are_found_whatever_the_lengths(apart):
    found = kmeans(*apart)
    assert found.scores.acc > 0.98 and found.scores.ari > 0.95
    assert found.predicted.shape == (100,) and found.centres.shape == (5, 8)


def test_test_rows_go_to_the_nearest_centre(apart):
    found = kmeans(*apart, ClusterConfig(7))
    unit = torch.nn.functional.normalize(apart[1][0], dim=1)
    assert torch.equal(found.predicted, torch.cdist(unit, found.centres).argmin(1))


def test_more_clusters_than_classes_are_said(apart):
    scores = kmeans(*apart, ClusterConfig(20)).scores
    assert scores.clusters > 5 and scores.acc > scores.one_to_one_acc


def test_labels_decide_nothing_and_a_seed_repeats_itself(apart):
    (features, labels), test = apart
    one, other = kmeans(*apart), kmeans((features, labels.flip(0)), test)
    assert torch.equal(one.predicted, other.predicted)


def test_fewer_points_than_clusters_leave_clusters_empty():
    features, labels = torch.eye(3).repeat(4, 1), torch.arange(12) % 3
    found = kmeans((features, labels), (features[:6], labels[:6]), ClusterConfig(5))
    assert found.scores.clusters == 3 and found.scores.acc == 1.0


def test_what_makes_no_sense(apart):
    (features, labels), test = apart
    with pytest.raises(DataError, match="401 clusters, but 400 training rows"):
        kmeans(*apart, ClusterConfig(401))
    with pytest.raises(UsageError, match="two clusters"):
        kmeans(*apart, ClusterConfig(1))
    with pytest.raises(DataError, match="NaN"):
        kmeans((features / 0, labels), test)
