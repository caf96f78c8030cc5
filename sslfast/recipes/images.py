"""The images of a job: both splits in memory, and the part of the training images that is held out to choose by."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslfast.data import Dataset, check_same_classes, holdout, load, printable
from sslfast.data.size import working_size
from sslfast.errors import DataError
from sslfast.progress import console
from sslfast.recipes.config import DemoConfig


@dataclass
class Images:
    """Training and test images in memory, and which training images are held out."""

    train: Dataset
    test: Dataset
    rest: NDArray[np.int64]
    held_out: NDArray[np.int64]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        assert self.train.classes is not None
        return self.train.classes


def load_images(config: DemoConfig, data_dir: Path | None) -> Images:
    """Read and decode both splits, and hold a part of the training images out.

    Raises:
        DataError: there are no labels, the splits have different classes, or nothing can be held out.
    """
    raw_train, raw_test = (load(config.data, split, root=data_dir) for split in ("train", "test"))
    if raw_train.labels is None or raw_train.classes is None:
        raise DataError(
            f"{config.data} has no labels to tune a head with; use imagefolder:PATH with a folder per class"
        )
    check_same_classes(raw_train, raw_test)
    size = working_size(raw_train, config.image_size)
    train, test = raw_train.decoded(size), raw_test.decoded(size)
    for part in (train, test):
        if part.skipped:
            console.print(
                f"{len(part.skipped)} unreadable {part.split} images are left out, the first: {part.skipped[0]}",
                markup=False,
            )
    assert train.labels is not None
    rest, held_out = holdout(train.labels, config.val_fraction, config.seed)
    if not len(held_out):
        raise DataError(
            f"{config.data} has too few images per class to hold out {config.val_fraction:.0%} for validation"
        )
    absent = np.flatnonzero(np.bincount(train.labels[rest], minlength=len(raw_train.classes)) == 0)
    if len(absent):
        raise DataError(
            f"class {printable(raw_train.classes[absent[0]])!r} of {config.data} has no readable training image; "
            "add some, or take its folder away"
        )
    console.print(
        f"{config.data}: {len(rest)} to train on, {len(held_out)} held out, {len(test)} to test on, {size} px",
        markup=False,
        soft_wrap=True,
    )
    return Images(train, test, rest, held_out)
