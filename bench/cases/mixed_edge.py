"""The mixed edge of a supernet; a size is (B, C, H, W, stride, K)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import sslfast
from sslfast._reference import mixed_edge as reference
from sslfast._reference.mixed_edge import norm_count, weight_shapes
from sslfast._reference.primitives import PRIMITIVES
from sslfast.bench.cases._inputs import rows
from sslfast.testing import OpCase

ALL = tuple(range(len(PRIMITIVES)))


def _inputs(size: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Draw x, alpha and the weights of all primitives."""
    batch, channels, height, width, stride, k = size
    for dtype in (torch.float32, torch.float64):  # the compiler finds them made
        _running(norm_count(ALL, stride), channels // k, dtype, torch.device("cpu"), False)
    shapes = weight_shapes(ALL, channels // k, stride)
    weights = [rows(*shape, seed=i) / shape[1:].numel() ** 0.5 for i, shape in enumerate(map(torch.Size, shapes))]
    return rows(batch, channels, height, width), torch.softmax(rows(len(ALL)), 0), *weights


_statistics: dict[tuple[Any, ...], list[Tensor]] = {}


def _running(norms: int, c: int, dtype: torch.dtype, device: torch.device, fixed: bool) -> list[Tensor]:
    """Return means and variances, one list for all calls: a training has them, too."""
    key = norms, c, dtype, device, fixed
    if key not in _statistics:
        values = [(rows(c, seed=i) if i % 2 == 0 else 0.5 + rows(c, seed=i).abs()) for i in range(2 * norms)]
        _statistics[key] = [value.to(device, dtype) for value in values]
    return _statistics[key]


def of_tensors(edge: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make an edge whose stride and K are told by the size, as the gates and the benchmarks need it.

    The stride is 2 where there are the weights of a factorised reduce; K is the number of channels over c.
    """

    def function(*tensors: Tensor, training: bool = True, primitives: Sequence[str] = PRIMITIVES) -> Tensor:
        x, alpha, *weights = tensors
        stride = 2 if len(weights) == 14 else 1
        c = weights[-1].shape[0]
        codes = [PRIMITIVES.index(name) for name in primitives]
        chosen: list[Tensor] = weights
        if len(codes) < len(ALL):
            chosen = []
            for code in codes:
                first = len(weight_shapes(ALL[:code], c, stride))
                chosen += weights[first : first + len(weight_shapes([code], c, stride))]
            alpha = alpha[codes]
        running = _running(norm_count(codes, stride), c, x.dtype, x.device, not training)
        options = {"stride": stride, "k": x.shape[1] // c, "primitives": tuple(primitives), "training": training}
        result = edge(x, alpha, chosen, running, **options)
        if len(codes) < len(ALL):  # what is left out has a gradient, of zeros, for the gates
            result = result + sum(one.sum() for one in weights) * 0
        return result

    return function


class PublishedEdge(nn.Module):
    """The edge as the published supernets compute it: a module per operation, one after the other.

    Args:
        c: channels that the operations see.
        stride: 1 or 2.
        k: C / c.
    """

    def __init__(self, c: int, stride: int, k: int) -> None:
        super().__init__()
        self.c, self.stride, self.k = c, stride, k

        def norm() -> nn.Module:
            return nn.BatchNorm2d(c, affine=False)

        def depthwise(size: int, stride: int, dilation: int) -> list[nn.Module]:
            padding = dilation * (size - 1) // 2
            convolution = nn.Conv2d(c, c, size, stride, padding, dilation, groups=c, bias=False)
            return [nn.ReLU(), convolution, nn.Conv2d(c, c, 1, bias=False), norm()]

        def separable(size: int) -> nn.Module:
            return nn.Sequential(*depthwise(size, stride, 1), *depthwise(size, 1, 1))

        average = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        self.operations = nn.ModuleList(
            [
                nn.Sequential(nn.MaxPool2d(3, stride, 1), norm()),
                nn.Sequential(average, norm()),
                nn.Identity() if stride == 1 else FactorisedReduce(c),
                separable(3),
                separable(5),
                nn.Sequential(*depthwise(3, stride, 2)),
                nn.Sequential(*depthwise(5, stride, 2)),
            ]
        )
        self.pool = nn.MaxPool2d(2, 2)
        self.convolutions = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        for module in self.convolutions:
            del module.weight

    def forward(self, x: Tensor, alpha: Tensor, *weights: Tensor) -> Tensor:
        """Return the edge's output with these weights."""
        for module, weight in zip(self.convolutions, weights, strict=True):
            module.weight = weight
        part, rest = x[:, : self.c], x[:, self.c :]
        total = alpha[0] * part[:, :, :: self.stride, :: self.stride].mul(0.0)
        for weight, operation in zip(alpha[1:], self.operations, strict=True):
            total = total + weight * operation(part)
        if self.k == 1:
            return total
        both = torch.cat([total, rest if self.stride == 1 else self.pool(rest)], dim=1)
        batch, channels, height, width = both.shape
        return both.view(batch, self.k, channels // self.k, height, width).transpose(1, 2).flatten(1, 2)


class FactorisedReduce(nn.Module):
    """Two pointwise convolutions of every second position, the second one shifted by one."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(c, c // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(c, c // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(c, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve height and width."""
        x = self.relu(x)
        result: Tensor = self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))
        return result


def _published() -> Callable[..., Tensor]:
    modules: dict[tuple[Any, ...], PublishedEdge] = {}

    def function(x: Tensor, alpha: Tensor, *weights: Tensor) -> Tensor:
        c = weights[-1].shape[0]
        key = c, 2 if len(weights) == 14 else 1, x.shape[1] // c, x.dtype, x.device
        if key not in modules:
            modules[key] = PublishedEdge(*key[:3]).to(x.device, x.dtype)
        result: Tensor = modules[key](x, alpha, *weights)
        return result

    return function


def _raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    forward, backward = [], []
    for size, dtype, leaf, masked, given in (
        ((3, 4, 4, 2, 1, 2), torch.float64, False, True, False),
        ((2, 4, 4, 4, 2, 1), torch.float64, True, False, False),
        ((2, 4, 3, 5, 1, 1), torch.float32, True, False, True),
    ):
        batch, channels, height, width, stride, k = size
        c = channels // k
        x, alpha, *weights = (one.to(device, dtype).clone().requires_grad_(leaf) for one in _inputs(size))
        mask = rows(batch, c, height, width).to(x) if masked else None
        running = _running(norm_count(ALL, stride), c, dtype, x.device, True) if given else []
        rest = stride, k, list(ALL), 1e-5
        forward.append((x, alpha, weights, running, mask, *rest))
        with torch.no_grad():
            out, used, saved = torch.ops.sslfast.mixed_edge_fwd(*forward[-1])
        grad = rows(*out.shape).to(x).requires_grad_(leaf)
        backward.append((grad, x, alpha, weights, mask, used, saved, not given, *rest))
    statistics = rows(2, 2, 3).abs().to(device)
    track = [(rows(3, seed=i).to(device)) for i in range(4)], statistics, 0.1, 12
    return {"mixed_edge_fwd": forward, "mixed_edge_bwd": backward, "mixed_edge_track": [track]}


def _operations(size: tuple[int, ...]) -> tuple[float, float]:
    """Count the convolutions' multiplications and additions; backward computes two gradients of each."""
    batch, channels, height, width, stride, k = size
    c, positions = channels // k, batch * height * width / stride**2
    # Depthwise 3 x 3 and 5 x 5 three times each, with the dilated ones; six pointwise, and the factorised reduce.
    pointwise = (6 if stride == 1 else 7) * c
    forward = 2.0 * c * positions * (3 * (9 + 25) + pointwise)
    return forward, 2 * forward


def _traffic(size: tuple[int, ...]) -> tuple[float, float]:
    """Count x and y, and in the backward pass both and the two gradients."""
    batch, channels, height, width, stride, _ = size
    numbers = 1.0 * batch * channels * height * width
    return numbers * (1 + 1 / stride**2), numbers * (2 + 1 / stride**2)


CASE = OpCase(
    name="mixed_edge",
    operators=("mixed_edge_fwd", "mixed_edge_bwd", "mixed_edge_track"),
    function=of_tensors(sslfast.mixed_edge),
    reference=of_tensors(reference.mixed_edge),
    inputs=_inputs,
    sizes=((1, 2, 2, 3, 1, 1), (3, 8, 4, 6, 2, 2), (17, 12, 7, 5, 1, 4), (5, 16, 10, 4, 1, 8), (18, 16, 8, 8, 2, 4)),
    # Sums of products of a group's images are taken in float32 and then in float64.
    epsilon={torch.float32: 4e-6, torch.float64: 1e-10},
    options=({}, {"training": False}, {"primitives": ("max_pool_3x3", "skip_connect", "sep_conv_5x5")}),
    raw=_raw,
    second_order=False,  # right, but of 240 numbers: tests/ops/test_mixed_edge.py looks along random directions
    bench_sizes=(
        (64, 16, 32, 32, 1, 4),
        (64, 32, 16, 16, 1, 4),
        (64, 64, 8, 8, 1, 4),
        (64, 32, 32, 32, 2, 4),
        (64, 64, 16, 16, 2, 4),
        (64, 16, 32, 32, 1, 1),
    ),
    peers={"published form": _published},
    operations=_operations,
    traffic=_traffic,
)
