"""Every data set that has a name: where its files lie, how they are read and where they can be had."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sslfast.data import cifar, digits, idx, pets, stl10, tiny_imagenet
from sslfast.data.dataset import Dataset
from sslfast.data.naming import DIGITS, FASHION


@dataclass(frozen=True)
class Download:
    """A file on the network.

    Args:
        urls: where it can be had, tried in this order.
        checksum: "md5:..." or "sha256:..."; None where nobody published one: the SHA-256 of the first download is then
            recorded beside the file, and checked afterwards.
        folder: below the data folder, where it is put; an archive is unpacked there.
        unpack: whether it is an archive (.tar.gz) to unpack.
        gives: what is below ``folder`` once it has been unpacked.
    """

    urls: tuple[str, ...]
    checksum: str | None
    folder: str
    unpack: bool = False
    gives: str = ""

    @property
    def result(self) -> str:
        """What is below the data folder once this has been fetched."""
        return str(Path(self.folder, self.gives if self.unpack else self.file))

    @property
    def file(self) -> str:
        """The file's name."""
        return self.urls[0].rsplit("/", 1)[1]


@dataclass(frozen=True)
class Named:
    """A data set with a name.

    Args:
        name: what a person types.
        what: one line about it.
        splits: that it has.
        folders: names that its folder goes by, the first being ours; empty: it needs no files.
        missing: (folder, split) -> names of the files that are not there.
        read: (folder, split) -> the data set.
        downloads: what to fetch when it is nowhere.
        package: Debian package that installs it.
        aliases: other names of splits.
    """

    name: str
    what: str
    splits: tuple[str, ...]
    folders: tuple[str, ...]
    missing: Callable[[Path, str], list[str]]
    read: Callable[[Path, str], Dataset]
    downloads: tuple[Download, ...] = ()
    package: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)


def _idx_downloads(folder: str, mirrors: tuple[str, ...], checksums: dict[str, str]) -> tuple[Download, ...]:
    return tuple(
        Download(tuple(mirror + file for mirror in mirrors), f"md5:{checksum}", folder)
        for file, checksum in checksums.items()
    )


# Checksums of MNIST, Fashion-MNIST, STL-10 and the Pets are torchvision's; those of CIFAR's binary archives stand on
# the page of the data set, and Tiny ImageNet's in the loaders of several independent projects.
_ALL = (
    Named(
        "fashion-mnist",
        "70,000 grey images of clothes, 28 x 28, 10 classes",
        ("train", "test"),
        ("fashion-mnist", "FashionMNIST/raw"),
        idx.missing,
        partial(idx.read, "fashion-mnist", FASHION),
        _idx_downloads(
            "fashion-mnist",
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            {
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
        ),
        package="dataset-fashion-mnist",
    ),
    Named(
        "mnist",
        "70,000 grey handwritten digits, 28 x 28, 10 classes",
        ("train", "test"),
        ("mnist", "MNIST/raw"),
        idx.missing,
        partial(idx.read, "mnist", DIGITS),
        _idx_downloads(
            "mnist",
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
            {
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
        ),
    ),
    Named(
        "cifar10",
        "60,000 colour images, 32 x 32, 10 classes",
        ("train", "test"),
        ("cifar-10-batches-bin",),
        partial(cifar.missing, "cifar10"),
        partial(cifar.read, "cifar10"),
        (
            Download(
                ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                "md5:c32a1d4ab5d03f1284b67883e8d87530",
                "",
                unpack=True,
                gives="cifar-10-batches-bin",
            ),
        ),
    ),
    Named(
        "cifar100",
        "60,000 colour images, 32 x 32, 100 classes (20 in the coarse splits)",
        ("train", "test", "train-coarse", "test-coarse"),
        ("cifar-100-binary",),
        partial(cifar.missing, "cifar100"),
        partial(cifar.read, "cifar100"),
        (
            Download(
                ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
                "md5:03b5dce01913d631647c71ecec9e9cb8",
                "",
                unpack=True,
                gives="cifar-100-binary",
            ),
        ),
    ),
    Named(
        "stl10",
        "113,000 colour images, 96 x 96: 13,000 of 10 classes, 100,000 without labels",
        ("train", "test", "unlabeled"),
        ("stl10_binary",),
        stl10.missing,
        stl10.read,
        (
            Download(
                ("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
                "md5:91f7769df0f17e558f3565bffb0c7dfb",
                "",
                unpack=True,
                gives="stl10_binary",
            ),
        ),
    ),
    Named(
        "oxford-pets",
        "7,349 photographs of all sizes, 37 breeds of cats and dogs",
        ("train", "test"),
        ("oxford-iiit-pet",),
        pets.missing,
        pets.read,
        (
            Download(
                ("https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",),
                "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
                "oxford-iiit-pet",
                unpack=True,
                gives="images",
            ),
            Download(
                ("https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",),
                "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
                "oxford-iiit-pet",
                unpack=True,
                gives="annotations",
            ),
        ),
        aliases={"trainval": "train"},
    ),
    Named(
        "tiny-imagenet",
        "120,000 colour images, 64 x 64, 200 classes; test is the official validation split, which has labels",
        ("train", "val", "unlabeled"),
        ("tiny-imagenet-200", "tiny-imagenet-200.zip"),
        tiny_imagenet.missing,
        tiny_imagenet.read,
        (Download(("http://cs231n.stanford.edu/tiny-imagenet-200.zip",), "md5:90528d7ca1a48142e341f4ef8d21d0de", ""),),
        aliases={"test": "val"},
    ),
    Named(
        "digits",
        "1,797 grey handwritten digits, 8 x 8, 10 classes, inside scikit-learn",
        ("train", "test"),
        (),
        lambda folder, split: [],
        lambda folder, split: digits.read(split),
    ),
)

NAMED = {entry.name: entry for entry in _ALL}
"""The registry."""

PREFIXES = {
    "imagefolder:": "PATH of a folder, or zip, with train/ and val/ or test/ of one folder per class",
    "folder:": "PATH of any tree of images, or zip, without labels",
    "csv:": "PATH of a table of image paths and labels",
}
"""What a person's own images are called by."""


def names() -> tuple[str, ...]:
    """List what `load` knows: the names, then the forms that take a path."""
    return (*NAMED, *(f"{prefix}PATH" for prefix in PREFIXES))
