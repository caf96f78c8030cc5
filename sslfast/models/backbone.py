"""A backbone: a network that turns images into features, with the preprocessing it was trained with."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sslfast.errors import IntegrityError, SslfastError, UsageError
from sslfast.files import writing
from sslfast.models.architectures import ARCHITECTURES, build, check_architecture
from sslfast.models.checkpoint import read_foreign
from sslfast.models.importing import ImportReport, check_fit, report
from sslfast.models.maps import feature_maps
from sslfast.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from sslfast.models.recognition import recognise
from sslfast.tensors import read_metadata, read_tensors

__all__ = [
    "ARCHITECTURES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "Preprocess",
    "architecture_of",
    "load_backbone",
    "recorded_architecture",
    "save_backbone",
]

FORMAT = "sslfast-backbone-1"


class Backbone(nn.Module):
    """A network without its classifier, its preprocessing and where it comes from.

    Attributes:
        architecture: its name, as `sslfast.models.architectures.build` takes it.
        features: length of a feature vector.
        preprocess: what to do with an image before `forward`.
        source: the checkpoint it was read from, what it was trained on, or "random initialisation".
        layout: whose layout the checkpoint has, "sslfast" for ours; None where none is known, or without a checkpoint.
        convention: how well the images that the weights want are known: "recorded" (our own file says it), "known
            layout" (the project that wrote the file is known), "default" (nothing is known: a guess, or no training).
        trained: those images, where they are known; `preprocess` is something else where a caller overrode it.
        missing: names of weights that the checkpoint did not have; they are random.
        unexpected: names in the checkpoint that the network does not have (a projection head, say).
        report: all that was recognised in a foreign checkpoint, else None.
    """

    def __init__(self, architecture: str, network: nn.Module, features: int, preprocess: Preprocess) -> None:
        super().__init__()
        self.architecture = architecture
        self.network = network
        self.features = features
        self.preprocess = preprocess
        self.source = "random initialisation"
        self.layout: str | None = None
        self.convention = "default"
        self.trained: Preprocess | None = None
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.report: ImportReport | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map preprocessed images (N, 3, size, size) to features (N, features)."""
        features: Tensor = self.network(x)
        return features

    def feature_maps(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Map preprocessed images to the last map (N, C, H, W) of every resolution, finest first.

        Raises:
            UsageError: the network makes no maps.
        """
        return feature_maps(self.network, x)

    @property
    def random_layers(self) -> list[str]:
        """Modules with a weight that the checkpoint did not have: random layers between the images and the features."""
        return list(dict.fromkeys(name.rpartition(".")[0] for name in self.missing))

    def fingerprint(self) -> str:
        """Hash of the architecture, the preprocessing and every weight: the same hash, the same features."""
        digest = hashlib.sha256(json.dumps([self.architecture, asdict(self.preprocess)]).encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_backbone(
    name: str,
    checkpoint: Path | str | None = None,
    preprocess: Preprocess | None = None,
    *,
    allow_missing: Sequence[str] = (),
    layout: str | None = None,
) -> Backbone:
    """Build a backbone by name, with the weights of ``checkpoint`` or random ones.

    Where a project is known to have trained another network under the same names (TensorFlow's padding, solo-learn's
    stem), that one is built, and `Backbone.architecture` says so. Nothing in the file is ever run.

    Args:
        name: an architecture: one of `ARCHITECTURES`, a classifier of torchvision, or ``timm:NAME``. A checkpoint of
            ours must hold the same one.
        checkpoint: a file of ours (safetensors), or a foreign PyTorch or safetensors file (docs/import.md lists the
            layouts that are recognised).
        preprocess: overrides the preprocessing that the checkpoint records or its layout means, or the default of the
            architecture.
        allow_missing: names of weights, or of whole modules, that a foreign checkpoint need not have.
        layout: whose layout a foreign checkpoint has, where more than one fits; "plain" takes its names as they are.

    Raises:
        UsageError: the name or the layout is unknown, is not what the checkpoint holds, or the checkpoint can be read
            in several ways.
        SslfastError: the checkpoint cannot be read, does not fit, or holds no weight of this network.
        IntegrityError: a checkpoint of ours does not hold the weights that were written.
    """
    check_architecture(name)
    if checkpoint is None:
        built = build(name)
        return Backbone(name, built.network, built.features, preprocess or built.preprocess)
    path = Path(checkpoint)
    if _is_own(path):
        return _load_own(path, name, preprocess)
    foreign = read_foreign(path)
    match, recognised, what, notes = recognise(foreign, path, name, layout)
    state, missing = check_fit(match, path, name, allow_missing)
    built = build(match.architecture)
    built.network.load_state_dict(state, strict=False)
    backbone = Backbone(match.architecture, built.network, built.features, preprocess or match.preprocess)
    backbone.source = str(path)
    backbone.report = report(match, recognised, what, notes, missing, foreign, path)
    backbone.layout = recognised
    backbone.convention = backbone.report.convention
    backbone.trained = match.preprocess if match.known else None
    backbone.missing, backbone.unexpected = list(missing), list(match.heads)
    return backbone


def architecture_of(checkpoint: Path | str) -> str:
    """Name the architecture that a checkpoint of ours holds."""
    return str(_read_own(Path(checkpoint))[1]["architecture"])


def recorded_architecture(checkpoint: Path | str) -> str | None:
    """Name the architecture that a checkpoint records, where it is one of ours; else None."""
    path = Path(checkpoint)
    return architecture_of(path) if _is_own(path) else None


def save_backbone(backbone: Backbone, path: Path) -> None:
    """Write the network's weights and preprocessing to one safetensors file, atomically.

    Of an imported backbone the file also keeps what is known of its images and which of its weights are random.
    """
    metadata = {
        "format": FORMAT,
        "architecture": backbone.architecture,
        "preprocess": json.dumps(asdict(backbone.preprocess)),
        "fingerprint": backbone.fingerprint(),
    }
    if backbone.report is not None and backbone.convention == "default":
        metadata["convention"] = "default"
    if backbone.trained is not None and backbone.trained != backbone.preprocess:
        metadata["trained"] = json.dumps(asdict(backbone.trained))
    if backbone.missing:
        metadata["missing"] = json.dumps(backbone.missing)
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.network.state_dict().items()}
    with writing(path) as partial:
        save_file(state, partial, metadata=metadata)


def _load_own(path: Path, name: str, preprocess: Preprocess | None) -> Backbone:
    state, metadata = _read_own(path)
    if metadata["architecture"] != name:
        raise UsageError(f"{path} holds a {metadata['architecture']}, not a {name}; ask for that one")
    recorded = _recorded_preprocess(path, metadata["preprocess"])
    built = build(name)
    backbone = Backbone(name, built.network, built.features, recorded)
    try:
        told = built.network.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a weight of another shape
        raise SslfastError(f"{path} does not fit a {name}: {' '.join(str(error).split())}") from error
    if told.missing_keys or told.unexpected_keys or backbone.fingerprint() != metadata["fingerprint"]:
        raise IntegrityError(f"{path} is damaged: its weights are not those that were written; train it again")
    backbone.preprocess = preprocess or recorded
    backbone.source = str(path)
    backbone.layout = "sslfast"
    backbone.convention = "default" if metadata.get("convention") == "default" else "recorded"
    if backbone.convention == "recorded":
        trained = metadata.get("trained")
        backbone.trained = recorded if trained is None else _recorded_preprocess(path, trained)
    try:
        backbone.missing = [str(one) for one in json.loads(metadata.get("missing", "[]"))]
    except (TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged: it does not say what it lacks; train it again") from error
    return backbone


def _recorded_preprocess(path: Path, text: str) -> Preprocess:
    try:
        recorded = json.loads(text)
        return Preprocess(recorded["size"], tuple(recorded["mean"]), tuple(recorded["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged: its preprocessing cannot be read; train it again") from error


def _is_own(path: Path) -> bool:
    """Say whether a file begins as one of ours; what cannot be read is left to the reader, which says why."""
    return path.suffix == ".safetensors" and read_metadata(path).get("format") == FORMAT


def _read_own(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        state, metadata = read_tensors(path)
    except FileNotFoundError as error:
        raise SslfastError(f"there is no checkpoint {path}; give the file that pretrain wrote") from error
    if metadata.get("format") != FORMAT:
        raise SslfastError(f"{path} is not a backbone that sslfast wrote (format {metadata.get('format')!r})")
    if not metadata.keys() >= {"architecture", "preprocess", "fingerprint"}:
        raise IntegrityError(f"{path} is damaged: it does not say what it holds; train it again")
    return state, metadata
