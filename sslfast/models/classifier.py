"""A classifier: a backbone with its preprocessing, a head on its features, and the names of the classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslfast.errors import UsageError
from sslfast.models.backbone import Backbone
from sslfast.models.head import Head


class Classifier(nn.Module):
    """Images to probabilities and features, with the preprocessing inside; what is exported and what predicts.

    It is made in evaluation mode: dropout is off and batch normalisation uses its running statistics.

    Args:
        backbone: the network that makes features, with its preprocessing.
        head: features to logits, one per class.
        classes: names of the classes, in the order of the head's outputs.

    Raises:
        UsageError: the head does not fit the backbone's features or the number of classes.
    """

    def __init__(self, backbone: Backbone, head: Head, classes: Sequence[str]) -> None:
        super().__init__()
        if len(head.mean) != backbone.features:
            raise UsageError(
                f"the head takes {len(head.mean)} features, the {backbone.architecture} gives {backbone.features}; "
                "give the head that was tuned on this backbone"
            )
        outputs = head.get_submodule(f"layers.{len(head.layers) - 1}").get_parameter("bias").numel()
        if outputs != len(classes):
            raise UsageError(f"the head has {outputs} outputs, {len(classes)} class names were given")
        self.backbone = backbone
        self.head = head
        self.classes = tuple(classes)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images.

        Args:
            images: (N, H, W, 3), uint8, RGB; any N, H and W.

        Returns:
            Probabilities (N, classes) and features (N, backbone.features), float32.
        """
        return self.classify(self.backbone.preprocess(images))

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map preprocessed images (N, 3, size, size) to probabilities and features."""
        features = self.backbone(x)
        return torch.softmax(self.head(features), dim=1), features
