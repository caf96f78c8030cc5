"""The classifier head that the autotuning paper searches: fully connected layers with dropout on frozen features."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sslfast.errors import IntegrityError, SslfastError
from sslfast.files import writing
from sslfast.tensors import read_tensors

FORMAT = "sslfast-head-1"


@dataclass(frozen=True)
class HeadSpec:
    """One point of the head search space.

    Args:
        units: width of each hidden layer, from the features on; empty for a linear classifier.
        dropout: probability of dropping an activation of a hidden layer, in [0, 1).
        learning_rate: of the optimiser at the first step.
        optimizer: one of "sgd", "adam", "adamw", "lars".
    """

    units: tuple[int, ...]
    dropout: float
    learning_rate: float
    optimizer: str = "sgd"

    def describe(self) -> str:
        """Name the head in a few words, for tables."""
        layers = f"{len(self.units)} FC {list(self.units)}" if self.units else "linear"
        rate = (
            f"lr {self.learning_rate:.3g}" if self.optimizer == "sgd" else f"{self.optimizer} {self.learning_rate:.3g}"
        )
        return f"{layers}, {rate}" + (f", dropout {self.dropout:g}" if self.units else "")


class Head(nn.Module):
    """Features to logits: per hidden layer Linear, ReLU, Dropout; then Linear.

    Features are standardised first with the training features' mean and standard deviation, which are part of the head.

    Args:
        features: length of a feature vector.
        classes: number of classes.
        spec: hidden widths and dropout.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, classes: int, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        layers: list[nn.Module] = []
        width = features
        for units in spec.units:
            layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(spec.dropout)]
            width = units
        layers.append(nn.Linear(width, classes))
        self.layers = nn.Sequential(*layers)

    def standardise(self, features: Tensor) -> Tensor:
        """Map features (N, D) to zero mean and unit variance over the training set."""
        return (features - self.mean) / self.std

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, D) to logits (N, classes)."""
        logits: Tensor = self.layers(self.standardise(features))
        return logits


def save_head(
    head: Head,
    path: Path,
    classes: tuple[str, ...],
    backbone_fingerprint: str,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a head, its spec, the class names and the fingerprint of the backbone it belongs to, atomically.

    ``extra`` is kept in the file's metadata beside them (the number of the trial, say).
    """
    metadata = {
        **(extra or {}),
        "format": FORMAT,
        "spec": json.dumps(asdict(head.spec)),
        "classes": json.dumps(classes),
        "backbone_fingerprint": backbone_fingerprint,
    }
    with writing(path) as partial:
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()},
            partial,
            metadata=metadata,
        )


def head_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a head's file; empty where there is no readable head of ours."""
    try:
        metadata = read_tensors(path)[1]
    except (SslfastError, FileNotFoundError):  # whoever needs the head calls load_head, which explains
        return {}
    return metadata if metadata.get("format") == FORMAT else {}


def load_head(path: Path) -> tuple[Head, tuple[str, ...], str]:
    """Read a head (in evaluation mode), the class names and the fingerprint of its backbone.

    Raises:
        SslfastError: the file is missing, or is not a head of ours.
        IntegrityError: its description and its weights do not fit.
    """
    try:
        state, metadata = read_tensors(path)
    except FileNotFoundError as error:
        raise SslfastError(f"there is no head {path}; give the file that tune wrote") from error
    if metadata.get("format") != FORMAT:
        raise SslfastError(f"{path} is not a head that sslfast wrote (format {metadata.get('format')!r})")
    try:
        spec = json.loads(metadata["spec"])
        classes = tuple(json.loads(metadata["classes"]))
        # A file of before the optimiser was searched does not name it.
        found = HeadSpec(
            tuple(spec["units"]), spec["dropout"], spec["learning_rate"], str(spec.get("optimizer", "sgd"))
        )
        head = Head(len(state["mean"]), len(classes), found)
        head.load_state_dict(state)
        return head.eval(), classes, metadata["backbone_fingerprint"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise IntegrityError(f"{path} is damaged: its description and its weights do not fit; tune it again") from error
