"""Backbones as a person names them for a study: random, imported, or pre-trained here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslfast.data import Dataset
from sslfast.data.weights import fetch_weights, published
from sslfast.errors import UsageError
from sslfast.models import Backbone, load_backbone
from sslfast.pretrain.config import CONFIGS
from sslfast.study.pretraining import pretrained, untrained


@dataclass(frozen=True)
class Named:
    """What ``NAME``, ``NAME=CHECKPOINT`` and ``METHOD+NAME`` say.

    Args:
        text: as it was written.
        architecture: the name.
        method: of the pre-training, or "".
        checkpoint: of the weights, or "".
    """

    text: str
    architecture: str
    method: str = ""
    checkpoint: str = ""

    @property
    def label(self) -> str:
        """Name it in tables: a checkpoint by its file's name, not by where it lies."""
        if self.checkpoint:
            return f"{self.architecture}={Path(self.checkpoint).name}"
        return self.text


def parse(text: str) -> Named:
    """Divide a backbone's name.

    Raises:
        UsageError: it names no architecture, or a method that does not exist.
    """
    left, found, checkpoint = text.partition("=")
    method, plus, name = left.rpartition("+")
    if not name or (found and not checkpoint) or (plus and found):
        raise UsageError(f"a backbone is NAME, NAME=CHECKPOINT or METHOD+NAME, got {text!r}")
    if plus and method not in CONFIGS:
        raise UsageError(f"unknown method {method!r} in {text!r}; there are: {', '.join(CONFIGS)}")
    return Named(text, name, method, checkpoint)


def prepared(
    named: Named,
    train: Dataset,
    folder: Path,
    *,
    image_size: int,
    seed: int,
    device: str,
    **options: Any,
) -> Backbone:
    """Build, import or pre-train a backbone.

    Args:
        named: which.
        train: the images that one is pre-trained on, and whose statistics normalise the input of a random one.
        folder: of the pre-training.
        image_size: side of its views in pixels.
        seed: of its weights.
        device: auto, cpu or cuda.
        options: of the pre-training's config.
    """
    if named.method:
        return pretrained(
            named.method, train, folder, image_size=image_size, device=device, backbone=named.architecture, seed=seed,
            **options,
        )[0]  # fmt: skip
    if named.checkpoint:
        path, layout = found_checkpoint(named.checkpoint)
        return load_backbone(named.architecture, path, layout=layout).eval()
    return untrained(named.architecture, train, image_size, seed)


def found_checkpoint(checkpoint: str) -> tuple[Path, str | None]:
    """Find a checkpoint's file, downloaded where it is published weights, and its layout where the table knows it.

    Raises:
        UsageError: there is no such file, and no published weights of that name.
        DataError: they cannot be had.
    """
    path = Path(checkpoint)
    if path.exists():
        return path, None
    if path.suffix or len(path.parts) > 1:
        raise UsageError(f"there is no checkpoint {checkpoint}; give a file, or a name of sslfast data fetch-weights")
    return fetch_weights(checkpoint), published(checkpoint).layout
