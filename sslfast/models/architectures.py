"""Networks by name: our own, torchvision's and timm's, without their classifiers.

A residual network's name is ``resnet<depth>[x<width>][-<variant>]``. The variants are networks that published weights
were trained in; they have the same weights as the plain one and other features, so that each has a name of its own.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.errors import UsageError
from sslfast.models.autoencoder import Encoder
from sslfast.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from sslfast.models.resnet import ResNet

TIMM = "timm:"

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

VARIANTS = {
    # name: (what it is, default input size)
    "": ("torchvision's: 7x7 convolution of stride 2, 3x3 max-pool of stride 2", 224),
    "cifar": ("3x3 convolution of stride 1, no max-pool", 32),
    "cifar-pad2": ("as cifar, with padding 2 instead of 1 (solo-learn's; 34 x 34 maps of 32 x 32 images)", 32),
    "cifar-pool": ("as cifar, with torchvision's max-pool (Lightning-Bolts before 0.3)", 32),
    "cifar-pad2-pool": ("as cifar-pad2, with torchvision's max-pool (Lightning-Bolts' SwAV with maxpool1)", 32),
    "cifar-norelu": ("as cifar, without the ReLU after the first normalisation (lightly's benchmarks)", 32),
    "stl": ("3x3 convolution of stride 1, 2x2 max-pool of stride 2 and padding 1 (SCAN's for STL-10)", 96),
    "nopool": ("7x7 convolution of stride 2, no max-pool (Lightning-Bolts' for STL-10)", 96),
    "same": ("max-pool padded as TensorFlow's SAME: right and bottom only (SimCLR v1 and v2)", 224),
    "keras": ("stride in a block's first 1x1 convolution, epsilon 1e-3 in batch normalisation (Keras, version 1)", 224),
}
"""What a residual network's stem or blocks can be."""

_RESNET = re.compile(r"resnet(18|34|50|101|152)(?:x([2-9]))?(?:-(.+))?")


class Parts(NamedTuple):
    """What the name of a residual network says."""

    depth: int
    width: int
    variant: str

    @property
    def name(self) -> str:
        """The name that says it."""
        width = f"x{self.width}" if self.width > 1 else ""
        return f"resnet{self.depth}{width}" + (f"-{self.variant}" if self.variant else "")


class Built(NamedTuple):
    """A network without its classifier, the length of its features, and its default preprocessing."""

    network: nn.Module
    features: int
    preprocess: Preprocess


class SamePool(nn.Module):
    """A 3x3 max-pool of stride 2, padded as TensorFlow's SAME: of an even side, right and bottom only."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
        height, width = x.shape[2:]
        return F.max_pool2d(F.pad(x, (width % 2, 1, height % 2, 1), value=float("-inf")), 3, 2)


def _small_resnet() -> ResNet:
    return ResNet(widths=(32, 64, 128), blocks=(1, 1, 1), stem_stride=2)


def _torchvision(name: str) -> nn.Module:
    import torchvision

    # Their auxiliary classifiers, and a change of the input's scale that only their own weights switch on.
    options = {"aux_logits": False, "init_weights": True} if name in ("inception_v3", "googlenet") else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    network.out_features = _without_classifier(name, network)  # type: ignore[assignment]
    return network


def _without_classifier(name: str, network: nn.Module) -> int:
    """Replace the last linear layer by the identity and give the number of its inputs."""
    for child in ("fc", "classifier", "head", "heads"):
        if not hasattr(network, child):
            continue
        found = [
            (key, module)
            for key, module in network.get_submodule(child).named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
        ]
        if found:
            key, last = found[-1]
            owner, _, own = f"{child}.{key}".rstrip(".").rpartition(".")
            setattr(network.get_submodule(owner), own, nn.Identity())
            return int(last.in_features if isinstance(last, nn.Linear) else last.in_channels)
    raise UsageError(f"{name} is no classifier of torchvision that has features; give another one")


def _resnet(parts: Parts) -> nn.Module:
    """Build a residual network with torchvision's names of weights."""
    from torchvision.models.resnet import BasicBlock, Bottleneck

    network = _torchvision(f"resnet{parts.depth}")
    if parts.width > 1:
        block: Any = BasicBlock if parts.depth < 50 else Bottleneck
        channels = 64 * parts.width
        made: Any = network
        made.inplanes = channels
        network.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        network.bn1 = nn.BatchNorm2d(channels)
        for stage, count in enumerate(DEPTHS[parts.depth], start=1):
            stride = 2 if stage > 1 else 1
            setattr(network, f"layer{stage}", made._make_layer(block, channels << (stage - 1), count, stride))
        network.out_features *= parts.width  # type: ignore[operator, assignment]
    variant = parts.variant
    if variant.startswith("cifar") or variant == "stl":
        padding = 2 if variant.startswith("cifar-pad2") else 1
        network.conv1 = nn.Conv2d(3, 64 * parts.width, 3, 1, padding, bias=False)
        if not variant.endswith("-pool"):
            network.maxpool = nn.MaxPool2d(2, 2, 1) if variant == "stl" else nn.Identity()
    if variant == "cifar-norelu":
        network.relu = nn.Identity()  # only the stem uses this one; blocks have their own
    if variant == "nopool":
        network.maxpool = nn.Identity()
    if variant == "same":
        network.maxpool = SamePool()
    if variant == "keras":
        _strides_first(network)
    if parts.width > 1 or variant.startswith(("cifar", "stl")):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _strides_first(network: nn.Module) -> None:
    for stage in ("layer2", "layer3", "layer4"):
        first = network.get_submodule(f"{stage}.0")
        convolutions = [first.get_submodule(name) for name in ("conv1", "conv2")]
        for convolution, stride in zip(convolutions, (2, 1), strict=True):
            assert isinstance(convolution, nn.Conv2d)
            convolution.stride = (stride, stride)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # name: (constructor, default input size)
    "resnet-small": (_small_resnet, 32),
    "resnet20": (lambda: ResNet(widths=(16, 32, 64), blocks=(3, 3, 3), shortcut="pad"), 32),
    "resnet18": (lambda: _torchvision("resnet18"), 224),
    "resnet34": (lambda: _torchvision("resnet34"), 224),
    "resnet50": (lambda: _torchvision("resnet50"), 224),
    "resnet18-cifar": (lambda: _resnet(Parts(18, 1, "cifar")), 32),
    "resnet34-cifar": (lambda: _resnet(Parts(34, 1, "cifar")), 32),
    "resnet50-cifar": (lambda: _resnet(Parts(50, 1, "cifar")), 32),
    "alexnet": (lambda: _torchvision("alexnet"), 224),
    "conv-autoencoder": (Encoder, 32),
}
"""The built-in names; `build` knows more."""


