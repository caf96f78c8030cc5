"""``sslfast export``: a backbone and its head as one ONNX file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslfast.errors import UsageError
from sslfast.progress import console


@dataclass(frozen=True)
class Options:
    """What to export.

    Args:
        backbone: the backbone that pretrain wrote (backbone.safetensors); with --checkpoint, the architecture's name.
        head: the head that tune wrote on this backbone's features (head.safetensors).
        out: the ONNX file to write.
        checkpoint: weights that somebody else trained, as extract was given them.
        layout: whose layout the checkpoint has, where more than one fits.
        allow_missing: weights or modules that the checkpoint need not have.
        data: a data set whose test images the file is checked with, against torch; noise without it.
        data_dir: where data sets lie, before the usual places.
        images: how many of its images to check.
        json: print the file's path and what was measured as JSON.
    """

    backbone: str
    head: Path
    out: Path = Path("model.onnx")
    checkpoint: Path | None = None
    layout: str | None = None
    allow_missing: tuple[str, ...] = ()
    data: str | None = None
    data_dir: Path | None = None
    images: int = 1000
    json: bool = False


def run(options: Options) -> None:
    """Read both parts, export them and say how well the file agrees with torch.

    Raises:
        UsageError: the head was tuned on another backbone's features.
        SslfastError: a file cannot be read or written, or the ONNX file disagrees with torch.
    """
    if options.images < 1:
        raise UsageError(f"--images is at least 1, got {options.images}")
    from sslfast.cli import checkpoints
    from sslfast.export.onnx import to_onnx
    from sslfast.models.classifier import Classifier
    from sslfast.models.head import load_head

    backbone = checkpoints.load(options.backbone, options.checkpoint, options.layout, options.allow_missing)
    head, classes, fingerprint = load_head(options.head)
    if fingerprint != backbone.fingerprint():
        raise UsageError(
            f"{options.head} was tuned on features of another backbone (fingerprint {fingerprint[:12]}) than "
            f"{options.backbone} ({backbone.fingerprint()[:12]}); give the two that belong together"
        )
    images = None if options.data is None else _real_images(options.data, options.data_dir, options.images)
    with console.status("exporting and comparing with torch"):
        parity = to_onnx(Classifier(backbone, head, classes), options.out, check_images=images)
    console.print(f"checked against torch on {parity.describe()}", markup=False)
    print(json.dumps({"model": str(options.out), **asdict(parity)}) if options.json else options.out)
    console.print(f"next: sslfast predict --model {options.out} IMAGE...", markup=False)


def _real_images(name: str, root: Path | None, count: int) -> list[NDArray[np.uint8]]:
    """Take ``count`` images, spread evenly over the test split."""
    from sslfast.data import load

    dataset = load(name, "test", root=root)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    return [dataset[int(index)][0] for index in chosen]
