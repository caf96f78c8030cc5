"""What makes a number wrong without anybody noticing, refused before it is printed."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sslfast.data import Dataset, printable
from sslfast.data.memory import watched
from sslfast.errors import DataError, UsageError
from sslfast.features import FeatureStore
from sslfast.models import Backbone, Preprocess

HASHED_BYTES = 32 << 20
"""Images are read in parts of about this size while they are compared."""

PAIRS_NAMED = 5
"""So many pairs of equal images are named."""

MOST_SHARED = 0.01
"""A larger share of the test images in the training set is refused, a smaller one told."""


@dataclass(frozen=True)
class SharedImages:
    """Test images that are training images as well, pixel by pixel.

    Args:
        count: of such test images.
        tested: number of test images.
        pairs: ids of the first of them: test image, training image.
    """

    count: int
    tested: int
    pairs: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        """Say it in one line."""
        named = "; ".join(f"{printable(test)} is {printable(train)}" for test, train in self.pairs)
        more = ", ..." if self.count > len(self.pairs) else ""
        return f"{self.count:,} of {self.tested:,} test images are training images as well ({named}{more})"


def shared_images(train: Dataset, test: Dataset) -> SharedImages:
    """Find test images whose decoded pixels are those of a training image.

    Pixels are hashed (BLAKE2b, 128 bits) a part at a time, 16 bytes an image are kept. An image that was enlarged,
    cropped or compressed anew is not found, and one that cannot be read is passed over.
    """
    known, rows = _hashes(train)
    asked, tested = _hashes(test)
    order = np.argsort(known, kind="stable")
    known, rows = known[order], rows[order]
    place = np.searchsorted(known, asked)
    found = (
        np.flatnonzero((place < len(known)) & (known[np.minimum(place, len(known) - 1)] == asked))
        if len(known)
        else place[:0]
    )
    first = found[:PAIRS_NAMED]
    pairs = tuple((test.ids[int(tested[row])], train.ids[int(rows[place[row]])]) for row in first)
    return SharedImages(len(found), len(asked), pairs)


def check_shared_images(train: Dataset, test: Dataset, most: float = MOST_SHARED) -> SharedImages:
    """Refuse a test set of which more than the share ``most`` lies in the training set as well.

    Raises:
        DataError: it does; the message has the count and names the first pairs.
    """
    shared = shared_images(train, test)
    if shared.count > most * max(shared.tested, 1):
        raise DataError(f"{shared}; such a test measures memory: divide the images anew")
    return shared


def check_selection(selection: object, test: object = None) -> None:
    """Refuse to choose anything (an epoch, a learning rate, k) by rows that are tested on.

    Args:
        selection: what is chosen by: a feature store, a data set, or features with labels.
        test: what is tested on, likewise, where it is known.

    Raises:
        DataError: ``selection`` is the split called test, or holds the images of ``test``.
    """
    split, images = _origin(selection)
    if split == "test":
        raise DataError(
            "the split test was given to choose by; hold a part of the training split out, and test once, at the end"
        )
    same = images is not None and images == _origin(test)[1]
    if same or same_rows(selection, test):
        raise DataError(
            "what is chosen by are the test rows themselves; hold a part of the training split out to choose by"
        )


def same_rows(one: object, other: object) -> bool:
    """Say whether two pairs of features and labels in memory hold the same features, in their first view."""
    if not isinstance(one, tuple) or not isinstance(other, tuple):
        return False
    given = (torch.as_tensor(features) for features, _ in (one, other))
    first, second = (features[0] if features.dim() == 3 else features for features in given)
    return first is second or (first.shape == second.shape and bool((first == second.to(first.device)).all()))


def check_evaluation_mode(model: nn.Module) -> None:
    """Refuse a network whose batch normalisation or dropout is as in training.

    Raises:
        UsageError: a module is in training mode; the message names it.
    """
    for name, module in model.named_modules():
        acts = isinstance(module, (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd))
        if module.training and acts:
            raise UsageError(
                f"{name or 'the network'} ({type(module).__name__}) is in training mode, so that a test image's result "
                "depends on the others, or on chance; call eval() before testing"
            )


def check_no_random_layer(model: nn.Module, loaded: Iterable[nn.Module], trained: Iterable[nn.Parameter] = ()) -> None:
    """Refuse a network with weights that were neither loaded nor trained: a random layer between backbone and head.

    Args:
        model: the whole network.
        loaded: parts of it whose weights come from a checkpoint: the backbone. What a checkpoint did not have
            (`Backbone.missing`) is refused as well.
        trained: parameters that an optimiser has.

    Raises:
        UsageError: there is such a weight; the message names it.
    """
    parts = list(loaded)
    known = {id(parameter) for part in parts for parameter in part.parameters()} | {id(one) for one in trained}
    for part in parts:
        if isinstance(part, Backbone) and part.missing and part.source != "random initialisation":
            raise UsageError(
                f"{len(part.missing)} weights of the {part.architecture} were not in {part.source}, "
                f"{part.missing[0]} for one: they are random; load a checkpoint that has them"
            )
    random = [name for name, parameter in model.named_parameters() if id(parameter) not in known]
    if random:
        raise UsageError(
            f"{random[0]}{f' and {len(random) - 1} more weights' if len(random) > 1 else ''} were neither loaded nor "
            "are they trained: a random layer stands before the head; train it, load it, or take it out"
        )


def check_normalisation(backbone: Backbone, expected: Preprocess | None = None) -> None:
    """Refuse a preprocessing that is not the one that a known checkpoint was trained with.

    Args:
        backbone: with the preprocessing that is about to be used.
        expected: what it should be; by default what is known of the backbone's checkpoint (`Backbone.trained`), and
            nothing is refused where nothing is known. The size of the images may differ.

    Raises:
        UsageError: mean or deviation differ.
    """
    known = backbone.trained if expected is None else expected
    if known is None:
        return
    for name in ("mean", "std"):
        found, wanted = getattr(backbone.preprocess, name), getattr(known, name)
        if not np.allclose(found, wanted, atol=2e-3):
            raise UsageError(
                f"images are normalised with {name} {_numbers(found)}, but {backbone.source} was trained with "
                f"{_numbers(wanted)}; leave the preprocessing to the checkpoint"
            )


def check_origin(test: FeatureStore, train: FeatureStore) -> None:
    """Refuse test features of another backbone than the training features', and the training rows themselves.

    Raises:
        DataError: they are.
    """
    one, other = train.manifest, test.manifest
    if one["preprocess"] != other["preprocess"]:
        raise DataError("the test features were extracted with another preprocess than the training features")
    if one["backbone"]["fingerprint"] != other["backbone"]["fingerprint"]:
        raise DataError("the test features were extracted with another backbone than the training features")
    same_images = one["dataset"]["fingerprint"] == other["dataset"]["fingerprint"]
    if same_images or [shard["crc32"] for shard in one["shards"]] == [shard["crc32"] for shard in other["shards"]]:
        raise DataError(
            f"{test.path} holds the same {'images' if same_images else 'features'} as {train.path} "
            f"({other['dataset']['name']}, {other['dataset']['split']}): rows that were chosen on are no test"
        )


def check_classes(test: FeatureStore, train: FeatureStore) -> None:
    """Refuse test labels that stand for other classes than in training.

    Raises:
        DataError: they do.
    """
    one, other = train.classes, test.classes
    if one == other:
        return
    if one is None or other is None:
        unnamed = "training" if one is None else "test"
        raise DataError(
            f"the {unnamed} features have no names of classes, the others have: labels may not mean the same"
        )
    if sorted(one) == sorted(other):
        raise DataError("the test features' classes are those of the training features in another order")
    for what, names in (
        ("the test features lack class", [name for name in one if name not in other]),
        ("the training features lack class", [name for name in other if name not in one]),
    ):
        if names:
            raise DataError(
                f"{what} {names[0]!r}: {len(other)} classes against {len(one)}, so that labels do not mean the same; "
                "extract both with the same classes"
            )
    raise DataError("the test features' classes are not those of the training features")


def _origin(given: object) -> tuple[str | None, str | None]:
    """Give split and fingerprint of the images, where they are known."""
    if isinstance(given, FeatureStore):
        dataset = given.manifest["dataset"]
        return str(dataset["split"]), str(dataset["fingerprint"])
    if isinstance(given, Dataset):
        return given.split, given.fingerprint()
    return None, None


def _hashes(dataset: Dataset) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """Give a hash of every image that can be read, and its number; files are decoded on all cores."""
    size = dataset.image_size
    step = 64 if size is None else max(1, HASHED_BYTES // (3 * size[0] * size[1]))

    def part(start: int) -> list[tuple[int, bytes]]:
        rows = range(start, min(start + step, len(dataset)))
        if size is not None:
            with suppress(DataError):  # one of them cannot be read: find out which
                return list(zip(rows, map(_hash, dataset.images(np.arange(rows.start, rows.stop))), strict=True))
        found = []
        for row in rows:
            with suppress(DataError):
                found.append((row, _hash(dataset[row][0])))
        return found

    hashes, numbers = [], []
    with (
        watched(f"comparing images ({dataset.split})", len(dataset)) as progress,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        for found in pool.map(part, range(0, len(dataset), step)):
            numbers += [row for row, _ in found]
            hashes += [one for _, one in found]
            progress.advance(step)
    # Hashes of one length: that NumPy drops zero bytes at their ends makes no two of them equal.
    return np.array(hashes, dtype="S16"), np.array(numbers, dtype=np.int64)


def _hash(image: NDArray[np.uint8]) -> bytes:
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"
