"""The size that images are worked on, where nobody says one, and which of them are held decoded."""

from sslfast.data.dataset import Dataset
from sslfast.errors import UsageError

LARGEST_NATIVE = 96
"""Images up to this side, in pixels, are worked on as they are, and held decoded."""

REDUCED = 64
"""What larger images, and images of different sizes, are resized to."""

SMALLEST = 8
"""Side of the smallest view that a network of ours still sees something in."""


def working_size(dataset: Dataset, asked: int | None = None) -> int:
    """Give the side in pixels that a data set's images are resized to: ``asked``, or the images' own if it is small.

    Raises:
        UsageError: a size below 8 pixels was asked for.
    """
    if asked is not None:
        if asked < SMALLEST:
            raise UsageError(f"images must be worked on at {SMALLEST} pixels or more, --image-size is {asked}")
        return asked
    if dataset.image_size is None or max(dataset.image_size) > LARGEST_NATIVE:
        return REDUCED
    return max(SMALLEST, min(dataset.image_size))


def decoded_if_small(dataset: Dataset) -> Dataset:
    """Decode small images of one size once, whole into memory; others stay in their files.

    Raises:
        DataError: no image can be read, or there is no room.
    """
    small = dataset.image_size is not None and max(dataset.image_size) <= LARGEST_NATIVE
    return dataset.decoded() if small else dataset
