"""One image file: its header, its pixels as 8-bit RGB, and the resize that every part of sslfast shares."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from sslfast.data.dataset import Images

PIXEL_LIMIT = 90_000_000
"""An image that claims more pixels is refused from its header, before anything is decoded."""

BYTE_LIMIT = 4 * PIXEL_LIMIT
"""A file that is longer, or unpacks to more, is refused: it is what the largest image takes without compression."""

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
"""Ends of the names that are taken for images, in lower case."""

# Only these are tried, whatever a file is called: Pillow knows formats that start other programs.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")

ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)


class UnreadableImage(Exception):
    """An image that cannot be used; its text is the reason, in a few words."""


class _Quiet:
    """Silences Pillow's warnings (an odd tag, a large image) while a thread is inside; we judge the files ourselves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._filters = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        # Python 3.11's warning filters belong to the process: the first to enter saves them, the last restores them.
        with self._lock:
            if self._depth == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    self._filters.__exit__(None, None, None)


quiet = _Quiet()


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableImage):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"claims more than {PIXEL_LIMIT:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "no image in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _open(stream: BinaryIO) -> Image.Image:
    if not stream.read(1):
        raise UnreadableImage("empty file")
    stream.seek(0)
    image = Image.open(stream, formats=FORMATS)
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise UnreadableImage(f"claims {width} x {height} pixels, more than {PIXEL_LIMIT:,}")
    if not width or not height:
        raise UnreadableImage(f"claims {width} x {height} pixels")
    return image


def _orientation(image: Image.Image) -> int:
    # Pillow turns a TIFF itself while it loads it, and gives the size that it has then.
    if image.format == "TIFF":
        return 1
    # Asked for its EXIF data, a PNG without any before its pixels would be decoded to look behind them.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data; the image itself may be sound
        return 1


def read_header(stream: BinaryIO) -> tuple[int, int]:
    """Give (height, width) in pixels of the image as it is to be seen, without decoding it.

    Raises:
        UnreadableImage: it is empty, no image, or claims more than `PIXEL_LIMIT` pixels.
    """
    with quiet():
        try:
            image = _open(stream)
            width, height = image.size
            return (width, height) if _orientation(image) in _SWAPS_SIDES else (height, width)
        except Exception as error:  # Pillow's parsers raise whatever a damaged file makes them raise
            raise UnreadableImage(_reason(error)) from error


def decode(stream: BinaryIO) -> Images:
    """Decode an image to (H, W, 3), uint8, as it is to be seen.

    EXIF orientation is applied; transparent parts lie on white; 16-bit grey is scaled by 1/257 and rounded; of several
    frames the first counts.

    Raises:
        UnreadableImage: it is damaged, or claims more than `PIXEL_LIMIT` pixels.
    """
    with quiet():
        try:
            image = _open(stream)
            orientation = _orientation(image)
            image.load()
            pixels = _rgb(image)
            if orientation in _TRANSPOSE:
                pixels = pixels.transpose(_TRANSPOSE[orientation])
            # A copy: Pillow's own buffer is read-only.
            return np.array(pixels, dtype=np.uint8)
        except Exception as error:  # see read_header
            raise UnreadableImage(_reason(error)) from error


def decode_indices(stream: BinaryIO) -> Images:
    """Decode an image whose values are numbers of classes to (H, W), uint8, as they stand in the file.

    Raises:
        UnreadableImage: it is damaged, claims more than `PIXEL_LIMIT` pixels, or has no single 8-bit channel.
    """
    with quiet():
        try:
            image = _open(stream)
            image.load()
            if image.mode not in ("L", "P"):
                raise UnreadableImage(f"a mask has one channel of 8 bits, this image is {image.mode}")
            return np.array(image, dtype=np.uint8)
        except Exception as error:  # see read_header
            raise UnreadableImage(_reason(error)) from error


def _rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage("32-bit values outside 0..65535, of no known range")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if mode == "F":
        raise UnreadableImage("floating-point pixels, of no known range")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if mode in ("La", "RGBa"):
            image = image.convert("LA" if mode == "La" else "RGBA")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def resized(images: Images, size: int) -> Images:
    """Resize images (N, H, W) or (N, H, W, C), uint8, to size x size as `models.Preprocess` does, rounded to uint8."""
    import torch
    from torch.nn import functional as F

    grey = images.ndim == 3
    x = torch.from_numpy(images[..., None] if grey else images).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    out: Images = x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return out[..., 0] if grey else out
