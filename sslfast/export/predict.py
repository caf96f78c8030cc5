"""Classify image files with an ONNX file of ours; onnxruntime is all it needs, torch is not imported."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslfast.errors import DataError, SslfastError, UsageError

FORMAT = "sslfast-classifier-1"
BATCH_IMAGES = 64
BATCH_PIXELS = 1 << 24
"""Images of one shape run together, as many as these two bounds allow; a photograph of 12 megapixels runs alone."""

Images = NDArray[np.uint8]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """What the classifier says about one file.

    Attributes:
        path: the file.
        top: class names with their probabilities, the most probable first.
    """

    path: Path
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be classified.

    Attributes:
        path: the file.
        reason: why, in a few words.
    """

    path: Path
    reason: str


class Predictor:
    """An ONNX file that `sslfast.export.to_onnx` wrote, ready to run.

    Args:
        path: the ONNX file.

    Attributes:
        classes: names of the classes, in the order of the probabilities.
        size: side of the network's input in pixels.
        metadata: everything that the file says about itself.

    Raises:
        SslfastError: the file is missing, is no ONNX file, or is not one that sslfast wrote.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SslfastError(f"cannot read the model {path}: {error.strerror}; export writes it") from error
        try:
            self._session = open_session(content)
        except Exception as error:  # onnxruntime raises its own kinds
            raise SslfastError(f"{path} is not a readable ONNX file: {str(error).splitlines()[0]}") from error
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        if self.metadata.get("format") != FORMAT:
            raise SslfastError(
                f"{path} is not a classifier that sslfast exported (format {self.metadata.get('format')!r}, "
                f"{FORMAT} wanted); sslfast export writes one"
            )
        self.classes = tuple(str(name) for name in json.loads(self.metadata["classes"]))
        self.size = int(self.metadata["size"])

    def __call__(self, images: Images) -> tuple[Scores, Scores]:
        """Classify images (N, H, W, 3), uint8, RGB: probabilities (N, classes) and features (N, D), float32.

        Raises:
            TypeError: the images are not uint8.
            ValueError: the images are not (N, H, W, 3).
        """
        if images.dtype != np.uint8:
            raise TypeError(f"Predictor: images must be uint8, got {images.dtype}")
        if images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"Predictor: images must be (N, H, W, 3), got {images.shape}")
        probabilities, features = self._session.run(["probabilities", "features"], {"images": images})
        return probabilities, features

    def top(self, probabilities: Scores, count: int) -> tuple[tuple[str, float], ...]:
        """Name the ``count`` most probable classes of one row of probabilities, the most probable first."""
        order = np.argsort(-probabilities, kind="stable")[:count]
        return tuple((self.classes[index], float(probabilities[index])) for index in order)


def open_session(content: bytes) -> Any:
    """Open an ONNX file's content in onnxruntime on the CPU, without its log lines."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions; the same text on the terminal helps nobody
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def find_images(paths: Sequence[Path]) -> list[Path]:
    """List the files to classify: every named file, and every image below every named folder, in order.

    Raises:
        UsageError: a path does not exist.
        DataError: a folder holds no image.
    """
    from sslfast.data.images import IMAGE_SUFFIXES

    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                Path(folder, name)
                for folder, _, names in os.walk(path)
                for name in names
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
            )
            if not inside:
                raise DataError(f"the folder {path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"there is no file or folder {path}")
    return found


def predict_files(
    predictor: Predictor, files: Sequence[Path], count: int = 1
) -> Iterator[list[Prediction] | Unreadable]:
    """Classify image files, in order; neighbours of one shape run as one batch.

    Args:
        predictor: the classifier.
        files: the image files.
        count: how many classes to name per image.

    Yields:
        A list of predictions, or one file that could not be read.
    """
    waiting: list[tuple[Path, Images]] = []

    def run() -> list[Prediction]:
        probabilities, _ = predictor(np.stack([image for _, image in waiting]))
        done = [
            Prediction(file, predictor.top(row, count)) for (file, _), row in zip(waiting, probabilities, strict=True)
        ]
        waiting.clear()
        return done

    for file in files:
        image = _read(file)
        if isinstance(image, Unreadable):
            yield image
            continue
        room = max(1, min(BATCH_IMAGES, BATCH_PIXELS // (image.shape[0] * image.shape[1])))
        if waiting and (waiting[0][1].shape != image.shape or len(waiting) >= room):
            yield run()
        waiting.append((file, image))
    if waiting:
        yield run()


def _read(file: Path) -> Images | Unreadable:
    from sslfast.data.images import read_image

    try:
        return read_image(file)
    except DataError as error:
        return Unreadable(file, str(error))
