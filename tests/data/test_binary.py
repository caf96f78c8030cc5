"""The official layouts of the named sets, written small and read back."""

import gzip
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sslfast.data import Dataset, load
from sslfast.errors import DataError, UsageError

RANDOM = np.random.default_rng(5)
Draw = Callable[..., np.ndarray]

pytestmark = pytest.mark.usefixtures("own_places")


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, packed: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    folder.mkdir(parents=True)
    images = RANDOM.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = (np.arange(30) % 10).astype(np.uint8)
    for prefix in ("train", "t10k"):
        for stem, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            content = idx(array)
            (folder / (stem + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return images, labels


def get(name: str, split: str, root: Path) -> Dataset:
    return load(name, split, root, download=False)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("where", ["mnist", "MNIST/raw"])
def test_mnist_is_read_from_idx_files(tmp_path: Path, packed: bool, where: str) -> None:
    images, labels = write_mnist(tmp_path / where, packed)
    dataset = get("mnist", "test", tmp_path)
    assert dataset.labels is not None and np.array_equal(dataset.labels, labels)
    assert np.array_equal(dataset.images(np.arange(30))[..., 1], images)
    assert dataset.classes == tuple("0123456789") and dataset.ids[17] == "test/000017"


def test_fashion_mnist_is_not_taken_from_mnists_folder(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", True)
    assert len(get("mnist", "train", tmp_path / "mnist")) == 30
    with pytest.raises(DataError, match="fashion-mnist train is not in"):
        get("fashion-mnist", "train", tmp_path / "mnist")


def _truncate(content: bytes) -> bytes:
    return content[:-7]


@pytest.mark.parametrize(
    ("file", "damage", "packed"),
    [
        ("train-images-idx3-ubyte", _truncate, False),
        ("train-images-idx3-ubyte", _truncate, True),
        ("train-images-idx3-ubyte", lambda content: content + b"x", False),
        ("train-images-idx3-ubyte", lambda content: b"", False),
        ("train-images-idx3-ubyte", lambda content: b"", True),
        ("train-images-idx3-ubyte", lambda content: content[:100] + b"\xff" * 9 + content[109:], True),
        ("train-labels-idx1-ubyte", lambda content: b"\0\0\x0d\1" + content[4:], False),
        ("train-images-idx3-ubyte", lambda content: content[:4] + b"\xff" * 12 + content[16:], False),
        ("train-labels-idx1-ubyte", lambda content: idx(np.zeros(29, np.uint8)), False),
        ("train-labels-idx1-ubyte", lambda content: idx(np.full(30, 10, np.uint8)), False),
        ("train-images-idx3-ubyte", lambda content: idx(np.zeros((0, 28, 28), np.uint8)), False),
    ],
)
def test_damaged_idx_files_are_refused_by_name(
    tmp_path: Path, file: str, damage: Callable[[bytes], bytes], packed: bool
) -> None:
    write_mnist(tmp_path / "mnist", packed)
    path = tmp_path / "mnist" / (file + ".gz" * packed)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"/mnist") as caught:
        get("mnist", "train", tmp_path)
    assert "\n" not in str(caught.value)


def cifar(folder: Path, files: list[str], label_bytes: int, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    images = RANDOM.integers(0, 256, (len(files) * count, 32, 32, 3), dtype=np.uint8)
    labels = RANDOM.integers(0, 10, (len(images), label_bytes), dtype=np.uint8)
    for i, file in enumerate(files):
        rows = slice(i * count, (i + 1) * count)
        planes = images[rows].transpose(0, 3, 1, 2).reshape(count, -1)
        (folder / file).write_bytes(np.hstack([labels[rows], planes]).tobytes())
    return images, labels


def test_cifar10_is_read_from_its_binary_layout(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    images, labels = cifar(folder, [f"data_batch_{i}.bin" for i in range(1, 6)], 1)
    train = get("cifar10", "train", tmp_path)
    assert np.array_equal(train.images(np.arange(100)), images)
    assert train.labels is not None and np.array_equal(train.labels, labels[:, 0])
    with pytest.raises(DataError, match=r"lacks test_batch\.bin"):
        get("cifar10", "test", tmp_path)
    assert len(get("cifar10", "train", folder)) == 100


def test_cifar100_has_fine_and_coarse_labels(tmp_path: Path) -> None:
    images, labels = cifar(tmp_path / "cifar-100-binary", ["train.bin"], 2)
    cifar(tmp_path / "cifar-100-binary", ["test.bin"], 2)
    fine, coarse = get("cifar100", "train", tmp_path), get("cifar100", "train-coarse", tmp_path)
    assert fine.labels is not None and np.array_equal(fine.labels, labels[:, 1])
    assert coarse.labels is not None and np.array_equal(coarse.labels, labels[:, 0])
    assert np.array_equal(fine.images(np.arange(20)), images)
    assert fine.classes is not None and len(fine.classes) == len(set(fine.classes)) == 100
    assert fine.classes == tuple(sorted(fine.classes))
    assert coarse.classes is not None and len(set(coarse.classes)) == 20
    assert len(get("cifar100", "test-coarse", tmp_path)) == 20


@pytest.mark.parametrize("damage", [_truncate, lambda content: b"", lambda content: b"\xc8" + content[1:]])
def test_damaged_cifar_files_are_refused_by_name(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cifar(tmp_path / "cifar-10-batches-bin", ["test_batch.bin"], 1)
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"test_batch\.bin (is damaged|holds label 200)"):
        get("cifar10", "test", tmp_path)


def test_the_pickled_cifar_is_never_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(DataError, match="cifar10 test is not in"):
        get("cifar10", "test", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_stl10_is_read_column_by_column(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = RANDOM.integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)
    for split in ("train", "unlabeled"):
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
    labels = np.array([1, 10, 3, 4, 5, 6], dtype=np.uint8)
    (folder / "train_y.bin").write_bytes(labels.tobytes())
    train, unlabelled = get("stl10", "train", tmp_path), get("stl10", "unlabeled", tmp_path)
    assert train.labels is not None and np.array_equal(train.labels, labels - 1)
    assert unlabelled.labels is None and unlabelled.classes is None and len(unlabelled) == 6
    for dataset in (train, unlabelled):
        assert np.array_equal(dataset.images([4, 2]), images[[4, 2]])
        assert np.array_equal(dataset[5][0], images[5])
    assert len(unlabelled.subset([3]).decoded(8)) == 1
    (folder / "train_y.bin").write_bytes(bytes(6))
    with pytest.raises(DataError, match="do not belong together"):
        get("stl10", "train", tmp_path)
    (folder / "train_y.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"train_y\.bin is empty"):
        get("stl10", "train", tmp_path)
    (folder / "train_X.bin").write_bytes(bytes(5))
    with pytest.raises(DataError, match=r"train_X\.bin is damaged: 5 bytes"):
        get("stl10", "train", tmp_path)


def test_stl10_is_what_torchvision_reads(tmp_path: Path) -> None:
    from torchvision.datasets import STL10

    class Unchecked(STL10):  # type: ignore[misc]
        def _check_integrity(self) -> bool:
            return True

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "test_X.bin").write_bytes(RANDOM.integers(0, 256, 3 * 27648, dtype=np.uint8).tobytes())
    (folder / "test_y.bin").write_bytes(bytes((1, 2, 3)))
    theirs, ours = Unchecked(str(tmp_path), "test"), get("stl10", "test", tmp_path)
    for i in range(3):
        assert np.array_equal(np.asarray(theirs[i][0]), ours[i][0]) and theirs[i][1] == ours[i][1]


def test_oxford_pets_are_labelled_by_breed(tmp_path: Path, draw: Draw) -> None:
    from torchvision.datasets import OxfordIIITPet

    top = tmp_path / "oxford-iiit-pet"
    (top / "images").mkdir(parents=True)
    (top / "annotations").mkdir()
    for stem in ("Abyssinian_1", "Abyssinian_2", "yorkshire_terrier_3"):
        Image.fromarray(draw(20, 30)).save(top / "images" / f"{stem}.jpg")
    Image.fromarray(draw(9, 9)).save(top / "images" / "Abyssinian_2.jpg")
    lines = "Abyssinian_1 1 1 1\nyorkshire_terrier_3 2 2 1\nAbyssinian_2 1 1 1\n"
    (top / "annotations" / "trainval.txt").write_text(lines)
    ours, theirs = get("oxford-pets", "train", tmp_path), OxfordIIITPet(str(tmp_path), "trainval")
    assert ours.classes == tuple(theirs.classes) == ("Abyssinian", "Yorkshire Terrier")
    assert ours.labels is not None and ours.labels.tolist() == [theirs[i][1] for i in range(3)]
    assert all(np.array_equal(ours[i][0], np.asarray(theirs[i][0])) for i in range(3))
    assert ours.image_size is None and get("oxford-pets", "trainval", tmp_path).split == "trainval"
    (top / "annotations" / "trainval.txt").write_text("# a list\n" + lines + "Abyssinian_9 1 1 1\n")
    assert [one.reason for one in get("oxford-pets", "train", tmp_path).skipped] == ["No such file or directory"]
    (top / "annotations" / "trainval.txt").write_text(lines + "what is this\n")
    with pytest.raises(DataError, match=r"trainval\.txt, line 4"):
        get("oxford-pets", "train", tmp_path)


def write_tiny_imagenet(top: Path, draw: Draw) -> None:
    codes = ["n02", "n01", "n03"]
    for code in codes:
        folder = top / "train" / code / "images"
        folder.mkdir(parents=True)
        for i in range(2):
            Image.fromarray(draw(64, 64)).save(folder / f"{code}_{i}.JPEG")
        (top / "train" / code / f"{code}_boxes.txt").write_text("0\n")
    for folder in (top / "val" / "images", top / "test" / "images"):
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(draw(64, 64)).save(folder / f"{folder.parent.name}_{i}.JPEG")
    (top / "wnids.txt").write_text("\n".join(codes))
    (top / "words.txt").write_text("n01\tcrane\nn02\tgoldfish, Carassius auratus\nn03\tcrane\nn04\tother\n")
    annotations = [f"val_{i}.JPEG\t{code}\t0\t0\t9\t9" for i, code in enumerate(["n03", "n01"])]
    (top / "val" / "val_annotations.txt").write_text("\n".join(annotations))


@pytest.mark.parametrize("packed", [False, True])
def test_tiny_imagenet_is_read_from_its_folder_and_from_its_zip(tmp_path: Path, draw: Draw, packed: bool) -> None:
    top = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(top, draw)
    if packed:
        with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as out:
            for path in sorted(top.rglob("*")):
                out.write(path, f"tiny-imagenet-200/{path.relative_to(top)}")
        top.rename(tmp_path / "elsewhere")
    train, test = get("tiny-imagenet", "train", tmp_path), get("tiny-imagenet", "test", tmp_path)
    assert train.classes == test.classes == ("crane (n01)", "goldfish", "crane (n03)")
    assert train.labels is not None and train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels is not None and test.labels.tolist() == [2, 0]
    assert [one.reason for one in test.skipped] == ["of no class that wnids.txt lists"]
    assert test.split == "test" and train.image_size == (64, 64)
    assert len(train.decoded()) == 6
    unlabelled = get("tiny-imagenet", "unlabeled", tmp_path)
    assert len(unlabelled) == 3 and unlabelled.labels is None
    with pytest.raises(UsageError, match="train, val, unlabeled, test"):
        get("tiny-imagenet", "valid", tmp_path)
