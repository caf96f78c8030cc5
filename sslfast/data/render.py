"""Views rendered by plain PyTorch: the definition of each step, and the way where DALI is not installed."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sslfast.data.views import ViewParameters

# ITU-R BT.601 luma, as torchvision's rgb_to_grayscale and DALI's GRAY have it.
LUMA = (0.299, 0.587, 0.114)

# Colours turn in the plane of I and Q (YIQ, NTSC): linear, so one matrix a view. DALI's hsv operator does the same.
RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
YIQ_TO_RGB = torch.linalg.inv(RGB_TO_YIQ.double()).float()


class TorchRenderer:
    """Renders views one by one with PyTorch's operators.

    Args:
        size: side of a view, in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, images: NDArray[np.uint8], parameters: ViewParameters) -> Tensor:
        """Map images (B, H, W, 3), uint8, to views (B, 3, size, size), float32 in [0, 1]."""
        views = torch.empty(len(images), 3, self.size, self.size)
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
        for i, (top, left, height, width) in enumerate(parameters.box.tolist()):
            crop = pixels[i : i + 1, :, top : top + height, left : left + width]
            views[i] = F.interpolate(crop, size=(self.size, self.size), mode="bilinear", antialias=True)[0]
        mirrored = torch.from_numpy(parameters.flip).bool()
        views[mirrored] = views[mirrored].flip(-1)
        return change_colours(views, parameters).div_(255).clamp_(0, 1)


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
