"""What happens to an image before a network: the input convention that belongs to its weights."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before the network: resize to a square, scale to [0, 1], normalise.

    Args:
        size: side of the network's input in pixels; an image of another shape is resized to it (bilinear, antialiased).
        mean: per channel (R, G, B), of values in [0, 1].
        std: per channel, likewise.
    """

    size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (N, H, W, 3), uint8, to the network's input (N, 3, size, size), float32."""
        x = images.permute(0, 3, 1, 2).float()
        if x.shape[2] != self.size or x.shape[3] != self.size:
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return self.normalise(x / 255)

    def normalise(self, x: Tensor) -> Tensor:
        """Subtract the mean from (N, 3, H, W) in [0, 1] and divide by the standard deviation."""
        mean = torch.tensor(self.mean, device=x.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(1, 3, 1, 1)
        return (x - mean) / std

    def describe(self) -> str:
        """Say the convention in a few words: size, range, mean and standard deviation."""
        if self.mean == (0.0, 0.0, 0.0) and self.std == (1.0, 1.0, 1.0):
            scale = "RGB in [0, 1], no mean or standard deviation"
        else:
            mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
            scale = f"RGB in [0, 1], minus ({mean}), divided by ({std})"
        return f"{self.size} x {self.size}, {scale}"
