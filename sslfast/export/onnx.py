"""One ONNX file: raw images in, probabilities and features out, checked against torch before anybody can see it."""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.errors import SslfastError, UsageError, first_line
from sslfast.export.predict import FORMAT, open_session
from sslfast.files import writing
from sslfast.models.classifier import Classifier

OPSET = 20
"""The ONNX operator set of the file: the first with the antialiased Resize is 18; runtimes since 2024 read 20."""

PROBABILITY_BOUND = 1e-4
"""Largest difference of a probability between torch and the ONNX file."""

FEATURE_BOUND = 1e-4
"""Largest difference of a feature, relative to the largest feature of the same image."""

AGREEMENT_BOUND = 0.999
"""Smallest share of check images whose top class agrees."""

CHECK_BATCH = 64

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Parity:
    """How far the ONNX file is from torch on the same images.

    Attributes:
        images: how many images were compared, real ones and variants of them in other shapes.
        probability_error: largest absolute difference of a probability.
        feature_error: largest difference of a feature, relative to the largest feature of the same image.
        top1_agreement: share of images with the same top class (a tie within the bound counts as the same).
    """

    images: int
    probability_error: float
    feature_error: float
    top1_agreement: float

    def agrees(self) -> bool:
        """Say whether every number is finite and within its bound."""
        return (
            self.probability_error <= PROBABILITY_BOUND
            and self.feature_error <= FEATURE_BOUND
            and self.top1_agreement >= AGREEMENT_BOUND
        )

    def describe(self) -> str:
        """Say the numbers in one line."""
        return (
            f"{self.images} images: top-1 agreement {100 * self.top1_agreement:.2f} %, largest difference of a "
            f"probability {self.probability_error:.1e}, of a feature {self.feature_error:.1e} (relative)"
        )


def to_onnx(
    classifier: Classifier,
    path: Path | str,
    *,
    check_images: Images | Sequence[Images] | None = None,
    opset: int = OPSET,
) -> Parity:
    """Write a classifier as one ONNX file and check it against torch.

    The file's input is ``images``, uint8 (N, H, W, 3) with any N, H and W; its outputs are ``probabilities``
    (N, classes) and ``features`` (N, D). It holds its weights, the antialiased resize, the normalisation, and as
    metadata the class names, the size, the backbone's fingerprint, the versions and the parity that was measured.

    Args:
        classifier: what to export; it is not changed, and may be on any device.
        path: the file to write; what was there before stays untouched unless everything went well.
        check_images: real images, one array (N, H, W, 3) or a list of arrays (H, W, 3); noise where none are given.
            Variants of the first ones (cropped, larger, smaller, no image at all) are compared besides.
        opset: the ONNX operator set.

    Returns:
        What was measured.

    Raises:
        UsageError: an image is no uint8 (H, W, 3).
        SslfastError: torch cannot export the network, the file disagrees with torch, or it cannot be written.
    """
    path = Path(path)
    model = copy.deepcopy(classifier).cpu().float().eval()
    batches = list(_check_batches(check_images, model.backbone.preprocess.size))
    graph = _trace(model, opset)
    with writing(path) as partial:
        onnx.checker.check_model(graph, full_check=True)
        parity = _compare(model, graph.SerializeToString(), batches)
        if not parity.agrees():
            raise SslfastError(
                f"the ONNX file disagrees with torch ({parity.describe()}); {path} was not written; "
                "look for NaN in the weights, or report this network"
            )
        onnx.helper.set_model_props(graph, _metadata(model, parity))
        partial.write_bytes(graph.SerializeToString())
    return parity


