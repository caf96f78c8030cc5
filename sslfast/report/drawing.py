"""What all figures of the report share: colours, axes, and text that a class name cannot break out of."""

from html import escape
from typing import Any

Figure = dict[str, Any]
"""A plotly figure as plain data: ``data`` (a list of traces) and ``layout``."""

BLUE = "#0072B2"
VERMILLION = "#C8500A"
GREY = "#8A94A0"
GREEN = "#00795A"
INK = "#1B2430"
MUTED = "#55606E"
GRID = "#E4E8ED"
SEQUENTIAL: list[tuple[float, str]] = [(0.0, "#C9DDF0"), (0.35, "#7FB3DB"), (0.7, "#2F7DBB"), (1.0, "#08306B")]
"""Light to dark blue: readable in grey and by every kind of colour vision; its light end still shows on white."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LONGEST_LABEL = 22


def label(name: str, longest: int = LONGEST_LABEL) -> str:
    """Make a name safe and short enough to stand in a figure: plotly reads some HTML in its texts."""
    # Long names often differ only at their ends, so the middle goes.
    short = name if len(name) <= longest else f"{name[: longest // 2]}…{name[longest // 2 + 1 - longest :]}"
    return escape(short)


def layout(height: int, **more: Any) -> dict[str, Any]:
    """Start a layout of ``height`` pixels that is as wide as the page lets it be."""
    return {
        "height": height,
        "autosize": True,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "#FFFFFF", "bordercolor": GRID, "font": {"family": FONT, "size": 13, "color": INK}},
        "showlegend": False,
        **more,
    }


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Make an axis with a title (with its unit) and quiet grid lines."""
    return {
        "title": {"text": title, "font": {"size": 13, "color": MUTED}},
        "gridcolor": GRID,
        "linecolor": "#B8C0CA",
        "showline": True,
        "ticks": "outside",
        "tickcolor": "#B8C0CA",
        "tickfont": {"size": 12, "color": MUTED},
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,  # a finger that scrolls the page on a phone must not zoom the figure
        **more,
    }


def legend_above() -> dict[str, Any]:
    """Place a legend above the figure, where it covers no point."""
    return {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom", "font": {"size": 13}}


def whole_ticks(first: int, last: int) -> dict[str, Any]:
    """Tick the whole numbers from ``first`` (0 or 1) to ``last``: each of a few, round ones of many."""
    count = last - first + 1
    step = next((step for step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500) if count / step <= 12), 1000)
    ticks = [first, *range(step, last + 1, step)] if step > 1 else list(range(first, last + 1))
    room = max(0.3, 0.02 * count)
    return {"tickmode": "array", "tickvals": ticks, "range": [first - room, last + room]}


def blend(share: float) -> str:
    """Give the colour of `SEQUENTIAL` at ``share`` in [0, 1]."""
    share = min(max(share, 0.0), 1.0)
    for (start, first), (end, second) in zip(SEQUENTIAL, SEQUENTIAL[1:], strict=False):
        if share <= end:
            part = (share - start) / (end - start)
            channels = [
                round(int(first[i : i + 2], 16) * (1 - part) + int(second[i : i + 2], 16) * part) for i in (1, 3, 5)
            ]
            return f"rgb({channels[0]},{channels[1]},{channels[2]})"
    return SEQUENTIAL[-1][1]
