"""Dividing labelled sets, and checking that two of them speak of the same classes."""

import numpy as np
from numpy.typing import ArrayLike

from sslfast.data.dataset import Dataset, Rows, printable
from sslfast.errors import DataError, UsageError
from sslfast.options import check_seed


def holdout(labels: ArrayLike | None, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Divide a labelled set in two, class by class.

    About ``fraction`` of all images are held out, of every class as nearly as whole images allow; every class keeps at
    least one image in the rest. The same arguments give the same division.

    Args:
        labels: class of each image (N,).
        fraction: of the images to hold out, between 0 and 1.
        seed: chooses the images.

    Returns:
        Indices of the rest and of the held-out images, int64, each ascending.

    Raises:
        UsageError: the fraction is not between 0 and 1, or the seed is negative.
        DataError: there are no labels, or too few images to hold one out.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"the held-out fraction must lie between 0 and 1, not {fraction}")
    check_seed(seed)
    if labels is None:
        raise DataError("a set without labels cannot be divided by class; give one with labels")
    values, members = np.unique(np.asarray(labels, dtype=np.int64), return_inverse=True)
    if not len(values) or values[0] < 0:
        raise DataError("a held-out split needs a label for every image, and at least one image")
    counts = np.bincount(members)
    exact = counts * fraction
    take = np.minimum(np.floor(exact).astype(np.int64), counts - 1)
    # What rounding down lost goes to the classes that lost most, as far as they can give.
    wanted = max(1, int(np.floor(counts.sum() * fraction + 0.5))) - int(take.sum())
    for index in np.argsort(take - exact, kind="stable"):
        if wanted > 0 and take[index] < counts[index] - 1:
            take[index] += 1
            wanted -= 1
    if not take.sum():
        raise DataError(f"no image can be held out: each of the {len(values)} classes has a single image; add images")
    held = np.zeros(len(members), dtype=bool)
    for index, value in enumerate(values):
        rows = np.flatnonzero(members == index)
        random = np.random.default_rng([seed, int(value)])
        held[random.permutation(rows)[: take[index]]] = True
    return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)


def check_same_classes(train: Dataset, test: Dataset) -> None:
    """Check that two sets have the same classes in the same order, so that their labels mean the same.

    Raises:
        DataError: they do not; it names the classes that only one of them has.
    """
    if train.classes is None or test.classes is None:
        without = train if train.classes is None else test
        raise DataError(f"{printable(without.name)} {without.split} has no labels; give a set with labels")
    if train.classes == test.classes:
        return
    differences = []
    for one, other in ((train, test), (test, train)):
        own = [name for name in one.classes or () if name not in (other.classes or ())]
        if own:
            shown = ", ".join(printable(name) for name in own[:5]) + (", ..." if len(own) > 5 else "")
            differences.append(f"only {one.split} has {shown}")
    raise DataError(
        f"the classes of {printable(train.name)} {train.split} and {printable(test.name)} {test.split} do not match: "
        f"{'; '.join(differences) or 'they are the same in another order'}; give both splits the same class folders"
    )
