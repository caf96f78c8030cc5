"""SwAV: views predict to which prototypes the other views of their image were assigned."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sslfast
from sslfast.models import Backbone
from sslfast.ops._arguments import in_full_precision
from sslfast.pretrain.config import SwAVConfig
from sslfast.pretrain.method import Method, Position, mlp
from sslfast.pretrain.queue import Queue


class SwAV(Method):
    """Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020.

    The views of the first group are assigned, those of all groups predict.
    """

    def __init__(self, backbone: Backbone, config: SwAVConfig, views: tuple[int, ...] = (2,), classes: int = 0) -> None:
        super().__init__(backbone, config, views, classes)
        widths = backbone.features, config.hidden or 2 * backbone.features, config.projection
        self.projector = mlp(widths, bias=True)
        self.prototypes = nn.Linear(config.projection, config.prototypes, bias=False)
        self.queue = Queue(views[0], config.queue, config.projection) if config.queue else None
        self.options = config
        self._filling = False
        self._latest: list[Tensor] = []

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, int]:
        """Project all views, (views x B, projection): one pass of the network per size, one of the projector."""
        features = [self.network(self.normalised(group)) for group in views]
        return self.projector(torch.cat(features)), len(views[0]) // self.views[0]

    def loss(self, outputs: tuple[Tensor, int], labels: Tensor | None) -> Tensor:
        """Give the SwAV loss of all views."""
        projections, batch = outputs
        assigned = self.views[0]
        z = F.normalize(in_full_precision(projections), dim=1)
        scores = self.prototypes(z).split(batch)
        queued = None
        if self._filling and self.queue is not None:
            if self.queue.full:
                with torch.no_grad():
                    queued = list(self.prototypes(self.queue.share(self.ranks)).unbind())
            self._latest.append(z[: assigned * batch].detach().view(assigned, batch, -1))
        return sslfast.swav_loss(
            list(scores[:assigned]),
            list(scores[assigned:]),
            queued,
            temperature=self.options.temperature,
            iterations=self.options.iterations,
            epsilon=self.options.epsilon,
            group=self.ranks.group,
        )

    @torch.no_grad()
    def before_step(self, position: Position) -> None:
        """Bring the prototypes to length 1."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        self._filling = position.epoch >= self.options.queue_from

    def after_backward(self, position: Position) -> None:
        """Keep the prototypes as they are at first: they would follow projections that mean nothing yet."""
        if position.epoch < self.options.freeze_epochs:
            self.prototypes.weight.grad = None

    def after_step(self, position: Position) -> None:
        """Put the batch's projections into the queue."""
        for rows in self._latest:
            assert self.queue is not None
            self.queue.push(rows, self.ranks)
        self._latest = []
