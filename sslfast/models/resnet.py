"""Residual networks for small images: the backbone that sslfast trains by default, and the CIFAR ResNets."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shortcut = Literal["projection", "pad"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016, figure 2).

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        stride: of the first convolution; the map shrinks by it.
        shortcut: what matches a changed shape: a strided 1x1 convolution with BN, or subsampling and zero channels
            (He et al.'s option A, which has no weights).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.pad = (channels_out - channels_in) // 2
        self.downsample: nn.Module | None = None
        if (stride != 1 or channels_in != channels_out) and shortcut == "projection":
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels_out, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.stride != 1 or self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class ResNet(nn.Module):
    """A residual network with a 3x3 stem, without a classifier.

    Args:
        widths: channels of each stage; the last is the number of features.
        blocks: basic blocks of each stage; every stage but the first halves the map.
        stem_stride: of the first convolution.
        shortcut: see `BasicBlock`.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        stem_stride: int = 1,
        shortcut: Shortcut = "projection",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(widths)
        channels = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            layers = []
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                layers.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to features (N, features): the mean over the last map."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
