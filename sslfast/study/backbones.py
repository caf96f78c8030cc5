"""Backbones as a person names them for a study: random, imported, or pre-trained here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sslfast.data import Dataset, printable
from sslfast.data.weights import fetch_weights, published
from sslfast.errors import UsageError
from sslfast.models import Backbone, check_architecture, load_backbone
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
        shown: parts of the checkpoint's path in the label, from its end.
        path: of the checkpoint's file, once `opened` has found it.
        layout: of the file, where the table of published weights knows it.
    """

    text: str
    architecture: str
    method: str = ""
    checkpoint: str = ""
    shown: int = 1
    path: Path | None = None
    layout: str | None = None

    @property
    def label(self) -> str:
        """Name it in tables: a checkpoint by its file's name, not by where it lies."""
        file = "/".join(Path(self.checkpoint).parts[-self.shown :])
        return printable(f"{self.architecture}={file}" if self.checkpoint else self.text)


def parse(text: str) -> Named:
    """Divide a backbone's name.

    Raises:
        UsageError: it is none, or names an architecture or a method that does not exist.
    """
    left, found, checkpoint = text.partition("=")
    method, plus, name = left.rpartition("+")
    if not name or (found and not checkpoint) or (plus and found):
        raise UsageError(f"a backbone is NAME, NAME=CHECKPOINT or METHOD+NAME, got {text!r}")
    check_architecture(name)
    if plus:
        if method not in CONFIGS:
            raise UsageError(f"unknown method {method!r} in {text!r}; there are: {', '.join(CONFIGS)}")
        CONFIGS[method](backbone=name)  # the autoencoder takes none but its own
    return Named(text, name, method, checkpoint)


def opened(texts: Sequence[str], data_dir: Path | None = None) -> tuple[list[Named], dict[str, str]]:
    """Divide names that are told apart, and read every checkpoint: what is wrong is said before anything is trained.

    Args:
        texts: names.
        data_dir: where published weights are looked for first, and downloaded to.

    Returns:
        The backbones, and by label a hash of what each checkpoint holds.

    Raises:
        UsageError: a name means nothing, two mean the same, or there is no such checkpoint.
        DataError: published weights cannot be had.
        SslfastError: a checkpoint does not hold what is asked for.
    """
    backbones = [parse(text) for text in texts]
    while again := [label for label, count in Counter(one.label for one in backbones).items() if count > 1]:
        # Every run calls its weights backbone.safetensors; the folders above tell them apart.
        longer = [replace(one, shown=one.shown + 1) if one.label in again else one for one in backbones]
        if [one.label for one in longer] == [one.label for one in backbones]:
            raise UsageError(f"two backbones are {again[0]}; give each once")
        backbones = longer
    backbones = [_found(one, data_dir) if one.checkpoint else one for one in backbones]
    return backbones, {one.label: _imported(one).fingerprint() for one in backbones if one.checkpoint}


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
        named: which, as `opened` gives it.
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
    return _imported(named) if named.checkpoint else untrained(named.architecture, train, image_size, seed)


def _imported(named: Named) -> Backbone:
    assert named.path is not None  # or its weights would be random
    return load_backbone(named.architecture, named.path, layout=named.layout).eval()


def _found(named: Named, data_dir: Path | None) -> Named:
    """Find a checkpoint's file, downloaded where it is published weights, and its layout where the table knows it."""
    path = Path(named.checkpoint)
    if path.exists():
        return replace(named, path=path)
    if path.suffix or len(path.parts) > 1:
        there = f"there is no checkpoint {printable(named.checkpoint)}"
        raise UsageError(f"{there}; give a file, or a name of sslfast data fetch-weights")
    entry = published(named.checkpoint)
    return replace(named, path=fetch_weights(named.checkpoint, data_dir), layout=entry.layout)
