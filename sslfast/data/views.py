"""Augmented views: what is drawn for a view of an image, apart from who renders it.

A policy says the distributions, `draw_views` draws the parameters of a whole batch from a counter-based generator
(so that a view is a function of seed, epoch and step, whoever renders it and whenever), and a renderer turns images
and parameters into network input: DALI where it is installed (`sslfast.data.dali`), plain PyTorch as the reference and
elsewhere (`sslfast.data.render`).
"""

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslfast.errors import UsageError

CROP_TRIES = 10
"""Boxes drawn for one random resized crop before it falls back to the whole image, as torchvision does."""


@dataclass(frozen=True)
class ViewPolicy:
    """The distributions that a view is drawn from.

    Args:
        scale: area of the crop as a fraction of the image's, uniform in this range.
        ratio: width over height of the crop, log-uniform in this range.
        flip: probability of a horizontal flip.
        jitter: probability that the colours are changed.
        brightness: factor of the pixel values, uniform in [1 - b, 1 + b].
        contrast: factor of the distance to the image's mean grey, uniform in [1 - c, 1 + c].
        saturation: factor of the distance to each pixel's own grey, uniform in [1 - s, 1 + s].
        hue: turn of the colour circle, uniform in [-h, h]; 1 is a full turn.
        grayscale: probability that all colour is taken away.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2


POLICIES: dict[str, ViewPolicy] = {
    # Chen et al. 2020, appendix B.9 (CIFAR): jitter strength 0.5, no blur.
    "simclr": ViewPolicy(),
}


def policy(name: str) -> ViewPolicy:
    """Find a policy by name.

    Raises:
        UsageError: there is no such policy.
    """
    if name not in POLICIES:
        raise UsageError(f"unknown view policy {name!r}; there are: {', '.join(POLICIES)}")
    return POLICIES[name]


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for each of B views, one row a view.

    Attributes:
        box: top, left, height, width of the crop in pixels, int32 (B, 4).
        flip: 1 where the crop is mirrored, int32 (B,).
        brightness: factor, float32 (B,).
        contrast: factor, float32 (B,).
        saturation: factor, float32 (B,); 0 takes all colour away.
        hue: degrees, float32 (B,).
    """

    box: NDArray[np.int32]
    flip: NDArray[np.int32]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    saturation: NDArray[np.float32]
    hue: NDArray[np.float32]

    def __len__(self) -> int:
        """Count the views."""
        return len(self.flip)

    def rows(self, chosen: Any) -> "ViewParameters":
        """Take some of the views."""
        return ViewParameters(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


class Renderer(Protocol):
    """Turns images and drawn parameters into network input."""

    def __call__(self, images: NDArray[np.uint8], parameters: ViewParameters) -> Tensor:
        """Map images (B, H, W, 3), uint8, to views (B, 3, size, size), float32 in [0, 1]."""


def generator(seed: int, *position: int) -> np.random.Generator:
    """Make the generator that belongs to a position (epoch, step, ...): the same for whoever asks, whenever."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *position])))


def draw_views(policy: ViewPolicy, random: np.random.Generator, count: int, height: int, width: int) -> ViewParameters:
    """Draw the parameters of ``count`` views of images of ``height`` x ``width`` pixels.

    Args:
        policy: the distributions.
        random: see `generator`.
        count: B.
        height: of every image, in pixels.
        width: likewise.
    """
    box = _draw_boxes(policy, random, count, height, width)
    uniform = random.random((count, 7))
    changed = uniform[:, 1] < policy.jitter

    def factor(column: int, spread: float) -> NDArray[np.float32]:
        drawn = 1 + spread * (2 * uniform[:, column] - 1)
        return np.where(changed, drawn, 1).astype(np.float32)

    saturation = np.where(uniform[:, 6] < policy.grayscale, np.float32(0), factor(4, policy.saturation))
    return ViewParameters(
        box=box,
        flip=(uniform[:, 0] < policy.flip).astype(np.int32),
        brightness=factor(2, policy.brightness),
        contrast=factor(3, policy.contrast),
        saturation=saturation.astype(np.float32),
        hue=np.where(changed, 360 * policy.hue * (2 * uniform[:, 5] - 1), 0).astype(np.float32),
    )


def _draw_boxes(
    policy: ViewPolicy, random: np.random.Generator, count: int, height: int, width: int
) -> NDArray[np.int32]:
    # torchvision's rule, for a whole batch: the first of ten boxes that fits, else the largest one of allowed ratio.
    area = height * width * random.uniform(*policy.scale, size=(count, CROP_TRIES))
    least, most = (float(np.log(ratio)) for ratio in policy.ratio)
    ratio = np.exp(random.uniform(least, most, size=(count, CROP_TRIES)))
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(axis=1)
    rows = np.arange(count)
    w, h = w[rows, first], h[rows, first]
    none = ~fits[rows, first]
    if none.any():
        w[none], h[none] = _largest_box(policy.ratio, height, width)
    corner = random.random((count, 2))
    # The generator may give a value that rounds to 1, hence the minimum.
    top = np.minimum((corner[:, 0] * (height - h + 1)).astype(np.int64), height - h)
    left = np.minimum((corner[:, 1] * (width - w + 1)).astype(np.int64), width - w)
    top[none], left[none] = (height - h[none]) // 2, (width - w[none]) // 2
    return np.stack([top, left, h, w], axis=1).astype(np.int32)


def _largest_box(ratio: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    if width / height < ratio[0]:
        return width, max(1, round(width / ratio[0]))
    if width / height > ratio[1]:
        return max(1, round(height * ratio[1])), height
    return width, height
