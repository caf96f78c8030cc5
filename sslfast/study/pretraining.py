"""Backbones that a study pre-trains, each once, whatever is done with it afterwards."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sslfast.data import Dataset
from sslfast.errors import UsageError
from sslfast.files import read_json
from sslfast.models import Backbone, load_backbone
from sslfast.pretrain import pretrain
from sslfast.pretrain.config import CONFIGS
from sslfast.pretrain.loop import AfterEpoch
from sslfast.pretrain.training import statistics
from sslfast.run import Run


def pretrained(
    method: str,
    dataset: Dataset,
    folder: Path,
    *,
    image_size: int,
    device: str,
    after_epoch: AfterEpoch | None = None,
    **options: Any,
) -> tuple[Backbone, dict[str, Any]]:
    """Pre-train a backbone in ``folder``, go on with it, or read it where it is finished.

    Args:
        method: simclr, swav, barlow-twins, self-classifier, autoencoder or supervised.
        dataset: the images; without need of them the labels are not looked at.
        folder: of the run.
        image_size: side of a view in pixels.
        device: auto, cpu or cuda.
        after_epoch: of ``pretrain``.
        options: of the method's config.

    Returns:
        The backbone, and what ``pretrain`` recorded of it: ``seconds`` and the last ``loss`` among others.

    Raises:
        UsageError: there is no such method, or an option makes no sense.
    """
    if method not in CONFIGS:
        raise UsageError(f"unknown method {method!r} of pre-training; there are: {', '.join(CONFIGS)}")
    config = CONFIGS[method](**options)
    decided = {"method": method, "images": dataset.fingerprint(), "image_size": image_size, **asdict(config)}
    with Run(folder, decided, resume=True) as run:
        backbone = pretrain(
            dataset, config, run, image_size=image_size, device=device, after_epoch=after_epoch
        )  # fmt: skip
    return backbone, read_json(folder / "result.json")


def untrained(name: str, dataset: Dataset, image_size: int, seed: int) -> Backbone:
    """Build a backbone with random weights, its input normalised by the statistics of ``dataset``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return load_backbone(name, preprocess=statistics(dataset, image_size)).eval()
