"""What a supernet is searched for: Barlow Twins without labels, cross-entropy, or both; and the controls."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import sslfast
from sslfast.nas.config import SearchConfig
from sslfast.nas.search_network import SearchNetwork

QUARTERS = 4
"""Classes of the rotation task."""


class Objective(nn.Module):
    """A supernet with its heads; called with a batch it gives the loss.

    L = s c L_BT + (1 - s) L_CE. The Barlow Twins loss L_BT sees the projections of two views; the cross-entropy L_CE
    the logits of all views. c is 1 / D with D the projection's width; with the gradients balanced, and both terms
    there, |dL_CE / dh| / |dL_BT / dh| at the pooled features h of all views.

    Args:
        network: the supernet; its classifier has one output for each class of the task.
        config: of the search.
        views: of an image: two where s > 0.

    Source: paper 002 ("Efficient Self-Supervised Neural Architecture Search"); Zbontar et al. 2021; Gidaris et al. 2018
    for rotation.
    """

    def __init__(self, network: SearchNetwork, config: SearchConfig, views: int) -> None:
        super().__init__()
        self.network = network
        self.s = config.s
        self.balanced = config.balance == "gradient" and 0 < config.s < 1
        self.rotates = config.task == "rotation"
        self.redundancy = config.redundancy
        self.views = views
        self.projector: nn.Sequential | None = None
        if config.s > 0:
            width = config.projection
            self.projector = nn.Sequential(
                nn.Linear(network.features, width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.Linear(width, width, bias=False),
            )
        self.width = config.projection

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Give the loss of a batch.

        Args:
            images: normalised views (V x B, 3, H, W), view v of image b in row v x B + b.
            targets: of the task, (B,), int64; for rotation the quarter turns of every image and view, (V x B,).
        """
        if self.rotates and self.s < 1:
            images = quarter_turned(images, targets)
        h = self.network.embed(images)
        contrast = self._barlow(h) if self.projector is not None else None
        entropy = self._entropy(h, targets) if self.s < 1 else None
        if contrast is None or entropy is None:
            one = contrast / self.width if contrast is not None else entropy
            assert one is not None
            return one
        return self.s * self._factor(contrast, entropy, h) * contrast + (1 - self.s) * entropy

    def _barlow(self, h: Tensor) -> Tensor:
        assert self.projector is not None
        z0, z1 = self.projector(h).float().chunk(2)
        loss: Tensor = sslfast.barlow_twins(z0, z1, self.redundancy)
        return loss

    def _entropy(self, h: Tensor, targets: Tensor) -> Tensor:
        logits = self.network.classifier(h).float()
        return functional.cross_entropy(logits, targets if self.rotates else targets.repeat(self.views))

    def _factor(self, contrast: Tensor, entropy: Tensor, h: Tensor) -> Tensor | float:
        if not self.balanced:
            return 1 / self.width
        (of_contrast,) = torch.autograd.grad(contrast, h, retain_graph=True)
        (of_entropy,) = torch.autograd.grad(entropy, h, retain_graph=True)
        factor: Tensor = of_entropy.norm() / of_contrast.norm().clamp(min=1e-12)
        return factor.detach()


def quarter_turned(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each square image by its own number of quarters, counter-clockwise.

    Args:
        images: (N, 3, S, S).
        turns: 0 to 3 each, (N,).
    """
    turned = torch.empty_like(images)
    for quarters in range(QUARTERS):
        chosen = turns == quarters
        turned[chosen] = torch.rot90(images[chosen], quarters, (2, 3))
    return turned
