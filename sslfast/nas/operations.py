"""The operations that an edge can hold, as modules whose weights have the published names.

Every operation maps (B, C, H, W) to (B, C, H', W') with H' = ceil(H / stride). The published code agrees for
even sizes; for odd ones its factorised reduction does not join its halves, and what it lacks is a border of zeros.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class ReLUConvBN(nn.Module):
    """ReLU, convolution without bias, batch normalisation.

    Args:
        C_in: channels of the input.
        C_out: channels of the output.
        kernel_size: side of the kernel in pixels.
        stride: of the convolution.
        padding: zeros around the input, in pixels.
        affine: whether the normalisation has a scale and a shift.
    """

    def __init__(self, C_in: int, C_out: int, kernel_size: int, stride: int, padding: int, affine: bool = True) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, kernel_size, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        y: Tensor = self.op(x)
        return y


class DilConv(nn.Module):
    """ReLU, dilated depthwise convolution, pointwise convolution, batch normalisation.

    Args:
        C_in: channels of the input.
        C_out: channels of the output.
        kernel_size: side of the kernel in pixels, before it is spread.
        stride: of the depthwise convolution.
        padding: zeros around the input, in pixels.
        dilation: distance of the kernel's taps, in pixels.
        affine: whether the normalisation has a scale and a shift.
    """

    def __init__(
        self, C_in: int, C_out: int, kernel_size: int, stride: int, padding: int, dilation: int, affine: bool = True
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(
                C_in, C_in, kernel_size, stride=stride, padding=padding, dilation=dilation, groups=C_in, bias=False
            ),
            nn.Conv2d(C_in, C_out, 1, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        y: Tensor = self.op(x)
        return y


class SepConv(nn.Module):
    """Twice ReLU, depthwise convolution, pointwise convolution, batch normalisation; the first takes the stride.

    Args:
        C_in: channels of the input.
        C_out: channels of the output.
        kernel_size: side of both kernels in pixels.
        stride: of the first depthwise convolution.
        padding: zeros around the input, in pixels.
        affine: whether the normalisations have a scale and a shift.
    """

    def __init__(self, C_in: int, C_out: int, kernel_size: int, stride: int, padding: int, affine: bool = True) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_in, kernel_size, stride=stride, padding=padding, groups=C_in, bias=False),
            nn.Conv2d(C_in, C_in, 1, bias=False),
            nn.BatchNorm2d(C_in, affine=affine),
            nn.ReLU(),
            nn.Conv2d(C_in, C_in, kernel_size, stride=1, padding=padding, groups=C_in, bias=False),
            nn.Conv2d(C_in, C_out, 1, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        y: Tensor = self.op(x)
        return y


class Identity(nn.Module):
    """Give what came: skip_connect at stride 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x to itself."""
        return x


class Zero(nn.Module):
    """Give zeros: none.

    Args:
        stride: of the pixels that are kept.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to zeros (B, C, H', W')."""
        return torch.zeros_like(x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride])


class FactorizedReduce(nn.Module):
    """ReLU, two pointwise convolutions of every second pixel, the second shifted by one pixel, batch normalisation.

    Args:
        C_in: channels of the input.
        C_out: channels of the output, even: each convolution gives half of them.
        affine: whether the normalisation has a scale and a shift.

    Raises:
        ValueError: C_out is odd.
    """

    def __init__(self, C_in: int, C_out: int, affine: bool = True) -> None:
        super().__init__()
        if C_out < 2 or C_out % 2:
            raise ValueError(f"FactorizedReduce: C_out must be even, for two convolutions share it, got {C_out}")
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, ceil(H / 2), ceil(W / 2))."""
        x = self.relu(x)
        height, width = x.shape[2:]
        shifted = functional.pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        y: Tensor = self.bn(torch.cat([self.conv_1(x), self.conv_2(shifted)], dim=1))
        return y


Builder = Callable[[int, int, bool], nn.Module]
"""Makes an operation from its channels, its stride and whether its normalisations are affine."""


def _skip(C: int, stride: int, affine: bool) -> nn.Module:
    return Identity() if stride == 1 else FactorizedReduce(C, C, affine)


def _two_sided(C: int, stride: int, affine: bool) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(C, C, (1, 7), stride=(1, stride), padding=(0, 3), bias=False),
        nn.Conv2d(C, C, (7, 1), stride=(stride, 1), padding=(3, 0), bias=False),
        nn.BatchNorm2d(C, affine=affine),
    )


OPERATIONS: dict[str, Builder] = {
    "none": lambda C, stride, affine: Zero(stride),
    "avg_pool_3x3": lambda C, stride, affine: nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False),
    "max_pool_3x3": lambda C, stride, affine: nn.MaxPool2d(3, stride=stride, padding=1),
    "skip_connect": _skip,
    "sep_conv_3x3": lambda C, stride, affine: SepConv(C, C, 3, stride, 1, affine),
    "sep_conv_5x5": lambda C, stride, affine: SepConv(C, C, 5, stride, 2, affine),
    "sep_conv_7x7": lambda C, stride, affine: SepConv(C, C, 7, stride, 3, affine),
    "dil_conv_3x3": lambda C, stride, affine: DilConv(C, C, 3, stride, 2, 2, affine),
    "dil_conv_5x5": lambda C, stride, affine: DilConv(C, C, 5, stride, 4, 2, affine),
    "conv_7x1_1x7": _two_sided,
}
"""Every operation by name: the eight primitives, two more of published cells, and those that were registered."""


def register_operation(name: str, build: Builder) -> None:
    """Add an operation of one's own, which edges can then hold and genotypes can name.

    Args:
        name: under which it is asked for; a Python identifier.
        build: makes the module from channels, stride and affine; it must keep the channels and divide the sides by the
            stride, rounding up.

    Raises:
        ValueError: the name is no identifier, or is taken.
    """
    if not name.isidentifier():
        raise ValueError(f"register_operation: the name must be an identifier, got {name!r}")
    if name in OPERATIONS:
        raise ValueError(f"register_operation: there is an operation {name!r} already; choose another name")
    OPERATIONS[name] = build


def build_operation(name: str, C: int, stride: int, affine: bool) -> nn.Module:
    """Make an operation of C channels.

    Raises:
        ValueError: there is no such operation.
    """
    if name not in OPERATIONS:
        raise ValueError(f"unknown operation {name!r}; there are: {', '.join(OPERATIONS)}")
    return OPERATIONS[name](C, stride, affine)