def resnet_parts(name: str) -> Parts | None:
    """Read the name of a residual network of the ImageNet family; None where it is none."""
    found = _RESNET.fullmatch(name)
    if found is None or (found[3] or "") not in VARIANTS or (found[3] == "keras" and int(found[1]) < 50):
        return None
    return Parts(int(found[1]), int(found[2] or 1), found[3] or "")


def architecture_names() -> tuple[str, ...]:
    """List every name that `build` knows but timm's: built-in ones, variants of residual networks, torchvision's."""
    variants = [Parts(depth, 1, variant).name for variant in VARIANTS for depth in DEPTHS]
    built = [name for name in variants if resnet_parts(name) is not None]
    return tuple(dict.fromkeys([*ARCHITECTURES, *built, *_torchvision_names()]))


def is_architecture(name: str) -> bool:
    """Say whether `build` knows a name; of timm's only what they begin with is looked at."""
    return name in ARCHITECTURES or resnet_parts(name) is not None or name.startswith(TIMM) or is_torchvision(name)


def check_architecture(name: str) -> None:
    """Check a name before any work is done.

    Raises:
        UsageError: there is no such architecture, or timm is not installed.
    """
    if name.startswith(TIMM):
        if not _timm().is_model(name.removeprefix(TIMM)):
            raise UsageError(f"timm has no model {name.removeprefix(TIMM)!r}; timm.list_models() lists those it has")
    elif not is_architecture(name):
        raise UsageError(
            f"unknown backbone {name!r}; there are: {', '.join(ARCHITECTURES)}, torchvision's classifiers, timm:NAME"
        )


def build(name: str) -> Built:
    """Build an architecture with random weights.

    Args:
        name: one of `ARCHITECTURES`, a variant of a residual network, a classifier of torchvision, or ``timm:NAME``.

    Raises:
        UsageError: there is no such architecture, or timm is not installed.
    """
    check_architecture(name)
    if name.startswith(TIMM):
        return _from_timm(name.removeprefix(TIMM))
    parts = resnet_parts(name)
    if name in ARCHITECTURES:
        construct, size = ARCHITECTURES[name]
        network = construct()
        preprocess = Preprocess(size)
    elif parts is not None:
        network, preprocess = _resnet(parts), Preprocess(VARIANTS[parts.variant][1])
    else:
        network, preprocess = _torchvision(name), _torchvision_preprocess(name)
    count = network.out_features if hasattr(network, "out_features") else network.features
    assert isinstance(count, int)
    if not hasattr(network, "features"):
        network.features = count  # type: ignore[assignment]
    return Built(network, count, preprocess)


def is_torchvision(name: str) -> bool:
    """Say whether torchvision has a classifier of this name."""
    return name in _torchvision_names()


@lru_cache(maxsize=1)
def _torchvision_names() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _torchvision_preprocess(name: str) -> Preprocess:
    import torchvision

    weights = next(iter(torchvision.models.get_model_weights(name)), None)
    if weights is None:
        return Preprocess(224)
    transforms = weights.transforms()
    if name in ("inception_v3", "googlenet"):  # what transform_input makes of ImageNet's mean and deviation
        return Preprocess(transforms.crop_size[0], (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Preprocess(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UsageError("timm:NAME needs the package timm; pip install 'sslfast[timm]'") from error
    return timm


def _from_timm(name: str) -> Built:
    network = _timm().create_model(name, pretrained=False, num_classes=0)
    config = network.pretrained_cfg or {}
    size = int(config.get("input_size", (3, 224, 224))[-1])
    mean, std = (tuple(config.get(key, default)) for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
    count = int(getattr(network, "head_hidden_size", None) or network.num_features)
    return Built(network, count, Preprocess(size, mean, std))


class Outline(NamedTuple):
    """What is known of an architecture without making its weights."""

    shapes: dict[str, torch.Size]
    preprocess: Preprocess


@lru_cache(maxsize=32)
def outline(name: str) -> Outline:
    """Give the names and shapes of an architecture's weights, and its default preprocessing.

    Raises:
        UsageError: there is no such architecture, or timm is not installed.
    """
    with torch.device("meta"):
        built = build(name)
    return Outline({key: value.shape for key, value in built.network.state_dict().items()}, built.preprocess)
