"""The 1,797 handwritten digits of 8 x 8 pixels inside scikit-learn: always there, offline."""

import numpy as np

from sslfast.data.dataset import Dataset
from sslfast.data.memory import ArrayPixels
from sslfast.data.naming import DIGITS, image_ids
from sslfast.data.splitting import holdout

TEST_FRACTION = 0.2


def read(split: str) -> Dataset:
    """Read "train" (80 %) or "test" (20 % of every class); the division is always the same."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    rest, held_out = holdout(labels, TEST_FRACTION, seed=0)
    rows = rest if split == "train" else held_out
    # Grey levels are 0..16.
    pixels = np.rint(np.asarray(bunch.images)[rows] * (255 / 16)).astype(np.uint8)
    return Dataset(
        "digits", split, ArrayPixels(pixels), ids=image_ids(split, len(rows)), labels=labels[rows], classes=DIGITS
    )
