"""Real weights on real images: what others trained classifies, and what was trained without labels clusters.

They are looked for in ``weights`` below every data folder; SSLFAST_WEIGHTS names another folder to look in first.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from sslfast.data import load
from sslfast.data.places import searched
from sslfast.errors import DataError
from sslfast.models import Backbone, Preprocess, load_backbone
from sslfast.models.checkpoint import read_foreign


def weights(name: str) -> Path:
    folders = [Path(os.environ["SSLFAST_WEIGHTS"])] if os.environ.get("SSLFAST_WEIGHTS") else []
    folders += [place.path / "weights" for place in searched(None)]
    for folder in folders:
        if os.path.isfile(folder / name):
            return folder / name
    pytest.skip(f"{name} is not in <data folder>/weights; set SSLFAST_WEIGHTS to the folder that has it")


def cifar(split: str, count: int) -> tuple[Tensor, np.ndarray]:
    try:
        dataset = load("cifar10", split, download=False)
    except DataError as error:
        pytest.skip(f"CIFAR-10 is not here: {error}")
    assert dataset.labels is not None
    chosen = np.arange(count)
    return torch.from_numpy(dataset.images(chosen)), dataset.labels[chosen]


def features(backbone: Backbone, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([backbone(backbone.preprocess(part)) for part in images.split(250)])


def neighbours(train: Tensor, labels: np.ndarray, test: Tensor, k: int = 20) -> np.ndarray:
    """Classify by the most frequent label among the nearest training images, cosine similarity."""
    unit = [part / part.norm(dim=1, keepdim=True) for part in (train, test)]
    nearest = (unit[1] @ unit[0].T).topk(k, dim=1).indices.numpy()
    return np.array([np.bincount(row, minlength=10).argmax() for row in labels[nearest]])


@pytest.mark.slow
def test_a_supervised_resnet20_classifies_cifar10() -> None:
    path = weights("cifar10_resnet20-12fca82f.th")
    images, labels = cifar("test", 1000)
    backbone = load_backbone("resnet20", path).eval()
    assert backbone.missing == [] and set(backbone.unexpected) == {"linear.weight", "linear.bias"}
    assert backbone.layout is None and backbone.convention == "default"
    state = read_foreign(path).content["state_dict"]
    linear = torch.nn.functional.linear
    with torch.inference_mode():
        logits = linear(features(backbone, images), state["module.linear.weight"], state["module.linear.bias"])
    # 91.73 % over all 10,000, which tests/data/test_resnet20.py holds to 0.05.
    assert abs(float((logits.argmax(1).numpy() == labels).mean()) - 0.9173) < 0.02


@pytest.mark.slow
def test_a_self_supervised_resnet20_clusters_cifar10() -> None:
    path = weights("cifar10_resnet20_barlowtwins.pth")
    (train, train_labels), (test, test_labels) = cifar("train", 2000), cifar("test", 500)
    preprocess = Preprocess(32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    scores = {}
    torch.manual_seed(0)
    for name, backbone in (
        ("trained", load_backbone("resnet20", path, preprocess)),
        ("random", load_backbone("resnet20", preprocess=preprocess)),
    ):
        backbone.eval()
        right = neighbours(features(backbone, train), train_labels, features(backbone, test)) == test_labels
        scores[name] = float(right.mean())
    assert scores["trained"] > 0.42 and scores["trained"] > scores["random"] + 0.08, scores


@pytest.mark.slow
def test_keras_resnet50_tells_cifar10s_classes_apart() -> None:
    """ImageNet's own head names CIFAR-10's classes on enlarged images; with another convention it does not."""
    path = weights("resnet50_keras_imagenet1k.safetensors")
    backbone = load_backbone("resnet50", path).eval()
    assert backbone.architecture == "resnet50-keras" and backbone.layout == "keras" and backbone.missing == []
    state = read_foreign(path).content
    images, labels = cifar("test", 60)
    right = {}
    for name, preprocess in (
        ("its own", Preprocess(160, backbone.preprocess.mean, backbone.preprocess.std)),
        ("without mean and scale", Preprocess(160, (0.0,) * 3, (1.0,) * 3)),
    ):
        backbone.preprocess = preprocess
        if name == "its own":  # the features of bench/results/head_search_cifar10_resnet50.json
            assert backbone.fingerprint() == "22a1c2302795c06904e542f2b96066d48879f373e576b5b1f035446ca554b8ec"
        logits = torch.nn.functional.linear(features(backbone, images), state["fc.weight"], state["fc.bias"])
        guesses = torch.stack([logits[:, list(of)].amax(1) for of in IMAGENET_CLASSES], 1).argmax(1).numpy()
        right[name] = float((guesses == labels).mean())
    assert right["its own"] > 0.5 and right["without mean and scale"] < right["its own"] - 0.2, right


IMAGENET_CLASSES = (
    (404, 895),  # airplane: airliner, warplane
    (407, 436, 468, 511, 609, 627, 656, 661, 751, 817),  # automobile: ambulance, wagons, cabs, ..., sports car
    tuple(range(7, 25)) + tuple(range(80, 101)) + tuple(range(127, 147)),  # bird
    tuple(range(281, 286)),  # cat
    (351, 352, 353),  # deer: hartebeest, impala, gazelle
    tuple(range(151, 269)),  # dog
    (30, 31, 32),  # frog
    (339, 340),  # horse: sorrel; zebra
    (403, 472, 484, 510, 554, 625, 628, 724, 780, 814, 833, 871, 914),  # ship
    (555, 569, 654, 675, 717, 734, 757, 864, 867),  # truck
)
"""Indices of ImageNet's 1,000 classes that are kinds of a class of CIFAR-10."""


@pytest.mark.slow
def test_torchvisions_own_file_is_torchvisions_own_network() -> None:
    path = weights("mobilenet_v2-b0353104.pth")
    backbone = load_backbone("mobilenet_v2", path).eval()
    assert backbone.layout == "torchvision" and backbone.preprocess == Preprocess(224)
    whole = torchvision.models.mobilenet_v2(weights=None).eval()
    whole.load_state_dict(torch.load(path, weights_only=True))
    images, labels = cifar("test", 100)
    state = read_foreign(path).content
    x = backbone.preprocess(images[:8])
    with torch.inference_mode():
        ours = torch.nn.functional.linear(backbone(x), state["classifier.1.weight"], state["classifier.1.bias"])
        assert torch.equal(ours, whole(x))
        logits = torch.cat([whole(backbone.preprocess(part)) for part in images.split(25)])
    guesses = torch.stack([logits[:, list(of)].amax(1) for of in IMAGENET_CLASSES], 1).argmax(1).numpy()
    assert float((guesses == labels).mean()) > 0.5
