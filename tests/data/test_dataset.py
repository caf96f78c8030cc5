import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sslfast.data import Dataset, Skipped, check_same_classes, holdout, load, names, printable
from sslfast.data import memory as memory_module
from sslfast.data.image import resized
from sslfast.data.memory import ArrayPixels
from sslfast.errors import DataError, UsageError
from sslfast.models import Preprocess


def in_memory(array: NDArray[np.uint8], **more: object) -> Dataset:
    ids = [f"{i}" for i in range(len(array))]
    return Dataset("made", "train", ArrayPixels(array), ids=ids, **more)  # type: ignore[arg-type]


@pytest.fixture
def colour() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (20, 9, 7, 3), dtype=np.uint8)


def test_a_gather_gives_the_images_in_the_order_asked_for(colour: NDArray[np.uint8]) -> None:
    dataset = in_memory(colour, labels=np.arange(20) % 4, classes="abcd")
    picked = dataset.images([5, 0, 5, -1])
    assert picked.dtype == np.uint8 and picked.flags.c_contiguous and picked.flags.writeable
    assert np.array_equal(picked, colour[[5, 0, 5, 19]])
    assert dataset.image_size == (9, 7)
    image, label = dataset[6]
    assert np.array_equal(image, colour[6]) and label == 2
    assert len(list(dataset)) == 20
    assert dataset.images([]).shape == (0, 9, 7, 3)
    assert dataset.images(np.arange(20) < 2).shape[0] == 2
    with pytest.raises(IndexError):
        dataset[20]


def test_grey_is_stored_once_and_seen_as_three_equal_channels() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 4, 6), dtype=np.uint8)
    dataset = in_memory(grey)
    images = dataset.images([3, 1])
    assert images.shape == (2, 4, 6, 3)
    for channel in range(3):
        assert np.array_equal(images[..., channel], grey[[3, 1]])
    assert dataset[2][1] == -1


def test_strided_arrays_are_gathered_without_copying_them_whole(colour: NDArray[np.uint8]) -> None:
    turned = colour.transpose(0, 2, 1, 3)
    assert np.array_equal(in_memory(turned).images([4, 2]), turned[[4, 2]])


def test_a_subset_of_a_subset_shares_the_pixels(colour: NDArray[np.uint8]) -> None:
    dataset = in_memory(colour, labels=np.arange(20), classes=[str(i) for i in range(20)])
    inner = dataset.subset([9, 3, 7]).subset([2, 0])
    assert inner.ids == ("7", "9")
    assert inner.labels is not None and inner.labels.tolist() == [7, 9]
    assert np.array_equal(inner.images([0, 1]), colour[[7, 9]])
    assert len(dataset.subset(np.zeros(20, dtype=bool))) == 0


def test_fingerprints_tell_pixels_labels_classes_and_order(colour: NDArray[np.uint8]) -> None:
    labels = np.arange(20) % 2
    base = in_memory(colour, labels=labels, classes=("a", "b"))
    assert base.fingerprint() == in_memory(colour.copy(), labels=labels, classes=("a", "b")).fingerprint()
    assert base.fingerprint() == base.subset(np.arange(20)).fingerprint()
    changed = colour.copy()
    changed[3, 0, 0, 0] ^= 1
    others = [
        in_memory(changed, labels=labels, classes=("a", "b")),
        in_memory(colour, labels=1 - labels, classes=("a", "b")),
        in_memory(colour, labels=labels, classes=("a", "c")),
        in_memory(colour),
        base.subset(np.arange(20)[::-1]),
        base.subset(np.arange(19)),
    ]
    assert len({one.fingerprint() for one in [base, *others]}) == len(others) + 1


