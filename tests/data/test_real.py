"""The real sets, where they are installed."""

import numpy as np
import pytest

from sslfast.data import Dataset, load
from sslfast.errors import DataError


def real(name: str, split: str) -> Dataset:
    try:
        return load(name, split, download=False)
    except DataError as error:
        pytest.skip(f"{name} is not on this machine: {error}")


def moments(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    counts = np.zeros((3, 256))
    for start in range(0, len(dataset), 10_000):
        images = dataset.images(np.arange(start, min(start + 10_000, len(dataset))))
        counts += [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    share = counts / counts.sum(axis=1, keepdims=True)
    levels = np.arange(256) / 255
    mean = share @ levels
    return mean, np.sqrt(share @ levels**2 - mean**2)


@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_fashion_mnist(split: str, count: int) -> None:
    dataset = real("fashion-mnist", split)
    assert len(dataset) == count and dataset.image_size == (28, 28)
    assert dataset.labels is not None and np.bincount(dataset.labels).tolist() == [count // 10] * 10
    if split == "train":
        mean, std = moments(dataset)
        assert np.allclose(mean, 0.2860, atol=5e-4) and np.allclose(std, 0.3530, atol=5e-4)
        assert dataset.classes is not None and [dataset.classes[k] for k in dataset.labels[:3]] == [
            "Ankle boot",
            "T-shirt/top",
            "T-shirt/top",
        ]


@pytest.mark.parametrize(("split", "count"), [("train", 50_000), ("test", 10_000)])
def test_cifar10(split: str, count: int) -> None:
    dataset = real("cifar10", split)
    assert len(dataset) == count and dataset.image_size == (32, 32)
    assert dataset.labels is not None and np.bincount(dataset.labels).tolist() == [count // 10] * 10
    if split == "train":
        mean, std = moments(dataset)
        assert np.allclose(mean, (0.4914, 0.4822, 0.4465), atol=5e-4)
        assert np.allclose(std, (0.2470, 0.2435, 0.2616), atol=5e-4)
