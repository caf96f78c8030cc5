"""Every method by name, and a trained one's modules on disk."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sslfast.errors import IntegrityError, SslfastError, UsageError
from sslfast.files import writing
from sslfast.models import Backbone, load_backbone
from sslfast.pretrain.autoencoder import Autoencoder
from sslfast.pretrain.barlow_twins import BarlowTwins
from sslfast.pretrain.config import PretrainConfig, config_of
from sslfast.pretrain.method import Method
from sslfast.pretrain.self_classifier import SelfClassifier
from sslfast.pretrain.simclr import SimCLR
from sslfast.pretrain.supervised import Supervised
from sslfast.pretrain.swav import SwAV
from sslfast.tensors import read_tensors

FORMAT = "sslfast-method-1"
METHODS: dict[str, type[Any]] = {
    "simclr": SimCLR,
    "swav": SwAV,
    "barlow-twins": BarlowTwins,
    "self-classifier": SelfClassifier,
    "autoencoder": Autoencoder,
    "supervised": Supervised,
}
NAMES = {
    "simclr": "SimCLR",
    "swav": "SwAV",
    "barlow-twins": "Barlow Twins",
    "self-classifier": "Self-Classifier",
    "autoencoder": "autoencoder",
    "supervised": "supervised",
}
"""What people call them."""
PAIRS = ("simclr", "barlow-twins", "autoencoder")
"""Methods of exactly two views of one size."""


def build_method(backbone: Backbone, config: PretrainConfig, views: tuple[int, ...], classes: int = 0) -> Method:
    """Build what a config describes around a backbone.

    Raises:
        UsageError: the policy's views are not those that the method takes.
    """
    name = config.METHOD
    if name in PAIRS and views != (2,):
        raise UsageError(f"{name} takes two views of one size, the policy {config.policy!r} gives {_told(views)}")
    if name in ("swav", "self-classifier") and (views[0] < 1 or sum(views) < 2):
        raise UsageError(f"{name} takes two views or more, the policy {config.policy!r} gives {_told(views)}")
    if name == "supervised" and len(views) != 1:
        raise UsageError(f"{name} takes views of one size, the policy {config.policy!r} gives {_told(views)}")
    method: Method = METHODS[name](backbone, config, views, classes)
    return method


def save_method(method: Method, config: PretrainConfig, path: Path, classes: int, fingerprint: str) -> None:
    """Write what a method has trained beside the backbone (projector, classifiers, decoder), atomically.

    Args:
        method: a trained one.
        config: its options.
        path: of the file.
        classes: of the labels; 0 without.
        fingerprint: of the backbone that it belongs to.
    """
    state = {
        key: value.detach().cpu().contiguous()
        for key, value in method.state_dict().items()
        if not key.startswith("network.")
    }
    metadata = {
        "format": FORMAT,
        "method": config.METHOD,
        "config": json.dumps(asdict(config)),
        "views": json.dumps(method.views),
        "classes": str(classes),
        "backbone_fingerprint": fingerprint,
    }
    with writing(path) as partial:
        save_file(state, partial, metadata=metadata)


def load_method(folder: Path | str) -> tuple[Method, Backbone]:
    """Read a finished run's method, in evaluation mode, with its backbone: for its classes or reconstructions.

    Args:
        folder: of a run of `pretrain`.

    Raises:
        SslfastError: it holds no finished run, or another format.
        IntegrityError: the method's file belongs to another backbone, or is damaged.
    """
    path = Path(folder) / "method.safetensors"
    try:
        state, metadata = read_tensors(path)
    except FileNotFoundError as error:
        raise SslfastError(
            f"{folder} holds no finished pre-training (no {path.name}); finish it with --resume"
        ) from error
    if metadata.get("format") != FORMAT:
        raise SslfastError(f"{path} is not a method that sslfast wrote (format {metadata.get('format')!r})")
    try:
        config = config_of(metadata["method"], json.loads(metadata["config"]))
        views, classes = tuple(json.loads(metadata["views"])), int(metadata["classes"])
        backbone = load_backbone(config.backbone, Path(folder) / "backbone.safetensors")
        if backbone.fingerprint() != metadata["backbone_fingerprint"]:
            raise IntegrityError(f"{path} belongs to another backbone than backbone.safetensors beside it")
        method = build_method(backbone, config, views, classes)
        own = {f"network.{key}": value for key, value in method.network.state_dict().items()}
        method.load_state_dict({**own, **state})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise IntegrityError(
            f"{path} is damaged: its description and its weights do not fit; train it again"
        ) from error
    return method.eval(), backbone.eval()


def _told(views: tuple[int, ...]) -> str:
    return " and ".join(f"{count} of one size" for count in views)
