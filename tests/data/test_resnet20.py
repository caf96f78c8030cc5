"""The data path is bit-true: a published CIFAR-10 ResNet-20 scores what it is known for, through our loader."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sslfast.data import load
from sslfast.data.places import searched
from sslfast.errors import DataError
from sslfast.models import load_backbone
from sslfast.models.checkpoint import read_foreign_state

PUBLISHED = 0.9173
TOLERANCE = 0.0005
FILE = "cifar10_resnet20-12fca82f.th"


def _checkpoint() -> Path | None:
    given = os.environ.get("SSLFAST_CIFAR10_RESNET20")
    if given:
        return Path(given)
    found = [place.path / "weights" / FILE for place in searched(None)]
    return next((path for path in found if os.path.isfile(path)), None)


@pytest.mark.slow
def test_a_published_resnet20_scores_its_published_accuracy() -> None:
    checkpoint = _checkpoint()
    if checkpoint is None:
        pytest.skip(f"the checkpoint {FILE} is not in <data folder>/weights; set SSLFAST_CIFAR10_RESNET20 to its path")
    try:
        dataset = load("cifar10", "test", download=False)
    except DataError as error:
        pytest.skip(f"CIFAR-10 is not here: {error}")
    backbone = load_backbone("resnet20", checkpoint).eval()
    assert not backbone.missing
    assert set(backbone.unexpected) == {"linear.weight", "linear.bias"}
    state = read_foreign_state(checkpoint)
    right = 0
    seen = 0
    with torch.inference_mode():
        for start in range(0, len(dataset), 500):
            indices = np.arange(start, min(start + 500, len(dataset)))
            features = backbone(backbone.preprocess(torch.from_numpy(dataset.images(indices))))
            logits = torch.nn.functional.linear(features, state["linear.weight"], state["linear.bias"])
            right += int((logits.argmax(1).numpy() == dataset.labels[indices]).sum())
            seen += len(indices)
    assert seen == 10_000
    accuracy = right / seen
    print(f"ResNet-20 on CIFAR-10 test: {accuracy:.2%}")
    assert abs(accuracy - PUBLISHED) <= TOLERANCE
