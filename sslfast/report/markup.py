"""Pieces of HTML: every text that comes from a run is escaped here."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sslfast.report.contents import as_number
from sslfast.report.drawing import Figure

ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
"""How Python holds a byte of a file name that is no UTF-8."""

NAMES = {"seconds": "time", "train_rows": "training images", "val_rows": "validation images", "lr": "learning rate"}
"""What people call some entries of our files."""


def text(value: Any) -> str:
    r"""Escape a value for HTML; bytes of a path that are no UTF-8 are shown as ``\xff``."""
    bytes_shown = ESCAPED_BYTE.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", str(value))
    return escape(bytes_shown.encode("utf-8", "backslashreplace").decode("utf-8"))


def section(identifier: str, title: str, *parts: str, lead: str = "") -> str:
    """Make a section with a heading and one sentence under it; ``title`` and ``lead`` are plain text."""
    opening = f'<section id="{identifier}"><h2>{text(title)}</h2>'
    return opening + (f'<p class="quiet">{text(lead)}</p>' if lead else "") + "".join(parts) + "</section>"


def plot(figure: Figure, description: str, *, least: int = 0, most: int = 0) -> str:
    """Place a figure that the page's script draws.

    Args:
        figure: data and layout.
        description: what a screen reader says.
        least: narrowest width in pixels; on a narrower screen the figure scrolls sideways.
        most: widest width in pixels; 0: as wide as the page.
    """
    # "<" cannot close the script element that the figure travels in.
    content = json.dumps(figure, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    limits = (f"--least:{least}px;" if least else "") + (f"--most:{most}px;" if most else "")
    style = f' style="{limits}"' if limits else ""
    return (
        f'<div class="scroll"><div class="plot"{style}><div role="img" aria-label="{text(description)}"></div>'
        f'<script type="application/json">{content}</script></div></div>'
    )


def legend(scale: Sequence[tuple[float, str]], low: str, high: str, *lines: tuple[str, str, str]) -> str:
    """Explain a figure's colours in a row that wraps on a narrow screen.

    Args:
        scale: the colours of a gradient with their places in [0, 1].
        low: what its first colour means.
        high: what its last colour means.
        lines: further entries: (sign, colour, words).
    """
    stops = ", ".join(f"{colour} {100 * place:g}%" for place, colour in scale)
    gradient = f'<i class="ramp" style="background:linear-gradient(90deg, {stops})"></i>'
    entries = "".join(
        f'<span><b style="color:{colour}">{sign}</b> {text(words)}</span>' for sign, colour, words in lines
    )
    return f'<p class="legend">{entries}<span>{text(low)} {gradient} {text(high)}</span></p>'


def card(number: str, words: str, *, main: bool = False) -> str:
    """Make a tile with a large number and what it is."""
    return f'<div class="card{" main" if main else ""}"><b>{text(number)}</b><span>{text(words)}</span></div>'


def definitions(values: Mapping[str, Any]) -> str:
    """List names and values."""
    rows = "".join(
        f"<dt>{text(NAMES.get(key, key.replace('_', ' ')))}</dt><dd>{text(shown(key, value))}</dd>"
        for key, value in values.items()
    )
    return f"<dl>{rows}</dl>"


def bar(share: float | None, places: int = 2) -> str:
    """Show a share in [0, 1] as a percentage with a bar before it."""
    if share is None:
        return "–"
    width = f"{100 * min(max(share, 0.0), 1.0):.1f}%"
    return f'<span class="bar"><i style="--share:{width}"></i>{percent(share, places)}</span>'


def percent(share: float | None, places: int = 2) -> str:
    """Write a share in [0, 1] as a percentage."""
    return "–" if share is None else f"{100 * share:.{places}f}\u00a0%"


def duration(seconds: float | None) -> str:
    """Write a time as a person says it."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def shown(key: str, value: Any) -> str:
    """Write a value of a configuration or a budget: times as times, counts with separators."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(str(name), part)}" for name, part in value.items())
    if isinstance(value, str):
        return value
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence):
        return ", ".join(shown("", part) for part in value)
    number = as_number(value)
    if number is None:
        return str(value)
    if key == "seconds" or key.endswith("_seconds"):
        return duration(number)
    if isinstance(value, int):
        return str(value) if key.endswith("seed") else f"{value:,}"
    return f"{number:.6g}"
