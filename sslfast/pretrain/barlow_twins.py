"""Barlow Twins: the cross-correlation of two views' projections is brought to the identity."""

from collections.abc import Sequence

from torch import Tensor

import sslfast
from sslfast.models import Backbone
from sslfast.ops._arguments import in_full_precision
from sslfast.pretrain.config import BarlowTwinsConfig
from sslfast.pretrain.method import Method, mlp


class BarlowTwins(Method):
    """Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", 2021."""

    def __init__(
        self, backbone: Backbone, config: BarlowTwinsConfig, views: tuple[int, ...] = (2,), classes: int = 0
    ) -> None:
        super().__init__(backbone, config, views, classes)
        width = config.projection
        self.projector = mlp((backbone.features, width, width, width))
        self.redundancy = config.redundancy
        self.scale = config.scale

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Project the views, (B, projection) each.

        One after the other: their policies differ, and each batch normalisation belongs to one of them.
        """
        z0, z1 = (self.projector(self.network(x)) for x in self.normalised(views[0]).chunk(2))
        return z0, z1

    def loss(self, outputs: tuple[Tensor, Tensor], labels: Tensor | None) -> Tensor:
        """Give the Barlow Twins loss, times its scale."""
        z0, z1 = (in_full_precision(z) for z in outputs)
        return self.scale * sslfast.barlow_twins(z0, z1, self.redundancy, group=self.ranks.group)
