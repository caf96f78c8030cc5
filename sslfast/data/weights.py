"""Published weights by name: where they can be had, and how it is known that the right bytes came.

A checksum stands here only where the publisher gives one: torchvision's and PyTorch's hub name a file by the beginning
of its SHA-256, MoCo's page gives the beginning of the MD5. Of the others the SHA-256 is recorded beside the first
download, and later ones must meet it.
"""

from dataclasses import dataclass
from pathlib import Path

from sslfast.data.dataset import printable
from sslfast.data.download import check_recorded, fetch, locked, verify
from sslfast.data.places import download_folder, searched
from sslfast.errors import DataError, UsageError

FOLDER = "weights"
"""Below a data folder; each name has a folder of its own in it, for many files are called resnet50.pth."""

TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class Published:
    """A file of weights that a project publishes.

    Args:
        name: what a person types.
        what: one line about it.
        url: where it can be had.
        checksum: "sha256:..." or "md5:...", perhaps only the beginning; None: nobody published one.
        architecture: what `sslfast.models.load_backbone` is to build.
        layout: its layout, where its names alone do not tell it, or the padding and max-pool of its first layers.
        licence: of the weights, where the publisher says it.
    """

    name: str
    what: str
    url: str
    checksum: str | None
    architecture: str
    layout: str | None = None
    licence: str = ""


_FAIR = "https://dl.fbaipublicfiles.com"
_BARLOW = f"{_FAIR}/barlowtwins/epochs1000_bs2048_lr0.2_lambd0.0051_proj_8192_8192_8192_scale0.024"
_SPIJKERVET = "https://github.com/Spijkervet/SimCLR/releases/download"
_BOLTS = "https://pl-bolts-weights.s3.us-east-2.amazonaws.com"
_NC = "CC-BY-NC 4.0"

# Addresses: the README of facebookresearch/{swav,barlowtwins,moco,dino}, CONFIG.md of facebookresearch/moco-v3, the
# README of Spijkervet/SimCLR, docs/source/models/self_supervised.rst of lightning-bolts, akamaster's on PyTorch's hub.
_ALL = (
    Published(
        "swav",
        "SwAV, ResNet-50, ImageNet, 800 epochs",
        f"{_FAIR}/deepcluster/swav_800ep_pretrain.pth.tar",
        None,
        "resnet50",
        licence=_NC,
    ),
    Published(
        "swav-w2",
        "SwAV, ResNet-50 twice as wide, ImageNet, 400 epochs",
        f"{_FAIR}/deepcluster/swav_RN50w2_400ep_pretrain.pth.tar",
        None,
        "resnet50x2",
        licence=_NC,
    ),
    Published(
        "deepcluster-v2",
        "DeepCluster-v2, ResNet-50, ImageNet, 800 epochs",
        f"{_FAIR}/deepcluster/deepclusterv2_800ep_pretrain.pth.tar",
        None,
        "resnet50",
        licence=_NC,
    ),
    Published(
        "barlow-twins",
        "Barlow Twins, ResNet-50, ImageNet, 1000 epochs, backbone",
        f"{_BARLOW}/resnet50.pth",
        None,
        "resnet50",
        "barlow-twins-backbone",
        _NC,
    ),
    Published(
        "barlow-twins-full",
        "the same with projector and optimiser",
        f"{_BARLOW}/checkpoint.pth",
        None,
        "resnet50",
        licence=_NC,
    ),
    Published(
        "moco-v1",
        "MoCo v1, ResNet-50, ImageNet, 200 epochs",
        f"{_FAIR}/moco/moco_checkpoints/moco_v1_200ep/moco_v1_200ep_pretrain.pth.tar",
        "md5:b251726a",
        "resnet50",
        licence=_NC,
    ),
    Published(
        "moco-v2",
        "MoCo v2, ResNet-50, ImageNet, 800 epochs",
        f"{_FAIR}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
        "md5:a04e12f8",
        "resnet50",
        licence=_NC,
    ),
    Published(
        "moco-v2-200",
        "MoCo v2, ResNet-50, ImageNet, 200 epochs",
        f"{_FAIR}/moco/moco_checkpoints/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar",
        "md5:59fd9945",
        "resnet50",
        licence=_NC,
    ),
    Published(
        "moco-v3",
        "MoCo v3, ResNet-50, ImageNet, 1000 epochs",
        f"{_FAIR}/moco-v3/r-50-1000ep/r-50-1000ep.pth.tar",
        None,
        "resnet50",
        licence=_NC,
    ),
    Published(
        "dino",
        "DINO, ResNet-50, ImageNet, backbone",
        f"{_FAIR}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
        None,
        "resnet50",
        "dino-backbone",
    ),
    Published(
        "dino-full",
        "DINO, ResNet-50, ImageNet, student and teacher",
        f"{_FAIR}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain_full_checkpoint.pth",
        None,
        "resnet50",
    ),
    Published(
        "bolts-simclr",
        "SimCLR of Lightning-Bolts, ResNet-50, ImageNet",
        f"{_BOLTS}/simclr/bolts_simclr_imagenet/simclr_imagenet.ckpt",
        None,
        "resnet50",
        "bolts-simclr",
        "Apache-2.0",
    ),
    Published(
        "bolts-simclr-cifar10",
        "SimCLR of Lightning-Bolts, ResNet-50, CIFAR-10",
        f"{_BOLTS}/simclr/simclr-cifar10-sgd/simclr-cifar10-sgd.ckpt",
        None,
        "resnet50-cifar",
        "bolts-simclr",
        "Apache-2.0",
    ),
    Published(
        "bolts-swav",
        "SwAV of Lightning-Bolts, ResNet-50, ImageNet",
        f"{_BOLTS}/swav/bolts_swav_imagenet/swav_imagenet.ckpt",
        None,
        "resnet50",
        "bolts-swav",
        "Apache-2.0",
    ),
    Published(
        "spijkervet-resnet50",
        "SimCLR of Spijkervet, ResNet-50, STL-10, 100 epochs",
        f"{_SPIJKERVET}/1.2/checkpoint_100.tar",
        None,
        "resnet50",
        licence="MIT",
    ),
    Published(
        "spijkervet-resnet18",
        "SimCLR of Spijkervet, ResNet-18, STL-10, 100 epochs",
        f"{_SPIJKERVET}/1.1/checkpoint_100.tar",
        None,
        "resnet18",
        licence="MIT",
    ),
    Published(
        "cifar10-resnet20",
        "ResNet-20 trained with CIFAR-10's labels, 91.73 %",
        "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/resnet20-12fca82f.th",
        "sha256:12fca82f",
        "resnet20",
        "plain",
        "BSD-2-Clause",
    ),
)

