"""What the pictures of the studies share: colours, grouped bars and curves, and a PNG that is written whole.

Needs matplotlib, which the extra ``plot`` brings; a study without it writes everything else and says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sslfast.files import writing
from sslfast.progress import console

# Okabe and Ito's palette, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000", "#8C6D31", "#F0E442")
GREY = "#8a8a8a"
GRID = "#ededed"

Bars = Mapping[str, Sequence[tuple[float | None, float | None]]]
"""A series' name to its value and deviation in every group; no value, no bar."""


def can_draw() -> bool:
    """Say whether matplotlib is there; where it is not, tell how to get it."""
    if find_spec("matplotlib") is not None:
        return True
    console.print(
        "no pictures: they need matplotlib (pip install 'sslfast[plot]'); the same command with --resume draws",
        markup=False,
        soft_wrap=True,
    )
    return False


@contextmanager
def picture(path: Path, width: float, height: float, note: str) -> Iterator[Any]:
    """Give a figure of ``width`` x ``height`` inches to draw on, and write it as a PNG.

    Args:
        path: of the PNG.
        width: in inches.
        height: in inches.
        note: what it was measured on, in small print below.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style: dict[Any, Any] = {
        "font.size": 9,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(style):
        room = ConstrainedLayoutEngine(rect=(0, 0.2 / height, 1, 1 - 0.2 / height))
        figure = Figure(figsize=(width, height), layout=room)
        yield figure
        figure.text(0.005, 0.03 / height, plain(note), fontsize=6.5, color=GREY, va="bottom")
        with writing(path) as partial:
            FigureCanvasAgg(figure).figure.savefig(partial, dpi=150, format="png")


def grouped_bars(axes: Any, groups: Sequence[str], bars: Bars, label: str, *, share: bool = False) -> None:
    """Draw a bar per group and series, with its deviation; a missing value leaves its place empty.

    Args:
        axes: to draw on.
        groups: names along the axis.
        bars: per series.
        label: of the axis of values.
        share: values are shares of one and shown in per cent.
    """
    scale = 100 if share else 1
    width = 0.8 / max(1, len(bars))
    for index, (name, values) in enumerate(bars.items()):
        places = [group + (index - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        kept = [
            (place, value, spread) for place, (value, spread) in zip(places, values, strict=True) if value is not None
        ]
        heights = [scale * value for _, value, _ in kept]
        axes.bar(
            [place for place, _, _ in kept],
            heights,
            width * 0.92,
            yerr=[scale * (spread or 0.0) for _, _, spread in kept] if any(spread for _, _, spread in kept) else None,
            color=COLOURS[index % len(COLOURS)],
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        axes.bar(0, 0, 0, color=COLOURS[index % len(COLOURS)], label=plain(name))  # named, with or without a bar
        if len(bars) * len(groups) <= 24:
            for (place, _, spread), height in zip(kept, heights, strict=True):
                top = height + scale * (spread or 0.0)
                axes.annotate(
                    f"{height:.3g}", (place, top), xytext=(0, 1), textcoords="offset points", ha="center",
                    fontsize=6.5, color=GREY,
                )  # fmt: skip
    axes.set_xticks(range(len(groups)), [plain(name) for name in groups])
    if max(map(len, groups), default=0) * len(groups) > 90:
        axes.tick_params(axis="x", rotation=20)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylabel(label + (", %" if share else ""))
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    if len(bars) > 1:
        axes.legend(frameon=False, fontsize=7.5)


def curve(
    axes: Any,
    x: Sequence[float],
    values: Sequence[float],
    spread: Sequence[float | None] | None,
    name: str,
    index: int,
    *,
    style: str = "-",
) -> None:
    """Draw one series over ``x`` with a band of its deviation, where it has one."""
    colour = COLOURS[index % len(COLOURS)]
    axes.plot(x, values, style, color=colour, marker="o", markersize=2.5, linewidth=1.4, label=plain(name))
    if spread is not None and all(one is not None for one in spread):
        low = [value - (one or 0.0) for value, one in zip(values, spread, strict=True)]
        high = [value + (one or 0.0) for value, one in zip(values, spread, strict=True)]
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def over_epochs(axes: Any) -> None:
    """Name the axis of epochs, which are whole."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plain(text: str) -> str:
    """Keep matplotlib from reading a name as a formula."""
    return text.replace("$", r"\$")
