"""Example images of each predicted class as PNG files: what a classifier, or a cluster, takes for one thing."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from sslfast.data import Dataset
from sslfast.data.image import resized
from sslfast.errors import DataError
from sslfast.evaluate.counting import label_array
from sslfast.files import writing
from sslfast.options import check_number

RIGHT, WRONG = (0, 121, 90), (179, 38, 30)
"""Colours of the frames: the label is the predicted class, or is not."""

FRAME, GAP, LEAST_SIDE = 3, 6, 48
"""Pixels of a frame, between images, and the side that smaller images are enlarged to, pixel by pixel."""

LARGEST_SIDE = 128


def example_rows(predicted: ArrayLike, per_class: int, seed: int = 0) -> dict[int, NDArray[np.int64]]:
    """Draw up to ``per_class`` rows of every predicted class, whether they are right or wrong, by chance.

    Raises:
        DataError: these are no whole numbers.
        UsageError: a number makes no sense.
    """
    check_number("images per class", per_class, 1)
    values = label_array(predicted, "predicted labels")
    chosen = {}
    for value in np.unique(values).tolist():
        rows = np.flatnonzero(values == value)
        chosen[value] = np.sort(np.random.default_rng([seed, value & 0xFFFFFFFF]).permutation(rows)[:per_class])
    return chosen


def write_example_grids(
    dataset: Dataset,
    predicted: ArrayLike,
    folder: Path | str,
    *,
    names: Sequence[str] | None = None,
    labels: ArrayLike | None = None,
    per_class: int = 25,
    seed: int = 0,
) -> list[Path]:
    """Write a PNG per predicted class with images that were taken for it, drawn by chance.

    A frame is green where the label is the predicted class and red where it is not; without labels there is none.

    Args:
        dataset: the images.
        predicted: class, or cluster, of each of them (N,).
        folder: where to write ``00-name.png``, ``01-name.png``, ...
        names: of the classes; by default the data set's own, or numbers.
        labels: of the images (N,), in the numbering of ``predicted``; by default the data set's where ``predicted`` are
            its classes.
        per_class: most images of a class.
        seed: of the draw.

    Returns:
        The files.

    Raises:
        DataError: lengths differ, or an image cannot be read.
    """
    values = label_array(predicted, "predicted labels")
    names = dataset.classes if names is None else tuple(names)
    true = label_array(labels, "labels") if labels is not None else dataset.labels
    if len(values) != len(dataset) or (true is not None and len(true) != len(values)):
        raise DataError(
            f"{len(dataset)} images, {len(values)} predictions and {'no' if true is None else len(true)} labels do not "
            "belong together"
        )
    paths = []
    for value, rows in example_rows(values, per_class, seed).items():
        right = None if true is None else (true[rows] == value).tolist()
        name = names[value] if names is not None and 0 <= value < len(names) else ""
        path = Path(folder) / ("-".join([f"{value:02d}", *([_file_name(name)] if name else [])]) + ".png")
        grid = draw_grid([dataset[int(row)][0] for row in rows], right)
        with writing(path) as partial:
            grid.save(partial, format="PNG")
        paths.append(path)
    return paths


def draw_grid(images: Sequence[NDArray[np.uint8]], right: Sequence[bool] | None = None) -> Image.Image:
    """Lay images (H, W, 3) out in a square of rows and columns, with green and red frames."""
    side = min(LARGEST_SIDE, max(max(max(image.shape[:2]) for image in images), LEAST_SIDE))
    columns = int(np.ceil(np.sqrt(len(images))))
    cell = side + 2 * FRAME + GAP
    lines = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell + GAP, lines * cell + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        left, top = GAP + number % columns * cell, GAP + number // columns * cell
        if right is not None:
            corner = (left + side + 2 * FRAME - 1, top + side + 2 * FRAME - 1)
            draw.rectangle((left, top, *corner), fill=RIGHT if right[number] else WRONG)
        sheet.paste(_picture(image, side), (left + FRAME, top + FRAME))
    return sheet


def _picture(image: NDArray[np.uint8], side: int) -> Image.Image:
    """Bring an image to a square: enlarged pixel by pixel, reduced with antialiasing."""
    if max(image.shape[:2]) <= side:
        return Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
    return Image.fromarray(resized(image[None], side)[0])


def _file_name(name: str) -> str:
    """Keep what every file system takes of a class name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60] or "class"
