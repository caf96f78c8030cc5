"""Views rendered by our compiled kernel on the CPU, straight from where the images lie in memory."""

import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import sslfast  # noqa: F401  loads the kernel
from sslfast.data.dataset import Located, Rows
from sslfast.data.drawing import ViewParameters
from sslfast.data.render import Images, blur_radius


@dataclass(frozen=True)
class PixelTable:
    """Images in one buffer, as the kernel reads them.

    Attributes:
        pixels: (bytes,), uint8.
        offsets: of each image's first byte, int64 (N,).
        sizes: height, width and bytes per row of each image, int32 (N, 3).
        column: bytes from one pixel to the next.
        channel: bytes from one colour to the next.
    """

    pixels: Tensor
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int32]
    column: int
    channel: int

    @classmethod
    def of(cls, located: Located, sizes: Rows) -> Self:
        """Take images of these sizes (N, 2) from where they lie."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # nor does the kernel write to it
            pixels = torch.from_numpy(located.buffer)
        measures = np.column_stack([sizes, located.row]).astype(np.int32)
        return cls(pixels, np.ascontiguousarray(located.offsets), measures, located.column, located.channel)

    @classmethod
    def packed(cls, images: Images) -> Self:
        """Put images (H, W, 3) one behind the other."""
        sizes = np.array([image.shape[:2] for image in images], dtype=np.int64).reshape(-1, 2)
        lengths = 3 * sizes.prod(axis=1)
        offsets = np.zeros(len(sizes), dtype=np.int64)
        offsets[1:] = np.cumsum(lengths)[:-1]
        if isinstance(images, np.ndarray):
            buffer = np.ascontiguousarray(images).reshape(-1)
        elif len(images) == 1:
            buffer = np.ascontiguousarray(images[0]).reshape(-1)
        else:
            buffer = np.concatenate([image.reshape(-1) for image in images])
        return cls.of(Located(buffer, offsets, 3 * sizes[:, 1], 3, 1), sizes)


class NativeRenderer:
    """Renders views with the operator ``render_views``; it never waits for Python between two views.

    Args:
        size: side of a view, in pixels.
        parallel: whether a batch's views are made on all of torch's threads.
    """

    def __init__(self, size: int, parallel: bool = True) -> None:
        self.size = size
        self.parallel = parallel

    def __call__(self, images: Images, parameters: ViewParameters) -> Tensor:
        """Map B images (H, W, 3), uint8, to V x B views (V x B, 3, size, size), float32 in [0, 1]."""
        table = PixelTable.packed(images)
        return self.render(table, np.arange(len(images), dtype=np.int64), parameters)

    def render(
        self, table: PixelTable, rows: NDArray[np.int64], parameters: ViewParameters, out: Tensor | None = None
    ) -> Tensor:
        """Make views of the images ``rows`` (B,) of a table into ``out`` (V x B, 3, size, size), and return it."""
        count = len(parameters)
        if out is None:
            out = torch.empty(count, 3, self.size, self.size)
        repeated = np.tile(rows, count // max(1, len(rows)))
        torch.ops.sslfast.render_views(
            out,
            table.pixels,
            torch.from_numpy(table.offsets[repeated]),
            torch.from_numpy(table.sizes[repeated]),
            table.column,
            table.channel,
            torch.from_numpy(whole_numbers(parameters)),
            torch.from_numpy(real_numbers(parameters)),
            blur_radius(self.size),
            self.parallel,
        )
        return out


def whole_numbers(parameters: ViewParameters) -> NDArray[np.int32]:
    """Give the kernel's table of whole numbers (B, 11): box, flips, solarise, erased box."""
    columns = (parameters.flip, parameters.vertical_flip, parameters.solarise)
    return np.concatenate([parameters.box, np.stack(columns, axis=1), parameters.erase], axis=1, dtype=np.int32)


def real_numbers(parameters: ViewParameters) -> NDArray[np.float32]:
    """Give the kernel's table of real numbers (B, 14): colours, blur, fill, perspective."""
    columns = (parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue)
    more = (parameters.blur, parameters.fill)
    return np.concatenate([np.stack(columns + more, axis=1), parameters.perspective], axis=1, dtype=np.float32)
