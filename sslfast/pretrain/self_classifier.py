"""Self-Classifier: two views of an image get the same class, and a uniform prior keeps all classes in use."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import sslfast
from sslfast.models import Backbone
from sslfast.ops._arguments import in_full_precision
from sslfast.pretrain.config import SelfClassifierConfig
from sslfast.pretrain.method import Method, Position
from sslfast.pretrain.queue import Queue


class SelfClassifier(Method):
    """Amrani, Karlinsky and Bronstein, "Self-Supervised Classification Network", ECCV 2022.

    Classifiers have no bias; their rows are a direction and a trained length that begins at 1.
    """

    def __init__(
        self, backbone: Backbone, config: SelfClassifierConfig, views: tuple[int, ...] = (2,), classes: int = 0
    ) -> None:
        super().__init__(backbone, config, views, classes)
        self.head, width = _head(backbone.features, config)
        self.classifiers = nn.ModuleList(_classifier(width, count) for count in config.classes)
        self.queue = Queue(1, config.neighbours, width) if config.neighbours else None
        self.options = config
        self._latest: list[Tensor] = []

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, int]:
        """Project all views, (views x B, projection): one pass of the network per size, one of the head."""
        features = [self.network(self.normalised(group)) for group in views]
        return self.head(torch.cat(features)), len(views[0]) // self.views[0]

    def loss(self, outputs: tuple[Tensor, int], labels: Tensor | None) -> Tensor:
        """Give the mean loss over the classifiers."""
        projections, batch = outputs
        z = F.normalize(in_full_precision(projections), dim=1)
        if self.queue is not None:
            first = z[:batch].detach()
            self._latest.append(first[None])
            if self.queue.full:
                rows = self.queue.rows[0]
                z = torch.cat([rows[(first @ rows.t()).argmax(dim=1)], z[batch:]])
        logits = [list(classifier(z).split(batch)) for classifier in self.classifiers]
        return sslfast.self_classifier(
            logits,
            self.options.row_temperature,
            self.options.column_temperature,
            global_views=self.views[0],
            group=self.ranks.group,
        )

    def after_step(self, position: Position) -> None:
        """Put the first views' projections into the queue."""
        for rows in self._latest:
            assert self.queue is not None
            self.queue.push(rows, self.ranks)
        self._latest = []

    def logits(self, images: Tensor, classifier: int = 0) -> Tensor:
        """Map preprocessed images (N, 3, size, size) to the logits (N, classes) of one classifier."""
        z = F.normalize(in_full_precision(self.head(self.network(images))), dim=1)
        logits: Tensor = self.classifiers[classifier](z)
        return logits


def _head(features: int, config: SelfClassifierConfig) -> tuple[nn.Module, int]:
    # What the official option --num-hidden counts are linear layers: 1 has no hidden layer, no BN and no activation.
    if config.mlp_layers == 0:
        return nn.Identity(), features
    layers: list[nn.Module] = []
    width = features
    for _ in range(config.mlp_layers - 1):
        layers += [nn.Linear(width, config.hidden), nn.BatchNorm1d(config.hidden), nn.LeakyReLU()]
        width = config.hidden
    layers.append(nn.Linear(width, config.projection))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers), config.projection


def _classifier(width: int, classes: int) -> nn.Module:
    classifier: nn.Module = weight_norm(nn.Linear(width, classes, bias=False))
    with torch.no_grad():
        classifier.parametrizations.weight.original0.fill_(1.0)  # type: ignore[union-attr, operator]
    return classifier
