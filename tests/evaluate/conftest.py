"""Features with classes that a line tells apart most of the time, in memory and as stores."""

import pytest
import torch
from stores import clusters, write_store


@pytest.fixture(scope="session")
def rows():
    """(views, N, D) training features and labels, (M, D) test features and labels: one cloud around each class."""
    features, labels = clusters(1700, 16, classes=5, views=2, seed=0)
    return (features[:, :1200], labels[:1200]), (features[0, 1200:], labels[1200:])


@pytest.fixture(scope="session")
def stores(rows, tmp_path_factory):
    """The same rows as feature stores of a training and a test split, in several shards."""
    (features, labels), (test, test_labels) = rows
    folder = tmp_path_factory.mktemp("stores")
    train = write_store(folder / "train", features, labels, ("identity", "flip"), shard_rows=500)
    return train, write_store(folder / "test", test[None], test_labels, shard_rows=300, split="test")


@pytest.fixture
def spoiled(rows):
    """Training features with one NaN, and their labels."""
    (features, labels), _ = rows
    features = features[0].clone()
    features[7, 3] = torch.nan
    return features, labels
