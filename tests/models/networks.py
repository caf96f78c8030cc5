"""The networks of public projects, written here a second time: their weights' names and their own forward passes."""

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]


def known(network: nn.Module) -> nn.Module:
    """Give a network weights of which every one matters, and counters as training leaves them."""
    generator = torch.Generator().manual_seed(11)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(1000)
        elif name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif value.ndim == 1:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2 + (1.0 if name.endswith("weight") else 0.0))
        else:
            fan = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan) ** 0.5)
    return network.eval()


@lru_cache(maxsize=2)
def resnet(name: str) -> Any:
    """Give torchvision's network without its classifier."""
    network = torchvision.models.get_model(name, weights=None)
    network.fc = nn.Identity()
    return known(network)


@lru_cache(maxsize=4)
def resnet18_cifar(padding: int) -> Any:
    """Give torchvision's ResNet-18 with the stem for small images."""
    network = torchvision.models.resnet18(weights=None)
    network.fc = nn.Identity()
    network.conv1 = nn.Conv2d(3, 64, 3, 1, padding, bias=False)
    network.maxpool = nn.Identity()
    return known(network)


class Block(nn.Module):
    """A basic block whose projection is called shortcut (kuangliu, SCAN's resnet_cifar.py, lightly's resnet.py)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class SmallImages(nn.Module):
    """ResNet-18 of SCAN; ``pool``: of its STL-10 network."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = pool
        before = 64
        for stage, after in enumerate((64, 128, 256, 512), start=1):
            stride = 1 if stage == 1 else 2
            self.add_module(f"layer{stage}", nn.Sequential(Block(before, after, stride), Block(after, after, 1)))
            before = after

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        if self.pool:
            out = F.max_pool2d(out, 2, 2, 1)
        for stage in range(1, 5):
            out = self.get_submodule(f"layer{stage}")(out)
        return torch.flatten(F.adaptive_avg_pool2d(out, 1), 1)


class Function(nn.Module):
    """A forward pass around a network."""

    def __init__(self, network: nn.Module, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.network, x)


def stages(network: Any, x: Tensor) -> Tensor:
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
    return torch.flatten(network.avgpool(x), 1)


def pooled(network: Any, x: Tensor) -> Tensor:
    """Lightning-Bolts' forward pass with its max-pool behind a 3x3 convolution."""
    return stages(network, F.max_pool2d(network.relu(network.bn1(network.conv1(x))), 3, 2, 1))


def same_padding(network: Any, x: Tensor) -> Tensor:
    """TensorFlow's forward pass: max-pool of 3 and stride 2, an even side padded on one side only."""
    x = network.relu(network.bn1(network.conv1(x)))
    below, right = (1 - side % 2 for side in x.shape[2:])
    beside = torch.full((*x.shape[:3], 1), float("-inf"))
    x = torch.cat([x, beside] if right else [beside, x, beside], 3)
    under = torch.full((*x.shape[:2], 1, x.shape[3]), float("-inf"))
    x = torch.cat([x, under] if below else [under, x, under], 2)
    return stages(network, F.max_pool2d(x, 3, 2))


def padded_first(network: Any, x: Tensor) -> Tensor:
    """SwAV's forward pass: a layer of zeros, then a convolution that pads one pixel less."""
    x = F.conv2d(F.pad(x, (1, 1, 1, 1)), network.conv1.weight, stride=2, padding=2)
    return stages(network, network.maxpool(network.relu(network.bn1(x))))


def keras_first_strides(network: Any, x: Tensor) -> Tensor:
    """Keras's forward pass (version 1) on BGR images: blocks shrink in their first convolution, epsilon is 1e-3."""

    def normal(layer: nn.BatchNorm2d, out: Tensor) -> Tensor:
        return F.batch_norm(out, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=1e-3)

    out = F.relu(normal(network.bn1, F.conv2d(x, network.conv1.weight, stride=2, padding=3)))
    out = F.max_pool2d(out, 3, 2, 1)
    for stage in range(1, 5):
        for number, block in enumerate(network.get_submodule(f"layer{stage}")):
            stride = 2 if stage > 1 and number == 0 else 1
            inner = F.relu(normal(block.bn1, F.conv2d(out, block.conv1.weight, stride=stride)))
            inner = F.relu(normal(block.bn2, F.conv2d(inner, block.conv2.weight, padding=1)))
            inner = normal(block.bn3, F.conv2d(inner, block.conv3.weight))
            if number == 0:
                out = normal(block.downsample[1], F.conv2d(out, block.downsample[0].weight, stride=stride))
            out = F.relu(inner + out)
    return torch.flatten(F.adaptive_avg_pool2d(out, 1), 1)


def under(prefix: str, state: State) -> State:
    """Put a prefix before every name."""
    return OrderedDict((prefix + key, value) for key, value in state.items())


def layers(prefix: str, *shapes: tuple[int, ...]) -> State:
    """Give the weights of a head: ``PREFIX.NUMBER.weight``; one-dimensional shapes are normalisations."""
    state: State = {}
    for number, shape in enumerate(shapes):
        if shape:
            state[f"{prefix}.{number}.weight"] = torch.ones(shape)
            if len(shape) == 1:
                state[f"{prefix}.{number}.running_mean"] = torch.zeros(shape)
    return state


def with_bias(state: State) -> State:
    """Add the biases of linear layers."""
    return state | {
        key.removesuffix("weight") + "bias": torch.zeros(len(value)) for key, value in state.items() if value.ndim == 2
    }


def simclr_v2_names(state: State) -> State:
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "conv1":
            to = "net.0.0.weight"
        elif parts[0] == "bn1":
            to = f"net.0.1.0.{parts[-1]}"
        else:
            stage, block, rest = parts[0].removeprefix("layer"), parts[1], parts[2]
            begin = f"net.{stage}.blocks.{block}."
            if rest == "downsample":
                to = begin + ("projection.shortcut.weight" if parts[3] == "0" else f"projection.bn.0.{parts[-1]}")
            else:
                number = 2 * (int(rest[-1]) - 1)
                to = begin + (f"net.{number}.weight" if rest.startswith("conv") else f"net.{number + 1}.0.{parts[-1]}")
        renamed[to] = value
    return renamed


def resnet18_like(network: nn.Module) -> State:
    """Give weights of the same names and other values: the momentum encoder beside the one that is wanted."""
    return {key: torch.full_like(value, 7) for key, value in network.state_dict().items()}


def untrained_counters(state: State) -> State:
    """Set the counters of batch normalisation to zero, as in a network that PyTorch has never trained."""
    return {
        key: torch.zeros_like(value) if key.endswith("num_batches_tracked") else value for key, value in state.items()
    }
