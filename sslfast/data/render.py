"""Views rendered by plain PyTorch, one by one: the definition of each step, which other renderers are held against."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sslfast.data.drawing import UNMOVED, ViewParameters

# ITU-R BT.601 luma, as torchvision's rgb_to_grayscale and DALI's GRAY have it.
LUMA = (0.299, 0.587, 0.114)

# Colours turn in the plane of I and Q (YIQ, NTSC): linear, so one matrix a view. DALI's hsv operator does the same.
RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
YIQ_TO_RGB = torch.linalg.inv(RGB_TO_YIQ.double()).float()

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]


class Renderer(Protocol):
    """Turns images and drawn parameters into network input."""

    def __call__(self, images: Images, parameters: ViewParameters) -> Tensor:
        """Map B images (H, W, 3), uint8, to V x B views (V x B, 3, size, size), float32 in [0, 1].

        Row v x B + b is a view of image b. Noise is not the renderer's: see `add_noise`.
        """


class TorchRenderer:
    """Renders views one by one with PyTorch's operators.

    Args:
        size: side of a view, in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, images: Images, parameters: ViewParameters) -> Tensor:
        """Map B images (H, W, 3), uint8, to V x B views (V x B, 3, size, size), float32 in [0, 1]."""
        views = torch.empty(len(parameters), 3, self.size, self.size)
        for row, box in enumerate(parameters.box.tolist()):
            crop = crop_image(images[row % len(images)], *box)
            views[row] = F.interpolate(crop, size=(self.size, self.size), mode="bilinear", antialias=True)[0]
        for chosen, axis in ((parameters.flip, -1), (parameters.vertical_flip, -2)):
            mirrored = torch.from_numpy(chosen).bool()
            views[mirrored] = views[mirrored].flip(axis)
        views = change_colours(views, parameters).clamp_(0, 255)
        moved = np.flatnonzero((parameters.perspective != UNMOVED).any(axis=1))
        for row in moved.tolist():
            views[row] = change_perspective(views[row], parameters.perspective[row])
        for row in np.flatnonzero(parameters.blur).tolist():
            views[row] = blur(views[row], float(parameters.blur[row]))
        for row in np.flatnonzero(parameters.solarise).tolist():
            views[row] = torch.where(views[row] >= 127.5, 255 - views[row], views[row])
        for row, (top, left, height, width) in enumerate(parameters.erase.tolist()):
            views[row, :, top : top + height, left : left + width] = 255 * float(parameters.fill[row])
        return views.div_(255).clamp_(0, 1)


def crop_image(image: NDArray[np.uint8], top: int, left: int, height: int, width: int) -> Tensor:
    """Cut a box out of an image (H, W, 3) as (1, 3, height, width) float32; what is outside the image is 0."""
    crop = torch.zeros(1, 3, height, width)
    y, x = max(0, top), max(0, left)
    part = image[y : max(y, min(image.shape[0], top + height)), x : max(x, min(image.shape[1], left + width))]
    if part.size:
        pixels = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1).float()
        crop[0, :, y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] = pixels
    return crop


def change_colours(x: Tensor, parameters: ViewParameters) -> Tensor:
    """Change brightness, contrast, saturation and hue of views (B, 3, H, W), in this order.

    All four are linear, so nothing is cut off between them; torchvision's own steps clamp after each.
    """

    def column(values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values).view(-1, 1, 1, 1)

    grey = (x * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = column(parameters.brightness) * (grey + column(parameters.contrast) * (x - grey))
    return torch.einsum("bij,bjhw->bihw", colour_matrix(parameters.saturation, parameters.hue), x)


def colour_matrix(saturation: NDArray[np.float32], hue: NDArray[np.float32]) -> Tensor:
    """Make the matrices (B, 3, 3) that scale the distance to grey by ``saturation`` and turn it by ``hue`` degrees."""
    angle = torch.from_numpy(np.deg2rad(hue))
    scale = torch.from_numpy(saturation)
    turn = torch.zeros(len(scale), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = scale * torch.cos(angle)
    turn[:, 1, 2] = scale * torch.sin(angle)
    turn[:, 2, 1] = -scale * torch.sin(angle)
    matrix: Tensor = YIQ_TO_RGB @ turn @ RGB_TO_YIQ
    return matrix


def change_perspective(view: Tensor, coefficients: NDArray[np.float32]) -> Tensor:
    """Look at a view (3, S, S) from elsewhere: bilinear, black outside; see `ViewParameters.perspective`."""
    size = view.shape[-1]
    a, b, c, d, e, f, g, h = coefficients.tolist()
    y, x = torch.meshgrid(*2 * (torch.arange(size) + 0.5,), indexing="ij")
    below = g * x + h * y + 1
    grid = torch.stack([(a * x + b * y + c) / below, (d * x + e * y + f) / below], dim=-1) * (2 / size) - 1
    return F.grid_sample(view[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def blur_radius(size: int) -> int:
    """Give the pixels on each side of a blur's window: the window is a tenth of the view, odd, at least 3."""
    return max(1, size // 20)


def blur_window(radius: int, sigma: float) -> Tensor:
    """Give the weights (2 radius + 1,) of a Gaussian, which sum to 1."""
    return torch.softmax(-0.5 * (torch.arange(-radius, radius + 1) / sigma).square(), dim=0)


def blur(view: Tensor, sigma: float) -> Tensor:
    """Blur a view (3, S, S) by a Gaussian of ``sigma`` pixels; the border reflects about its outermost pixel."""
    size = view.shape[-1]
    radius = blur_radius(size)
    window = blur_window(radius, sigma)
    if size <= radius:  # a view of one pixel has nothing to be reflected
        return view
    x = F.pad(view[:, None], (radius,) * 4, mode="reflect")
    x = F.conv2d(x, window.view(1, 1, -1, 1))
    return F.conv2d(x, window.view(1, 1, 1, -1))[:, 0]


def add_noise(views: Tensor, parameters: ViewParameters, random: np.random.Generator) -> Tensor:
    """Add Gaussian noise to views (B, 3, S, S) in [0, 1] in place, cut off there; the same numbers on every device."""
    rows = np.flatnonzero(parameters.noise)
    if len(rows):
        normal = torch.Generator().manual_seed(int(random.integers(2**63)))
        noise = torch.randn(len(rows), *views.shape[1:], generator=normal)
        noise *= torch.from_numpy(parameters.noise[rows]).view(-1, 1, 1, 1)
        first, last = int(rows[0]), int(rows[-1]) + 1
        if len(rows) == last - first:
            views[first:last].add_(noise.to(views.device)).clamp_(0, 1)
        else:
            views[rows] = views[rows].add_(noise.to(views.device)).clamp_(0, 1)
    return views
