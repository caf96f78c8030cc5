"""A backbone: a network that turns images into features, with the preprocessing it was trained with."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.errors import IntegrityError, SslfastError, UsageError
from sslfast.files import writing
from sslfast.models.checkpoint import read_foreign_state
from sslfast.models.resnet import ResNet
from sslfast.tensors import read_tensors

FORMAT = "sslfast-backbone-1"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before the network: resize to a square, scale to [0, 1], normalise.

    Args:
        size: side of the network's input in pixels; an image of another shape is resized to it (bilinear, antialiased).
        mean: per channel (R, G, B), of values in [0, 1].
        std: per channel, likewise.
    """

    size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (N, H, W, 3), uint8, to the network's input (N, 3, size, size), float32."""
        x = images.permute(0, 3, 1, 2).float()
        if x.shape[2] != self.size or x.shape[3] != self.size:
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return self.normalise(x / 255)

    def normalise(self, x: Tensor) -> Tensor:
        """Subtract the mean from (N, 3, H, W) in [0, 1] and divide by the standard deviation."""
        mean = torch.tensor(self.mean, device=x.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(1, 3, 1, 1)
        return (x - mean) / std


class Backbone(nn.Module):
    """A network without its classifier, its preprocessing and where it comes from.

    Attributes:
        architecture: its name in `ARCHITECTURES`.
        features: length of a feature vector.
        preprocess: what to do with an image before `forward`.
        source: the checkpoint it was read from, what it was trained on, or "random initialisation".
        missing: names of weights that the checkpoint did not have.
        unexpected: names in the checkpoint that the network does not have (a projection head, say).
    """

    def __init__(self, architecture: str, network: nn.Module, features: int, preprocess: Preprocess) -> None:
        super().__init__()
        self.architecture = architecture
        self.network = network
        self.features = features
        self.preprocess = preprocess
        self.source = "random initialisation"
        self.missing: list[str] = []
        self.unexpected: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        """Map preprocessed images (N, 3, size, size) to features (N, features)."""
        features: Tensor = self.network(x)
        return features

    def fingerprint(self) -> str:
        """Hash of the architecture, the preprocessing and every weight: the same hash, the same features."""
        digest = hashlib.sha256(json.dumps([self.architecture, asdict(self.preprocess)]).encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _small_resnet() -> ResNet:
    return ResNet(widths=(32, 64, 128), blocks=(1, 1, 1), stem_stride=2)


def _torchvision(name: str) -> nn.Module:
    import torchvision

    network: nn.Module = torchvision.models.get_model(name, weights=None)
    network.features = network.get_submodule("fc").in_features
    network.fc = nn.Identity()
    return network


ARCHITECTURES: dict[str, tuple[Any, int]] = {
    # name: (constructor, default input size)
    "resnet-small": (_small_resnet, 32),
    "resnet20": (lambda: ResNet(widths=(16, 32, 64), blocks=(3, 3, 3), shortcut="pad"), 32),
    "resnet18": (lambda: _torchvision("resnet18"), 224),
    "resnet50": (lambda: _torchvision("resnet50"), 224),
}


def load_backbone(name: str, checkpoint: Path | str | None = None, preprocess: Preprocess | None = None) -> Backbone:
    """Build a backbone by name, with the weights of ``checkpoint`` or random ones.

    Args:
        name: an architecture: one of `ARCHITECTURES`. A checkpoint of ours must hold the same one.
        checkpoint: a file of ours (safetensors), or a foreign PyTorch file (a state dict, perhaps under
            ``state_dict`` or ``model`` and with the prefix ``module.``, ``backbone.`` or ``encoder.``).
        preprocess: overrides the preprocessing that the checkpoint records, or the default of the architecture.

    Raises:
        UsageError: the name is unknown, or is not what the checkpoint holds.
        SslfastError: the checkpoint cannot be read, does not fit, or holds no weight of this network.
        IntegrityError: a checkpoint of ours does not hold the weights that were written.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"unknown backbone {name!r}; there are: {', '.join(ARCHITECTURES)}")
    build, size = ARCHITECTURES[name]
    network = build()
    backbone = Backbone(name, network, network.features, preprocess or Preprocess(size))
    if checkpoint is None:
        return backbone
    path = Path(checkpoint)
    if path.suffix == ".safetensors":
        state, metadata = _read_own(path)
        if metadata["architecture"] != name:
            raise UsageError(f"{path} holds a {metadata['architecture']}, not a {name}; ask for that one")
    else:
        state, metadata = read_foreign_state(path), None
    try:
        report = network.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a weight of another shape
        raise SslfastError(f"{path} does not fit a {name}: {' '.join(str(error).split())}") from error
    if metadata is not None:
        backbone.preprocess = _recorded_preprocess(path, metadata)
        if report.missing_keys or report.unexpected_keys or backbone.fingerprint() != metadata["fingerprint"]:
            raise IntegrityError(f"{path} is damaged: its weights are not those that were written; train it again")
        backbone.preprocess = preprocess or backbone.preprocess
    backbone.source = str(path)
    backbone.missing = [key for key in report.missing_keys if not key.endswith("num_batches_tracked")]
    backbone.unexpected = list(report.unexpected_keys)
    if len(backbone.missing) == len([key for key in network.state_dict() if not key.endswith("num_batches_tracked")]):
        raise SslfastError(f"{path} holds no weight of a {name}: its keys look like {', '.join(list(state)[:3])}")
    return backbone


def architecture_of(checkpoint: Path | str) -> str:
    """Name the architecture that a checkpoint of ours holds."""
    return str(_read_own(Path(checkpoint))[1]["architecture"])


def save_backbone(backbone: Backbone, path: Path) -> None:
    """Write the network's weights and preprocessing to one safetensors file, atomically."""
    metadata = {
        "format": FORMAT,
        "architecture": backbone.architecture,
        "preprocess": json.dumps(asdict(backbone.preprocess)),
        "fingerprint": backbone.fingerprint(),
    }
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.network.state_dict().items()}
    with writing(path) as partial:
        save_file(state, partial, metadata=metadata)


def _recorded_preprocess(path: Path, metadata: dict[str, str]) -> Preprocess:
    try:
        recorded = json.loads(metadata["preprocess"])
        return Preprocess(recorded["size"], tuple(recorded["mean"]), tuple(recorded["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged: its preprocessing cannot be read; train it again") from error


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
