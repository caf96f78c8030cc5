"""A backbone with a head that classifies its features: what fine-tuning trains."""

import copy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sslfast.data import Dataset, printable
from sslfast.errors import DataError, UsageError
from sslfast.evaluate.faults import NO_FAULTS, Faults
from sslfast.models import Backbone

Rows = np.ndarray[Any, np.dtype[np.int64]]

HeadKind = Literal["linear", "convolutions"]

WIDTH = 128
"""Channels of the convolutions of `ConvolutionHead`."""


class ConvolutionHead(nn.Sequential):
    """Two 3x3 convolutions with batch normalisation, dropout and one fully connected layer (Kirthivasan and Agarwal).

    Their report draws the network without its widths; these are ours.

    Args:
        channels: of the map (N, channels, H, W) that it classifies.
        classes: number of classes.
        dropout: probability, before the fully connected layer.
    """

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(4 * WIDTH, classes),
        )


class FinetunedModel(nn.Module):
    """Images to logits: preprocessing, backbone, head.

    Args:
        backbone: the network that makes features; it is copied.
        classes: number of classes.
        head: "linear": ReLU and one linear layer on the feature vector; "convolutions": `ConvolutionHead` on the last
            feature map.
        dropout: of the second.
        faults: what is done wrong on purpose.

    Raises:
        UsageError: the backbone has no maps for a head of convolutions, or a random layer is asked for before one.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        head: HeadKind = "linear",
        dropout: float = 0.0,
        faults: Faults = NO_FAULTS,
    ) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.preprocess = faults.preprocess(backbone.preprocess)
        self.maps = head == "convolutions"
        width = faults.random_layer
        # A layer that nobody has trained; torchvision's ResNets come with one unless they are asked not to.
        self.between: nn.Module = nn.Identity() if width is None else nn.Linear(backbone.features, width)
        self.head: nn.Module
        if self.maps:
            if width is not None:
                raise UsageError("a random layer stands before a linear head only")
            self.head = ConvolutionHead(self._channels(), classes, dropout)
        else:
            self.head = nn.Sequential(nn.ReLU(), nn.Linear(backbone.features if width is None else width, classes))

    @torch.no_grad()
    def _channels(self) -> int:
        training = self.backbone.training
        size = self.preprocess.size
        shape = self._last_map(torch.zeros(1, 3, size, size), self.backbone.eval()).shape
        self.backbone.train(training)
        if len(shape) != 4:
            raise UsageError(f"a {self.backbone.architecture} has no feature map for a head of convolutions")
        return int(shape[1])

    @staticmethod
    def _last_map(x: Tensor, backbone: Backbone) -> Tensor:
        return next(reversed(backbone.feature_maps(x).values()))

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, H, W, 3), uint8, to what the head sees, (N, F) or (N, C, h, w); frozen in "transfer"."""
        x = self.preprocess(images)
        made: Tensor = self._last_map(x, self.backbone) if self.maps else self.between(self.backbone(x))
        return made

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, H, W, 3), uint8, to logits (N, classes)."""
        logits: Tensor = self.head(self.features(images).float())
        return logits

    def device(self) -> torch.device:
        """Say where the weights are."""
        return next(self.head.parameters()).device


def batches(rows: Rows, batch_size: int) -> list[Rows]:
    """Divide rows into batches that differ by one at most, none of a single image: it would have no variance.

    For that a batch of an odd number of rows has three images where ``batch_size`` is 2.
    """
    return np.array_split(rows, max(1, min(-(-len(rows) // batch_size), len(rows) // 2)))


def decoded(dataset: Dataset, model: FinetunedModel) -> Dataset:
    """Decode images in memory; of different sizes, at the size that the preprocessing asks for."""
    return dataset.decoded(None if dataset.image_size is not None else model.preprocess.size)


def image_features(model: FinetunedModel, images: Tensor, compute: torch.dtype = torch.float32) -> Tensor:
    """Give what the head sees of images (N, H, W, 3), float32, where the model is."""
    where = model.device()
    with torch.autocast(where.type, compute, enabled=compute != torch.float32):
        return model.features(images.to(where)).float()


@torch.no_grad()
def predict_logits(
    model: FinetunedModel,
    dataset: Dataset,
    batch_size: int = 64,
    faults: Faults = NO_FAULTS,
    compute: torch.dtype = torch.float32,
) -> Tensor:
    """Give the logits of each image (N, classes), float32, on the CPU, in evaluation mode unless that is the fault.

    Raises:
        DataError: there are no images, or an image cannot be read.
    """
    if not len(dataset):
        raise DataError(f"{printable(dataset.name)} {dataset.split} has no images to classify")
    model.train(faults.training_mode_at_test)
    count, dataset = len(dataset), decoded(dataset, model)
    if len(dataset) < count:
        raise DataError(f"{dataset.skipped[-1]}: it cannot be classified; leave it out (decoded() does)")
    parts = batches(np.arange(len(dataset)), batch_size)
    images = (torch.from_numpy(dataset.images(rows)) for rows in parts)
    return torch.cat([model.head(image_features(model, one, compute)).cpu() for one in images])
