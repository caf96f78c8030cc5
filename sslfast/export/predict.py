"""Classify image files with an ONNX file of ours: onnxruntime runs it, torch has no part in it."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslfast.data import Skipped, printable
from sslfast.data.image import BYTE_LIMIT, UnreadableImage, decode
from sslfast.data.tree import FolderTree
from sslfast.errors import SslfastError, UsageError, first_line

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
            raise SslfastError(
                f"{path} is not a readable ONNX file ({first_line(error)}); sslfast export writes one"
            ) from error
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


def find_images(paths: Sequence[Path]) -> tuple[list[Path], list[Skipped]]:
    """List the files to classify: every named file, and every image below every named folder, in order.

    Returns:
        The files, and what below the folders cannot be used.

    Raises:
        UsageError: a path does not exist.
        DataError: a folder cannot be listed.
    """
    found: list[Path] = []
    skipped: list[Skipped] = []
    for path in paths:
        if path.is_dir():
            tree = FolderTree(path)
            listing = tree.listing()
            found += [Path(tree.full_path(member.path)) for member in listing.members]
            skipped += listing.skipped
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"there is no file or folder {printable(os.fspath(path))}")
    return found, skipped


def predict_files(predictor: Predictor, files: Sequence[Path], count: int = 1) -> Iterator[list[Prediction] | Skipped]:
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
        try:
            with file.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size > BYTE_LIMIT:
                    raise UnreadableImage(f"longer than {BYTE_LIMIT:,} bytes")
                image = decode(stream)
        except (UnreadableImage, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            yield Skipped(os.fspath(file), reason)
            continue
        room = max(1, min(BATCH_IMAGES, BATCH_PIXELS // (image.shape[0] * image.shape[1])))
        if waiting and (waiting[0][1].shape != image.shape or len(waiting) >= room):
            yield run()
        waiting.append((file, image))
    if waiting:
        yield run()
