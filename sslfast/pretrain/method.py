"""What a method is: modules beside a backbone, the loss of a batch of views, and what happens around a step."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sslfast.models import Backbone
from sslfast.pretrain.config import PretrainConfig
from sslfast.pretrain.parallel import Ranks


@dataclass(frozen=True)
class Position:
    """Where a training is: ``step`` counts from 0, ``epoch`` is how many epochs were done before it."""

    step: int
    epoch: float


class Method(nn.Module, ABC):
    """A backbone's network with what a method trains beside it; calling it with views gives their loss.

    A method overrides `embed` and `loss`, and the hooks it needs. Whatever it must remember (queues, counters) is a
    buffer, so that it is saved and resumed with the weights.

    Args:
        backbone: whose network is trained.
        config: the method's options.
        views: of an image, per group of the plan.
        classes: number of classes of the labels; 0 without labels.
    """

    NEEDS_LABELS = False

    def __init__(self, backbone: Backbone, config: PretrainConfig, views: tuple[int, ...], classes: int = 0) -> None:
        super().__init__()
        self.views = views
        self.network = backbone.network
        self.preprocess = backbone.preprocess
        self.compute = torch.float32
        self.channels_last = config.channels_last
        self.ranks = Ranks()

    def forward(self, views: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """Give the loss of all processes' rows together, a scalar.

        Args:
            views: one tensor per group, (V x B, 3, s, s), float32 in [0, 1]; view v of image b in row v x B + b.
            labels: (B,), int64, where the method asks for them.
        """
        with torch.autocast(views[0].device.type, self.compute, enabled=self.compute != torch.float32):
            outputs = self.embed(views)
        return self.loss(outputs, labels)

    @abstractmethod
    def embed(self, views: Sequence[Tensor]) -> Any:
        """Run the network and what follows it, under autocast."""

    @abstractmethod
    def loss(self, outputs: Any, labels: Tensor | None) -> Tensor:
        """Make the loss of what `embed` gave, in float32."""

    def normalised(self, views: Tensor) -> Tensor:
        """Prepare views in [0, 1] for the network."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return self.preprocess.normalise(views).contiguous(memory_format=layout)

    def before_step(self, position: Position) -> None:
        """Do what comes before a step."""

    def after_backward(self, position: Position) -> None:
        """Change gradients before the optimiser sees them."""

    def after_step(self, position: Position) -> None:
        """Do what comes after the optimiser's step."""


def mlp(widths: Sequence[int], *, bias: bool = False) -> nn.Sequential:
    """Build a projector: Linear, BN, ReLU for each hidden width, then Linear.

    Args:
        widths: of the input, of every hidden layer, and of the output.
        bias: whether the last layer has one; hidden layers have BN's.
    """
    layers: list[nn.Module] = []
    for i in range(1, len(widths) - 1):
        layers += [nn.Linear(widths[i - 1], widths[i], bias=False), nn.BatchNorm1d(widths[i]), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=bias))
