"""The images of a study: a part of the training split, what is held out of it, and a part of the test split."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslfast.data import Dataset, check_same_classes, holdout, load, printable
from sslfast.data.dataset import Rows
from sslfast.data.size import working_size
from sslfast.errors import UsageError
from sslfast.evaluate import check_shared_images
from sslfast.progress import console, tell_skipped
from sslfast.study.config import StudyConfig


@dataclass(frozen=True)
class StudyImages:
    """Decoded images of one size; the same for every seed.

    Args:
        train: what is divided into training and validation images, by each seed in its own way.
        test: what nothing is chosen on.
        size: side in pixels that views are made at.
    """

    train: Dataset
    test: Dataset
    size: int

    def fingerprints(self) -> list[str]:
        """Hash both splits."""
        return [self.train.fingerprint(), self.test.fingerprint()]

    def divided(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Hold validation images out of train, class by class."""
        rest, held_out = holdout(self.train.labels, fraction, seed)
        return self.train.subset(rest), self.train.subset(held_out)

    def in_words(self) -> str:
        """Say which images these are."""
        return f"{printable(self.train.name)}: {len(self.train):,} training and {len(self.test):,} test images"


def load_images(config: StudyConfig, data_dir: Path | None) -> StudyImages:
    """Load both splits, take the part that is asked for, and decode it.

    Raises:
        DataError: a split is missing, cannot be read, has no labels, or more than 1 % of the test images are training
            images, too.
        UsageError: the size is too small.
    """
    train = load(config.data, "train", root=data_dir)
    test = load(config.data, "test", root=data_dir)
    check_same_classes(train, test)
    size = working_size(train, config.image_size or None)
    train, test = part(train, config.images), part(test, config.test_images)
    resized = size if train.image_size != (size, size) else None
    train, test = train.decoded(resized), test.decoded(resized)
    for dataset in (train, test):
        tell_skipped(dataset.skipped, dataset.split)
    shared = check_shared_images(train, test)
    if shared.count:
        console.print(str(shared), markup=False, soft_wrap=True)
    return StudyImages(train, test, size)


def part(dataset: Dataset, count: int) -> Dataset:
    """Take ``count`` images, every class in its share and always the same ones; all for 0 or where there are fewer.

    Without labels all images are of one class.
    """
    if not 0 < count < len(dataset):
        return dataset
    labels = np.zeros(len(dataset), dtype=np.int64) if dataset.labels is None else dataset.labels
    return dataset.subset(np.sort(nested(labels, 0)[:count]))


def nested(labels: Rows, seed: int) -> Rows:
    """Order all rows so that every beginning of the order holds each class as nearly in its share as it can.

    A smaller fraction's images are then among a larger one's: the curve over fractions is not blurred by luck.
    """
    random = np.random.default_rng([seed, len(labels)])
    place = np.empty(len(labels))
    for value in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == value))
        # The k-th of n images of a class stands at (k + u) / n of the way, u its own.
        place[rows] = (np.arange(len(rows)) + random.random(len(rows))) / len(rows)
    return np.argsort(place, kind="stable").astype(np.int64)


def fraction_of(dataset: Dataset, share: float, seed: int, *, from_the_end: bool = False) -> Dataset:
    """Take a share of the images; from the end of the order, they meet those from its beginning as late as they can.

    Raises:
        UsageError: the share is fewer images than there are classes.
    """
    assert dataset.labels is not None and dataset.classes is not None
    count = round(share * len(dataset))
    if count < len(dataset.classes):
        raise UsageError(
            f"{100 * share:g} % of {len(dataset)} images are {count}, there are {len(dataset.classes)} classes; "
            "take more images or a larger fraction"
        )
    order = nested(dataset.labels, seed)
    return dataset.subset(np.sort(order[-count:] if from_the_end else order[:count]))
