"""Training with labels: the baseline that a method without them is compared with."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.models import Backbone
from sslfast.ops._arguments import in_full_precision
from sslfast.ops._distributed import mean_over_ranks
from sslfast.pretrain.config import SupervisedConfig
from sslfast.pretrain.method import Method


class Supervised(Method):
    """Cross entropy of a linear classifier on the backbone's features."""

    NEEDS_LABELS = True

    def __init__(
        self, backbone: Backbone, config: SupervisedConfig, views: tuple[int, ...] = (1,), classes: int = 0
    ) -> None:
        super().__init__(backbone, config, views, classes)
        self.classifier = nn.Linear(backbone.features, classes)
        self.label_smoothing = config.label_smoothing

    def embed(self, views: Sequence[Tensor]) -> Tensor:
        """Classify all views, (views x B, classes)."""
        return self.logits(self.normalised(views[0]))

    def loss(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        """Give the mean cross entropy."""
        assert labels is not None
        several = labels.repeat(len(outputs) // len(labels))
        each = F.cross_entropy(
            in_full_precision(outputs), several, label_smoothing=self.label_smoothing, reduction="none"
        )
        return each.mean() if self.ranks.group is None else mean_over_ranks(each, self.ranks.group)

    def logits(self, images: Tensor) -> Tensor:
        """Map preprocessed images (N, 3, size, size) to logits (N, classes)."""
        logits: Tensor = self.classifier(self.network(images))
        return logits
