"""Small data sets and backbones for the tests of the feature store."""

import numpy as np
import pytest
import torch
from torch import nn

from sslfast.data.dataset import Dataset
from sslfast.data.memory import ArrayPixels
from sslfast.models import Backbone, Preprocess


def make_dataset(rows, *, seed=0, labels=True, size=8):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    return Dataset(
        "noise",
        "train",
        ArrayPixels(images),
        ids=[f"train/{row:06d}" for row in range(rows)],
        labels=generator.integers(0, 3, rows) if labels else None,
        classes=("one", "two", "three") if labels else None,
    )


def make_backbone(features=5, *, seed=0, size=8):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * size**2, features),
    )
    return Backbone("tiny", network, features, Preprocess(size))


def reference_features(backbone, dataset, flip=False):
    backbone.eval()
    x = backbone.preprocess(torch.from_numpy(dataset.images(np.arange(len(dataset)))))
    with torch.no_grad():
        return backbone(x.flip(3) if flip else x)


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)
