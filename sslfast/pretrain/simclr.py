"""SimCLR: two views of every image, pulled together and pushed away from all others by NT-Xent."""

from collections.abc import Sequence

import torch
from torch import Tensor

import sslfast
from sslfast.models import Backbone
from sslfast.ops._arguments import in_full_precision
from sslfast.pretrain.config import SimCLRConfig
from sslfast.pretrain.method import Method, mlp


class SimCLR(Method):
    """Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020."""

    def __init__(
        self, backbone: Backbone, config: SimCLRConfig, views: tuple[int, ...] = (2,), classes: int = 0
    ) -> None:
        super().__init__(backbone, config, views, classes)
        # g of the paper: Linear, BN, ReLU, Linear; dropped after pre-training.
        self.projector = mlp((backbone.features, config.hidden or 2 * backbone.features, config.projection), bias=True)
        self.temperature = config.temperature
        self.apart = config.views_apart

    def embed(self, views: Sequence[Tensor]) -> Tensor:
        """Project both views of every image, (2 x B, projection)."""
        x = self.normalised(views[0])
        if self.apart:
            return torch.cat([self.projector(self.network(one)) for one in x.chunk(2)])
        z: Tensor = self.projector(self.network(x))
        return z

    def loss(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        """Give NT-Xent of the two views."""
        z0, z1 = in_full_precision(outputs).chunk(2)
        return sslfast.nt_xent(z0, z1, self.temperature, group=self.ranks.group)
