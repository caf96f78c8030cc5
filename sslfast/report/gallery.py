"""Example images by predicted class, as pictures inside the page."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslfast.report.contents import Examples
from sslfast.report.markup import text

KEPT_SIDE = 96
"""An image up to this side stays as it is (PNG, without loss); a larger one is reduced to `REDUCED_SIDE` (JPEG)."""

REDUCED_SIDE = 128
MOST_IMAGES = 400


def galleries(examples: Examples, classes: tuple[str, ...]) -> str:
    """Show images of every predicted class, right ones first, the wrong ones marked by border, sign and true label."""
    groups = []
    predicted = sorted({int(index) for index in examples.predicted})
    room = max(2, min(10, MOST_IMAGES // max(len(predicted), 1)))
    if len(predicted) > 20:
        room = min(room, 5)
    for index in predicted:
        rows = np.flatnonzero(examples.predicted == index)
        chosen = _choose(rows, examples, room)
        pictures = "".join(_picture(examples, int(row), classes) for row in chosen)
        groups.append(f'<div><h3>{text(_name(classes, index))}</h3><div class="thumbs">{pictures}</div></div>')
    return f'<div class="groups">{"".join(groups)}</div>'


def data_address(image: NDArray[np.uint8]) -> str:
    """Encode an image (H, W, 3) as a ``data:`` address."""
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    kind = "png"
    if max(picture.size) <= KEPT_SIDE:
        picture.save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        picture.thumbnail((REDUCED_SIDE, REDUCED_SIDE), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _choose(rows: NDArray[np.intp], examples: Examples, room: int) -> list[int]:
    """Take up to ``room`` images, the right ones before the wrong ones, neither pushing the other out."""
    right = [int(row) for row in rows if examples.labels[row] == examples.predicted[row]]
    wrong = [int(row) for row in rows if examples.labels[row] != examples.predicted[row]]
    for_wrong = min(len(wrong), max(room // 2, room - len(right)))
    return right[: room - for_wrong] + wrong[:for_wrong]


def _picture(examples: Examples, row: int, classes: tuple[str, ...]) -> str:
    true, guess = int(examples.labels[row]), int(examples.predicted[row])
    probability = float(examples.probability[row])
    sure = f"{100 * probability:.0f}\u00a0%" if np.isfinite(probability) else ""
    right = true == guess
    caption = f"✓ {sure}" if right else f"✗ {_name(classes, true)}, {sure}"
    image = examples.images[row]
    small = ' class="small"' if max(image.shape[:2]) <= KEPT_SIDE else ""
    words = f"{_name(classes, true)}, predicted {_name(classes, guess)} with {sure}"
    return (
        f'<figure class="{"right" if right else "wrong"}" title="{text(words)}"><img{small} alt="{text(words)}" '
        f'src="{data_address(image)}"><figcaption>{text(caption)}</figcaption></figure>'
    )


def _name(classes: tuple[str, ...], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else f"class {index}"
