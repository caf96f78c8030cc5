"""``sslfast predict``: classify image files with an exported ONNX file."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sslfast.errors import DataError, UsageError
from sslfast.progress import bar, console

if TYPE_CHECKING:
    from sslfast.export.predict import Prediction

SHOWN_REASONS = 5


@dataclass(frozen=True)
class Options:
    """What to classify, and with what.

    Args:
        paths: image files, or folders of images.
        model: the ONNX file that export wrote.
        top: how many classes to name per image.
        json: print one JSON object per image instead of a table.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    model: Path = Path("model.onnx")
    top: int = 1
    json: bool = False


def run(options: Options) -> None:
    """Print file, class and probability of every image; count what could not be read.

    Raises:
        UsageError: no path was given, one does not exist, or ``top`` is not positive.
        SslfastError: the model cannot be read.
        DataError: no image could be read.
    """
    if not options.paths:
        raise UsageError("name at least one image file or folder")
    if options.top < 1:
        raise UsageError(f"--top is at least 1, got {options.top}")
    from sslfast.data import Skipped, printable
    from sslfast.export.predict import Predictor, find_images, predict_files

    predictor = Predictor(options.model)
    files, skipped = find_images(options.paths)
    total = len(files) + len(skipped)
    if not total:
        raise DataError(f"no image below {', '.join(printable(os.fspath(path)) for path in options.paths)}")
    done: list[Prediction] = []
    with bar("predict", len(files), "images") as progress:
        for result in predict_files(predictor, files, options.top):
            if isinstance(result, Skipped):
                skipped.append(result)
                progress.advance()
            else:
                done += result
                progress.advance(len(result))
    if options.json:
        for prediction in done:
            _write(_as_json(prediction.path, prediction.top))
    elif done:
        _write_table(done)
    for item in skipped[:SHOWN_REASONS]:
        console.print(f"skipped {item}", markup=False, soft_wrap=True)
    if skipped:
        more = f", the first {SHOWN_REASONS} of them above" if len(skipped) > SHOWN_REASONS else ""
        console.print(f"{len(skipped)} of {total} images could not be read{more}", markup=False)
    if not done:
        raise DataError(f"none of the {total} images could be read")


def _as_json(path: Path, top: tuple[tuple[str, float], ...]) -> str:
    """One line of JSON; the bytes of a name that is no UTF-8 stand as surrogates, as `os.fsdecode` makes them."""
    name, probability = top[0]
    return json.dumps(
        {
            "file": os.fspath(path),
            "class": name,
            "probability": probability,
            "top": [{"class": other, "probability": value} for other, value in top],
        }
    )


def _write_table(done: list[Prediction]) -> None:
    """Print one line per image, columns aligned."""
    from sslfast.data import printable

    files = [printable(os.fspath(prediction.path)) for prediction in done]
    count = len(done[0].top)
    names = [[name for name, _ in prediction.top] for prediction in done]
    file_width = max(4, *map(len, files))
    name_width = max(5, *(len(name) for row in names for name in row))
    header = f"{'file':<{file_width}}"
    for rank in range(count):
        title = "class" if rank == 0 else f"{rank + 1}."
        header += f"  {title:<{name_width}}  {'probability' if rank == 0 else '':>11}"
    _write(header.rstrip())
    for file, prediction in zip(files, done, strict=True):
        cells = "".join(f"  {name:<{name_width}}  {value:>11.4f}" for name, value in prediction.top)
        _write(f"{file:<{file_width}}{cells}")


def _write(line: str) -> None:
    # A terminal that knows no UTF-8 gets escapes instead of a crash.
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))
