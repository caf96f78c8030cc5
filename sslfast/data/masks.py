"""Images with a class for every pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sslfast.data import pets, shapes
from sslfast.data.dataset import Dataset, Skipped, printable
from sslfast.data.image import UnreadableImage
from sslfast.data.loading import load
from sslfast.data.memory import ArrayPixels, watched
from sslfast.data.naming import image_ids
from sslfast.errors import DataError, UsageError
from sslfast.options import check_number, check_seed

IGNORED = 255
"""Pixels of this class are neither trained on nor scored."""

MASKED = ("oxford-pets", shapes.NAME)
"""What `load_masks` knows."""

SHAPES = {"train": 1000, "test": 300}
"""How many generated images a split has."""


@dataclass(frozen=True)
class MaskedImages:
    """Square images of one size with the class of every pixel.

    Args:
        dataset: the images.
        masks: (N, size, size), uint8: index into ``classes``, or `IGNORED`.
        classes: names of the classes of pixels.
    """

    dataset: Dataset
    masks: NDArray[np.uint8]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        size = self.dataset.image_size
        if size is None or self.masks.shape != (len(self.dataset), *size) or size[0] != size[1]:
            raise DataError(
                f"{len(self.dataset)} images of size {size} and masks {self.masks.shape} do not belong together"
            )
        found = np.unique(self.masks)
        if len(found) and found[found != IGNORED].max(initial=0) >= len(self.classes):
            raise DataError(
                f"a mask holds class {found[found != IGNORED].max()}, there are {len(self.classes)} classes"
            )

    @property
    def size(self) -> int:
        """Side in pixels."""
        return int(self.masks.shape[1])

    def __len__(self) -> int:
        """Count the images."""
        return len(self.masks)

    def images(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Give images (B, size, size, 3)."""
        return self.dataset.images(indices)

    def subset(self, indices: ArrayLike) -> "MaskedImages":
        """Give the images at ``indices`` (B,), in that order."""
        return MaskedImages(self.dataset.subset(indices), self.masks[np.asarray(indices)], self.classes)


def load_masks(
    name: str,
    split: str,
    size: int,
    *,
    root: Path | str | None = None,
    download: bool = True,
    count: int | None = None,
    seed: int = 0,
) -> MaskedImages:
    """Load images with masks, resized to a square: images by antialiased interpolation, masks to the nearest pixel.

    Args:
        name: "oxford-pets": photographs with trimaps (pet and background; the strip between them, which its authors
            left undecided, is ignored). "shapes-on-texture": generated, for where nothing can be downloaded.
        split: "train" or "test".
        size: side in pixels.
        root: folder to look in first, and to download to.
        download: whether to fetch a set that is nowhere.
        count: how many images are generated; of a set that is read, the first so many.
        seed: of generated images.

    Raises:
        UsageError: the name or the split is unknown, or a number makes no sense.
        DataError: the set is nowhere, or no image with a mask can be read.
    """
    check_number("the size", size, 8)
    check_seed(seed)
    if count is not None:
        check_number("the number of images", count, 1)
    if name == shapes.NAME:
        if split not in SHAPES:
            raise UsageError(f"{name} has no split {printable(split)!r}; it has: {', '.join(SHAPES)}")
        return _generated(split, size, count or SHAPES[split], seed)
    if name != "oxford-pets":
        raise UsageError(f"there are no masks of {printable(name)!r}; there are: {', '.join(MASKED)}")
    dataset = load(name, split, root, download)
    return _pets(dataset.subset(np.arange(min(count or len(dataset), len(dataset)))), size)


def _generated(split: str, size: int, count: int, seed: int) -> MaskedImages:
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    masks = np.empty((count, size, size), dtype=np.uint8)
    for number in range(count):
        images[number], masks[number] = shapes.draw(size, seed, list(SHAPES).index(split), number)
    dataset = Dataset(shapes.NAME, split, ArrayPixels(images), ids=image_ids(split, count))
    return MaskedImages(dataset, masks, shapes.CLASSES)


def _pets(dataset: Dataset, size: int) -> MaskedImages:
    dataset = dataset.decoded(size)
    masks = np.empty((len(dataset), size, size), dtype=np.uint8)
    kept: list[int] = []
    skipped: list[Skipped] = []
    with watched("reading trimaps", len(dataset)) as progress:
        for row, path in enumerate(dataset.ids):
            try:
                masks[row] = nearest(pets.trimap(path), size)
                kept.append(row)
            except UnreadableImage as error:
                skipped.append(Skipped(pets.trimap_path(path), str(error)))
            progress.advance()
    if not kept:
        raise DataError(
            f"{dataset.name} {dataset.split} has no trimap that can be read; the first: {skipped[0]}; or take the "
            f"generated {shapes.NAME}"
            if skipped
            else f"{dataset.name} {dataset.split} has no image"
        )
    rest = dataset.subset(np.array(kept, dtype=np.int64))
    rest.skipped = (*rest.skipped, *skipped)
    return MaskedImages(rest, masks[kept], pets.PIXEL_CLASSES)


def nearest(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize a mask (H, W) to size x size by the nearest pixel, whole image to square."""
    rows, columns = (_places(side, size) for side in mask.shape)
    return np.ascontiguousarray(mask[rows][:, columns])


def _places(side: int, size: int) -> Sequence[int]:
    places: Sequence[int] = ((2 * np.arange(size) + 1) * side // (2 * size)).tolist()
    return places
