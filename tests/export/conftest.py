"""Small classifiers with weights that are not those of an untrained network, and images to try them on."""

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sslfast.export import Parity, to_onnx
from sslfast.models import Backbone, Preprocess, load_backbone
from sslfast.models.classifier import Classifier
from sslfast.models.head import Head, HeadSpec


@pytest.fixture(scope="session")
def make_classifier() -> Callable[..., Classifier]:
    """Build a classifier whose batch normalisation and standardisation are not the identity."""

    def make(architecture: str = "resnet-small", classes: int = 10, size: int = 32) -> Classifier:
        torch.manual_seed(0)
        backbone = load_backbone(architecture, preprocess=Preprocess(size))
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.2)
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
        head = Head(backbone.features, classes, HeadSpec((128, 64), 0.4, 0.01))
        head.mean.uniform_(0, 0.5)
        head.std.uniform_(0.2, 1)
        return Classifier(backbone, head, [f"class {index}" for index in range(classes)])

    return make


@pytest.fixture(scope="session")
def digits() -> NDArray[np.uint8]:
    """Real images, uint8 (300, 8, 8, 3): scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits

    images = np.rint(load_digits().images[:300] * 255 / 16).astype(np.uint8)
    return np.repeat(images[..., None], 3, axis=3)


@pytest.fixture(scope="session")
def exported(
    make_classifier: Callable[..., Classifier], digits: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Classifier, Path, Parity]:
    """One exported classifier for all tests that only read it: tracing takes seconds."""
    classifier = make_classifier()
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return classifier, path, to_onnx(classifier, path, check_images=digits)


@pytest.fixture
def tiny() -> Classifier:
    """A classifier that is traced in no time: its features are the pixels of a 4 x 4 image."""
    torch.manual_seed(0)
    backbone = Backbone("flatten", torch.nn.Flatten(), 48, Preprocess(4))
    return Classifier(backbone, Head(48, 10, HeadSpec((), 0.0, 0.1)), [f"class {index}" for index in range(10)])


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Let no file grow beyond some bytes while a block runs: what a full disk looks like to a writer."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
