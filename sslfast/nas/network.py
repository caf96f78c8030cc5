"""The network that a genotype stands for: it is trained from scratch, and is the product of a search."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sslfast.nas.genotype import Gene, Genotype, check
from sslfast.nas.operations import OPERATIONS, FactorizedReduce, Identity, ReLUConvBN, build_operation


class DerivedCell(nn.Module):
    """A cell of two operations a node; weights have the published names.

    Args:
        genotype: whose normal or reduction cell it is.
        C_prev_prev: channels of the first input.
        C_prev: channels of the second input.
        C: channels of a node.
        reduction: whether operations on the inputs have stride 2.
        reduction_prev: whether the cell before this one was such a cell.
    """

    def __init__(
        self, genotype: Genotype, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool
    ) -> None:
        super().__init__()
        self.preprocess0: nn.Module = (
            FactorizedReduce(C_prev_prev, C) if reduction_prev else ReLUConvBN(C_prev_prev, C, 1, 1, 0)
        )
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0)
        self.genes: Sequence[Gene] = genotype.reduce if reduction else genotype.normal
        self.concat = tuple(genotype.reduce_concat if reduction else genotype.normal_concat)
        self.multiplier = len(self.concat)
        self._ops = nn.ModuleList(
            build_operation(name, C, 2 if reduction and state < 2 else 1, affine=True) for name, state in self.genes
        )

    def forward(self, s0: Tensor, s1: Tensor, drop_prob: float) -> Tensor:
        """Run the cell.

        Args:
            s0: output of the cell before the last.
            s1: output of the last cell.
            drop_prob: probability that an operation's output is dropped for an image, in training; identities stay.
        """
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for node in range(len(self.genes) // 2):
            one, other = (
                self._operation(2 * node + side, states[self.genes[2 * node + side][1]], drop_prob) for side in (0, 1)
            )
            states.append(one + other)
        return torch.cat([states[state] for state in self.concat], dim=1)

    def _operation(self, number: int, x: Tensor, drop_prob: float) -> Tensor:
        operation = self._ops[number]
        y: Tensor = operation(x)
        if self.training and drop_prob > 0 and not isinstance(operation, Identity):
            y = drop_path(y, drop_prob)
        return y


def drop_path(x: Tensor, drop_prob: float) -> Tensor:
    """Set each image's map to zero with probability ``drop_prob``, and divide the others by 1 - drop_prob.

    Args:
        x: (B, C, H, W).
        drop_prob: in [0, 1).

    Source: Larsson et al., "FractalNet", 2017, as DARTS has it.
    """
    kept = 1 - drop_prob
    mask = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(kept)
    return x * (mask / kept)


class _PooledTo2x2(nn.Module):
    """Averages a map to 2 x 2: as published where that gives 2 x 2, in quarters for other sides."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if all((side - 5) // self.stride == 1 and side >= 5 for side in x.shape[2:]):
            return functional.avg_pool2d(x, 5, stride=self.stride, count_include_pad=False)
        return functional.adaptive_avg_pool2d(x, 2)


class AuxiliaryHead(nn.Module):
    """A second classifier on an inner cell, for its gradient (Liu et al. 2019, section 3.2.1).

    Args:
        C: channels of the cell's output.
        num_classes: outputs.
        stride: of the pool: 3 for maps of 8 x 8 (CIFAR), 2 for maps of 7 x 7 (ImageNet form; the published code says
            14 x 14, but its network gives half of that). Maps of other sides are pooled in quarters.
        last_norm: whether the last convolution is normalised; the published ImageNet form leaves that out.
    """

    def __init__(self, C: int, num_classes: int, *, stride: int = 3, last_norm: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            _PooledTo2x2(stride),
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            *([nn.BatchNorm2d(768)] if last_norm else []),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class Network(nn.Module):
    """A network of derived cells for small images, as the papers train it on CIFAR.

    Args:
        C: channels of a node in the first cells.
        num_classes: outputs.
        layers: cells; numbers layers // 3 and 2 layers // 3 reduce.
        auxiliary: whether there is a second classifier on the second reduction cell.
        genotype: of the cells.

    Raises:
        UsageError: the genotype makes no cell.
        ValueError: there are no cells.

    Attributes:
        drop_path_prob: see `DerivedCell`; a training raises it from 0 on.
    """

    def __init__(self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype) -> None:
        super().__init__()
        check(genotype, OPERATIONS)
        if layers < 1:
            raise ValueError(f"Network: layers must be at least 1, got {layers}")
        self.drop_path_prob = 0.0
        self._auxiliary_after = 2 * layers // 3
        stem = self._build_stem(C)
        self.cells = nn.ModuleList()
        before_last, last, channels, reduced = *stem, C, self.STARTS_REDUCED
        to_auxiliary = 0
        for number in range(layers):
            reduces = number in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduces else 1
            cell = DerivedCell(genotype, before_last, last, channels, reduces, reduced)
            self.cells.append(cell)
            reduced = reduces
            before_last, last = last, cell.multiplier * channels
            if number == self._auxiliary_after:
                to_auxiliary = last
        self.features = last
        """Channels of the pooled last cell."""
        self.auxiliary_head = self._build_auxiliary(to_auxiliary, num_classes) if auxiliary else None
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, num_classes)

    STARTS_REDUCED = False

    def _build_stem(self, C: int) -> tuple[int, int]:
        """Make the stem, and give the channels of the first cell's inputs."""
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C))
        return 3 * C, 3 * C

    def _build_auxiliary(self, C: int, num_classes: int) -> AuxiliaryHead:
        return AuxiliaryHead(C, num_classes)

    def _stem(self, input: Tensor) -> tuple[Tensor, Tensor]:
        s = self.stem(input)
        return s, s

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map images (B, 3, H, W) to logits (B, num_classes) and, in training, the auxiliary classifier's or None."""
        pooled, auxiliary = self.embed(input)
        return self.classifier(pooled), auxiliary

    def embed(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map images (B, 3, H, W) to the pooled last cell (B, features), and the auxiliary logits as `forward`."""
        s0, s1 = self._stem(input)
        auxiliary = None
        for number, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if number == self._auxiliary_after and self.auxiliary_head is not None and self.training:
                auxiliary = self.auxiliary_head(s1)
        pooled: Tensor = self.global_pooling(s1).flatten(1)
        return pooled, auxiliary


class NetworkImageNet(Network):
    """The form for images of 224 pixels: the stem reduces three times, the first cell's input once more.

    Args and attributes as `Network`.
    """

    STARTS_REDUCED = True

    def _build_stem(self, C: int) -> tuple[int, int]:
        self.stem0 = nn.Sequential(
            nn.Conv2d(3, C // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C // 2),
            nn.ReLU(),
            nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C),
        )
        self.stem1 = nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(C))
        return C, C

    def _build_auxiliary(self, C: int, num_classes: int) -> AuxiliaryHead:
        return AuxiliaryHead(C, num_classes, stride=2, last_norm=False)

    def _stem(self, input: Tensor) -> tuple[Tensor, Tensor]:
        s0 = self.stem0(input)
        return s0, self.stem1(s0)


def parameter_count(module: nn.Module) -> int:
    """Count a module's weights."""
    return sum(weight.numel() for weight in module.parameters())
