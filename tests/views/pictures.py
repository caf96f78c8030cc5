"""Images that the tests of views share."""

import numpy as np
import torch

from sslfast.data import Dataset
from sslfast.data.memory import ArrayPixels


def photographs(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colour images (count, height, width, 3)."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.uniform(20, 230, (count, 3, 5, 5)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)
    return smooth.permute(0, 2, 3, 1).round().byte().numpy()


def in_memory(images: np.ndarray) -> Dataset:
    """A data set of images (N, H, W, 3), or (N, H, W) where they are grey."""
    return Dataset("drawn", "train", ArrayPixels(images), ids=[str(row) for row in range(len(images))])
