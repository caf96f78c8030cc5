"""A small convolutional autoencoder: its encoder is the backbone "conv-autoencoder"."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CODE_SIDE = 4
"""Side of the map that a code is flattened from: that of 25 to 32 pixel images."""


class Encoder(nn.Module):
    """Strided convolutions that halve the image once per width (rounding up), each with BN and ReLU.

    The paper that this is for (label fractions on CIFAR-10) shows its network in a figure only; this one has the three
    stages that are common for 32 x 32 pixels.

    Args:
        widths: channels of each stage; ``features`` is 16 times the last one, the flattened 4 x 4 map.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 64)) -> None:
        super().__init__()
        self.widths = widths
        self.features = widths[-1] * CODE_SIDE**2
        channels = 3
        for stage, width in enumerate(widths, start=1):
            layers = nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            channels = width

    def maps(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to codes (N, widths[-1], H / 8, W / 8)."""
        for stage in range(1, len(self.widths) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to features (N, features): the code, pooled to 4 x 4 and flattened."""
        return torch.flatten(F.adaptive_avg_pool2d(self.maps(x), CODE_SIDE), 1)


class Decoder(nn.Module):
    """The encoder backwards: the map is doubled and convolved once per stage; pixels come out in [0, 1].

    Args:
        widths: the encoder's.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 64)) -> None:
        super().__init__()
        inner = [*reversed(widths[:-1]), widths[0]]
        channels = widths[-1]
        self.stages = nn.ModuleList()
        for width in inner:
            layers = nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            self.stages.append(nn.Sequential(*layers))
            channels = width
        self.last = nn.Conv2d(channels, 3, 3, 1, 1)

    def forward(self, code: Tensor, size: tuple[int, int]) -> Tensor:
        """Map codes (N, widths[-1], H / 8, W / 8) to images (N, 3, H, W) in [0, 1].

        Args:
            code: of the encoder.
            size: H and W.
        """
        sizes = [size]
        for _ in self.stages[1:]:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        for stage, (height, width) in zip(self.stages, reversed(sizes), strict=True):
            code = stage(F.interpolate(code, size=(height, width)))
        return torch.sigmoid(self.last(code))