@pytest.mark.parametrize("size", [5, 8, 9, 32])
@pytest.mark.parametrize("grey", [False, True])
def test_decoded_resizes_as_preprocess_does(colour: NDArray[np.uint8], size: int, grey: bool) -> None:
    dataset = in_memory(np.ascontiguousarray(colour[..., 0]) if grey else colour)
    smaller = dataset.decoded(size)
    wanted = Preprocess(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(torch.from_numpy(dataset.images(np.arange(20))))
    rounded = (wanted * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    # Division by 255 and back may move a value that lies on a half.
    difference = np.abs(smaller.images(np.arange(20)).astype(int) - rounded.astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(dataset.images(np.arange(20))).permute(0, 3, 1, 2).float(),
        size=(size, size),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    assert np.array_equal(smaller.images(np.arange(20)), exact.round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def test_decoded_of_what_needs_nothing_is_the_same_set(colour: NDArray[np.uint8]) -> None:
    dataset = in_memory(np.ascontiguousarray(colour[:, :7]))
    assert dataset.decoded() is dataset
    assert dataset.decoded(7) is dataset


def test_one_image_and_a_batch_are_resized_alike(colour: NDArray[np.uint8]) -> None:
    for i in range(len(colour)):
        assert np.array_equal(resized(colour[i : i + 1], 6)[0], resized(colour, 6)[i])


def test_a_set_beyond_the_memory_limit_lies_in_an_unnamed_file(
    colour: NDArray[np.uint8], own_places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_ram = in_memory(colour).decoded(16)
    monkeypatch.setattr(memory_module, "memory_limit", lambda: 100)
    mapped = in_memory(colour).decoded(16)
    assert isinstance(mapped._pixels.array, np.memmap)  # type: ignore[attr-defined]
    assert np.array_equal(mapped.images(np.arange(20)), in_ram.images(np.arange(20)))
    assert mapped.fingerprint() == in_ram.fingerprint()
    assert list(own_places.iterdir()) == []


def test_no_room_for_a_mapped_set_is_said_in_one_line(
    colour: NDArray[np.uint8], own_places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory_module, "memory_limit", lambda: 100)
    monkeypatch.setattr(memory_module.os, "posix_fallocate", full)
    with pytest.raises(DataError, match="No space left on device; set XDG_CACHE_HOME"):
        in_memory(colour).decoded(16)
    assert list(own_places.iterdir()) == []


def test_a_dataset_travels_to_another_process(colour: NDArray[np.uint8]) -> None:
    dataset = in_memory(colour, labels=np.zeros(20), classes=("one",))
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.fingerprint() == dataset.fingerprint()


def test_parts_of_different_lengths_are_refused(colour: NDArray[np.uint8]) -> None:
    with pytest.raises(DataError, match="do not belong together"):
        in_memory(colour, labels=[1, 2])


def test_digits_are_always_there_and_always_divided_alike() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.labels is not None and test.labels is not None
    assert np.bincount(train.labels).min() >= 139 and np.bincount(test.labels).min() >= 35
    assert train.images(np.arange(1438)).max() == 255 and train.image_size == (8, 8)
    assert load("digits", "train").fingerprint() == train.fingerprint()
    check_same_classes(train, test)


@pytest.mark.parametrize("name", ["nothing", "", "fashion_mnist", "imagefolder", "folder:", "csv:"])
def test_unknown_names_are_usage_errors(name: str) -> None:
    with pytest.raises(UsageError):
        load(name, "train")


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="it has: train, test, train-coarse, test-coarse"):
        load("cifar100", "validation")
    assert {"fashion-mnist", "mnist", "cifar10", "cifar100", "stl10", "oxford-pets", "tiny-imagenet", "digits"} <= set(
        names()
    )


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=8).filter(lambda counts: max(counts) > 1),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_holdout_divides_every_class_and_empties_none(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    rest, held = holdout(labels, fraction, seed)
    assert sorted([*rest, *held]) == list(range(len(labels)))
    assert len(held) >= 1
    assert (np.bincount(labels[rest], minlength=len(counts)) >= 1).all()
    exact = np.array(counts) * fraction
    taken = np.bincount(labels[held], minlength=len(counts))
    assert (taken >= np.minimum(np.floor(exact), np.array(counts) - 1)).all()
    assert len(held) <= max(1, round(len(labels) * fraction + 0.5))
    again = holdout(labels, fraction, seed)
    assert np.array_equal(rest, again[0]) and np.array_equal(held, again[1])


def test_holdout_depends_on_the_seed_and_refuses_what_it_cannot_do() -> None:
    labels = np.repeat(np.arange(3), 50)
    assert not np.array_equal(holdout(labels, 0.2, 0)[1], holdout(labels, 0.2, 1)[1])
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            holdout(labels, fraction, 0)
    with pytest.raises(DataError, match="a single image"):
        holdout([0, 1, 2], 0.5, 0)
    with pytest.raises(DataError, match="without labels"):
        holdout(None, 0.5, 0)
    with pytest.raises(DataError, match="needs a label for every image"):
        holdout([0, -1], 0.5, 0)


def test_classes_that_do_not_match_are_named(colour: NDArray[np.uint8]) -> None:
    zeros = np.zeros(20)
    one = in_memory(colour, labels=zeros, classes=("cat", "dog"))
    check_same_classes(one, one)
    with pytest.raises(DataError, match="only train has dog; only train has horse"):
        check_same_classes(one, in_memory(colour, labels=zeros, classes=("cat", "horse")))
    with pytest.raises(DataError, match="another order"):
        check_same_classes(one, in_memory(colour, labels=zeros, classes=("dog", "cat")))
    with pytest.raises(DataError, match="has no labels"):
        check_same_classes(one, in_memory(colour))


def test_names_that_are_no_utf8_can_be_printed() -> None:
    assert printable("a\udcffb\u00e9") == "a\\xffb\u00e9"
    assert printable("a\nb\ud800 c") == "a\\nb\\ud800 c"
    assert str(Skipped("\udcfe.png", "empty file")) == "\\xfe.png: empty file"
