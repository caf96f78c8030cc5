"""A loader's batches made by DALI: one file that it cannot decode ends neither the epoch nor the order."""

from collections import deque
from collections.abc import Iterator
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sslfast.data.dali import DaliRenderer, Job
from sslfast.data.dataset import Images, Rows
from sslfast.data.drawing import ViewParameters
from sslfast.data.image import ORIENTATION_TAG, quiet
from sslfast.errors import DataError, first_line

if TYPE_CHECKING:
    from sslfast.data.loader import Batch, ViewLoader

IN_FLIGHT = 3
"""Batches that a pipeline may hold: an error that it raises belongs to one of them."""

# How much DALI is trusted with a batch's files: all that look sound; those that Pillow can decode; none of them.
SOUND, DECODABLE, NONE = range(3)


def dali_batches(loader: "ViewLoader", positions: Iterator[int]) -> Iterator["Batch"]:
    """Give the batches of some steps of a run.

    A pipeline that meets a file it cannot decode is dead. So files are looked at before; what is no plain JPEG is
    decoded here and handed over as pixels in a file's clothes. Where DALI fails in spite of that, the batches that it
    held are given to a new pipeline, without the files that Pillow cannot decode either.

    Raises:
        DataError: no image of a batch can be decoded.
    """
    files = loader.dataset.located() is None
    whole = not files and loader.dataset.image_size is not None
    largest = min(loader.batch_size, len(loader.dataset))
    begun: deque[int] = deque()  # positions that a pipeline was given and that were not handed on
    trust: dict[int, int] = {}

    def taken() -> Iterator[int]:
        for position in positions:
            begun.append(position)
            yield position

    while True:
        held: deque[tuple[int, Rows, list[ViewParameters]]] = deque()

        def jobs(again: tuple[int, ...], held: deque[tuple[int, Rows, list[ViewParameters]]]) -> Iterator[Job]:
            for position in chain(again, taken()):
                rows = loader.rows_of(position)
                drawn = loader.drawn(position, rows)
                if whole:
                    held.append((position, rows, drawn))
                    yield loader.dataset.images(rows), drawn
                    continue
                images = [_image(loader, int(row), files, trust.get(position, SOUND)) for row in rows]
                kept = [place for place, image in enumerate(images) if image is not None]
                drawn = loader.chosen(rows, kept, drawn)
                held.append((position, rows[kept], drawn))
                yield [image for image in images if image is not None], drawn

        renderer = DaliRenderer(loader.plan.groups, loader.sizes, largest, loader.threads, loader.device, files)
        try:
            for views in renderer.stream(jobs(tuple(begun), held)):
                position, rows, drawn = held.popleft()
                begun.popleft()
                trust.pop(position, None)
                yield loader.finished(position, rows, views, drawn)
            return
        except RuntimeError as error:
            level = trust.get(begun[0], SOUND) + 1 if begun else NONE + 1
            if not files or level > NONE:
                raise DataError(f"DALI cannot render a batch: {first_line(error)}") from error
            trust.update(dict.fromkeys(list(begun)[:IN_FLIGHT], level))


def _image(loader: "ViewLoader", index: int, files: bool, trust: int) -> Images | None:
    """Give an image's pixels or, of a set in files, what DALI can decode; None where the image is unusable."""
    if not files or trust != SOUND:
        pixels = loader.read(index)
        if not files or pixels is None:
            return pixels
        if trust == NONE:
            return _clothed(pixels)
    try:
        content = loader.dataset.encoded(index)
    except DataError as error:
        loader.leave_out(index, str(error.__cause__ or error))
        return None
    if content is not None and _plain_jpeg(content, loader.dataset.sizes([index])[0].tolist()):
        return np.frombuffer(content, np.uint8)
    pixels = loader.read(index)
    return None if pixels is None else _clothed(pixels)


def _plain_jpeg(content: bytes, size: list[int]) -> bool:
    """Say whether a file is a complete JPEG in RGB or grey, as it is to be seen, of the size that is known."""
    if not content.startswith(b"\xff\xd8") or not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        return False
    with quiet():
        try:
            image = Image.open(BytesIO(content), formats=("JPEG",))
            upright = int(image.getexif().get(ORIENTATION_TAG, 1)) == 1
            return image.mode in ("RGB", "L") and upright and [image.height, image.width] == size
        except Exception:  # Pillow's parsers raise whatever a damaged file makes them raise
            return False


def _clothed(pixels: Images) -> Images:
    """Give an image as the content of a PPM file."""
    head = f"P6 {pixels.shape[1]} {pixels.shape[0]} 255\n".encode()
    return np.concatenate([np.frombuffer(head, np.uint8), pixels.reshape(-1)])