PUBLISHED = {entry.name: entry for entry in _ALL}
"""The table; `published` also knows ``torchvision:NAME`` and ``torchvision:NAME@WEIGHTS``."""


def published(name: str) -> Published:
    """Give an entry by name.

    Raises:
        UsageError: there is none.
    """
    if name.startswith(TORCHVISION):
        return _of_torchvision(name)
    if name not in PUBLISHED:
        raise UsageError(f"unknown weights {name!r}; there are: {', '.join(PUBLISHED)}, torchvision:NAME")
    return PUBLISHED[name]


def _of_torchvision(name: str) -> Published:
    import torchvision

    network, _, version = name.removeprefix(TORCHVISION).partition("@")
    if network not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"torchvision has no classifier {network!r}")
    versions = {weights.name: weights for weights in torchvision.models.get_model_weights(network)}
    if not versions or (version and version not in versions):
        raise UsageError(
            f"torchvision has no weights {version or 'at all'} of {network}; it has: {', '.join(versions)}"
        )
    chosen = versions[version] if version else next(iter(versions.values()))
    beginning = chosen.url.rpartition("-")[2].partition(".")[0]
    return Published(
        name, f"torchvision's {network}, {chosen.name}", chosen.url, f"sha256:{beginning}", network, "torchvision"
    )


def find_weights(entry: Published, root: Path | str | None = None) -> Path | None:
    """Give the file of an entry where a data folder has it, else None."""
    file = Path(FOLDER, _folder(entry.name), entry.url.rpartition("/")[2])
    return next((place.path / file for place in searched(root) if (place.path / file).is_file()), None)


def fetch_weights(name: str, root: Path | str | None = None) -> Path:
    """Give the file of published weights, downloaded where it is nowhere.

    Args:
        name: an entry of `PUBLISHED`, ``torchvision:NAME`` or ``torchvision:NAME@WEIGHTS``.
        root: the folder to look in first, and to download to.

    Raises:
        UsageError: there is no such entry.
        DataError: it cannot be had, or what is there is not what was published or first downloaded.
    """
    entry = published(name)
    there = find_weights(entry, root)
    if there is None:
        folder = download_folder(root) / FOLDER / _folder(entry.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{printable(str(folder))} cannot be made: {error.strerror}") from error
        with locked(folder, entry.url.rpartition("/")[2]):
            there = find_weights(entry, root) or fetch((entry.url,), folder, entry.checksum)
    if entry.checksum is not None:
        verify(there, entry.checksum)
    check_recorded(there)
    return there


def _folder(name: str) -> str:
    return name.replace(":", "-").replace("@", "-")