class _Exported(nn.Module):
    """The classifier as a graph: the resize always stands in it, because a graph cannot ask for the image's size."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        preprocess = self.model.backbone.preprocess
        x = images.permute(0, 3, 1, 2).float()
        size = (preprocess.size, preprocess.size)
        x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
        # Contiguous: with channels last, torch's global average pooling is traced as a gather over strides.
        return self.model.classify(preprocess.normalise(x.contiguous() / 255))


def _trace(model: Classifier, opset: int) -> onnx.ModelProto:
    size = model.backbone.preprocess.size
    example = torch.zeros(2, size + 5, size + 9, 3, dtype=torch.uint8)
    batch, height, width = (torch.export.Dim(name) for name in ("N", "H", "W"))
    with _quiet():
        try:
            program: Any = torch.onnx.export(
                _Exported(model).eval(),
                (example,),
                dynamo=True,
                external_data=False,
                input_names=["images"],
                output_names=["probabilities", "features"],
                dynamic_shapes={"images": {0: batch, 1: height, 2: width}},
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:  # the exporter raises its own kinds, and those of what it traces
            reason = first_line(error)
            raise SslfastError(
                f"torch cannot export this {model.backbone.architecture} to ONNX opset {opset}: {reason}"
            ) from error
        graph: onnx.ModelProto = program.model_proto
    _strip(graph)
    return graph


def _strip(graph: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they hold stack traces with the paths of this machine."""
    graph.ClearField("doc_string")
    del graph.metadata_props[:]
    parts: list[Any] = [graph.graph, *graph.functions]
    for part in parts:
        part.ClearField("doc_string")
        del part.metadata_props[:]
        for field in ("node", "input", "output", "value_info", "initializer"):
            for item in getattr(part, field, ()):
                if not isinstance(item, str):  # a function's inputs and outputs are names
                    item.ClearField("doc_string")
                    del item.metadata_props[:]
    # Shapes inside the graph are inferred by every reader; the names that torch gave them say nothing.
    del graph.graph.value_info[:]
    graph.producer_name = "sslfast"
    graph.producer_version = _version()
    graph.graph.name = "classifier"


def _metadata(model: Classifier, parity: Parity) -> dict[str, str]:
    preprocess = model.backbone.preprocess
    return {
        "format": FORMAT,
        "classes": json.dumps(model.classes),
        "size": str(preprocess.size),
        "mean": json.dumps(preprocess.mean),
        "std": json.dumps(preprocess.std),
        "architecture": model.backbone.architecture,
        "backbone_fingerprint": model.backbone.fingerprint(),
        "sslfast_version": _version(),
        "torch_version": torch.__version__,
        "parity": json.dumps(asdict(parity)),
    }


def _version() -> str:
    try:
        return version("sslfast")
    except PackageNotFoundError:  # used from a source tree that is not installed
        return "unknown"


def _check_batches(images: Images | Sequence[Images] | None, size: int) -> Iterator[Images]:
    """Yield batches of equal shape: the given images, then variants of the first two in other shapes."""
    if images is None or len(images) == 0:
        images = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UsageError(f"check images are uint8 (H, W, 3); one is {image.dtype} {image.shape}")
    if isinstance(images, np.ndarray):
        for start in range(0, len(images), CHECK_BATCH):
            yield images[start : start + CHECK_BATCH]
    else:
        for image in images:
            yield image[None]
    for image in images[:2]:
        height, width = image.shape[:2]
        yield image[None, : max(1, height * 2 // 3)]  # not square
        yield image[None].repeat(3, axis=1).repeat(2, axis=2)  # shrunk by the resize
        yield image[None, : max(1, height // 4), : max(1, width // 3)]  # enlarged by it
    first = images[0]
    yield np.empty((0, *first.shape), dtype=np.uint8)


def _compare(model: Classifier, content: bytes, batches: Sequence[Images]) -> Parity:
    """Run torch and onnxruntime on the same images; NaN on either side makes the errors infinite."""
    session = open_session(content)
    count = 0
    agreed = 0
    probability_error = 0.0
    feature_error = 0.0
    for batch in batches:
        got, got_features = session.run(["probabilities", "features"], {"images": batch})
        if len(batch) == 0:  # torch itself refuses to resize no images; the file must answer with empty arrays
            if got.shape != (0, len(model.classes)) or got_features.shape != (0, model.backbone.features):
                raise SslfastError(f"the ONNX file answers {got.shape} to a batch without images")
            continue
        with torch.no_grad():
            expected, features = (value.numpy() for value in model(torch.from_numpy(np.ascontiguousarray(batch))))
        scale = np.maximum(np.abs(features).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        probability_error = max(probability_error, _largest(got - expected))
        feature_error = max(feature_error, _largest((got_features - features) / scale))
        count += len(batch)
        chosen = expected[np.arange(len(batch)), got.argmax(axis=1)]
        agreed += int((chosen >= expected.max(axis=1) - PROBABILITY_BOUND).sum())
    return Parity(count, probability_error, feature_error, agreed / max(count, 1))


def _largest(difference: NDArray[np.float32]) -> float:
    largest = float(np.abs(difference).max(initial=0.0))
    return largest if np.isfinite(largest) else float("inf")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and log lines, which a user can do nothing about, to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
