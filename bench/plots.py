"""Draws rows as a PNG: time over the cases, or time and memory over one growing size.

Needs matplotlib, which the extra ``plot`` brings.
"""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sslfast.bench.contenders import COMPILED, EAGER, OURS
from sslfast.bench.results import Row
from sslfast.bench.show import size_text
from sslfast.errors import UsageError
from sslfast.files import writing

# Okabe and Ito's palette, which colour-blind people can tell apart; ours is the darkest.
COLOURS = {OURS: "#0072B2", EAGER: "#D55E00", COMPILED: "#CC79A7", "lightly": "#009E73"}
OTHER_COLOURS = ("#E69F00", "#56B4E9", "#7F7F7F", "#000000", "#8C6D31")
MARKERS = {OURS: "o", EAGER: "s", COMPILED: "D", "lightly": "^"}
OTHER_MARKERS = ("v", "P", "X", "<", ">")
GREY = "#8a8a8a"
LEGIBLE = {EAGER: "PyTorch, eager", COMPILED: "PyTorch, torch.compile"}


def check(path: Path) -> None:
    """Say at once what would fail only after everything was measured."""
    if path.suffix != ".png":
        raise UsageError(f"--plot writes a PNG: its name must end in .png, got {str(path)!r}")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'sslfast[plot]'")


def draw(rows: Sequence[Row], machines: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the whole pass under the tuned allocator.

    One operator at three or more sizes that differ in one number becomes curves over that number, anything else a line
    per operator and size.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    check(path)
    kept = _last_passes(rows)
    if not kept:
        raise UsageError("--plot has nothing to draw: no row holds a time or a memory")
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "font.family": "sans-serif"}
    with rc_context(style):
        axis = _growing(kept)
        figure = _cases(kept) if axis is None else _sweep(kept, axis)
        figure.text(0.01, 0.008, _source(kept, machines), fontsize=6.5, color=GREY, va="bottom", wrap=True)
        canvas = FigureCanvasAgg(figure)
        with writing(path) as partial:
            canvas.figure.savefig(partial, dpi=160, format="png")


def _last_passes(rows: Sequence[Row]) -> list[Row]:
    """Keep forward and backward together, one allocator, one data type, and what holds a number."""
    kept = [row for row in rows if "skipped" not in row and ("median_ms" in row or "peak_mb" in row)]
    with_gradient = {row["op"] for row in kept if row["mode"] == "both"}
    kept = [row for row in kept if row["mode"] == ("both" if row["op"] in with_gradient else "forward")]
    for name in ("allocator", "dtype", "device"):
        found = [row[name] for row in kept]
        first = "tuned" if "tuned" in found else next(iter(found), "")
        kept = [row for row in kept if row[name] == first]
    return kept


def _growing(rows: Sequence[Row]) -> int | None:
    """Return which number of the size grows, where it is the only one that does, over three sizes or more."""
    sizes = {tuple(row["size"]) for row in rows}
    if len({row["op"] for row in rows}) != 1 or len(sizes) < 3:
        return None
    differing = [axis for axis, values in enumerate(zip(*sizes, strict=True)) if len(set(values)) > 1]
    return differing[0] if len(differing) == 1 else None


def _colour(name: str, names: Sequence[str]) -> str:
    others = [one for one in names if one not in COLOURS]
    return COLOURS.get(name) or OTHER_COLOURS[others.index(name) % len(OTHER_COLOURS)]


def _marker(name: str, names: Sequence[str]) -> str:
    others = [one for one in names if one not in MARKERS]
    return MARKERS.get(name) or OTHER_MARKERS[others.index(name) % len(OTHER_MARKERS)]


def _names(rows: Sequence[Row]) -> list[str]:
    found = list({row["contender"]: 0 for row in rows})
    return sorted(found, key=lambda name: [*COLOURS, name].index(name))


def _cases(rows: Sequence[Row]) -> Any:
    """Draw a line per operator and size: a dot per contender on a logarithmic axis of time, with its spread."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if "median_ms" in row]
    if not rows:
        raise UsageError("--plot has only memory to draw: it needs three sizes that differ in one number")
    names = _names(rows)
    cases = list({(row["op"], size_text(row)): 0 for row in rows})
    lines = math.ceil(len(names) / 5)
    head = 0.54 + 0.2 * lines
    height = 0.78 + head + 0.33 * len(cases) + 0.4 * len({op for op, _ in cases})
    figure = Figure(figsize=(9.0, height))
    axes = figure.add_subplot()
    figure.subplots_adjust(left=0.22, right=0.9, top=1 - head / height, bottom=0.68 / height)
    positions, y, previous = {}, 0.0, None
    for case in cases:
        if case[0] != previous:  # operators stand apart, and are named once
            y += 1.2
            axes.annotate(
                case[0],
                xy=(-0.012, y),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                fontweight="bold",
                annotation_clip=False,
            )
        y += 1.0
        positions[case], previous = y, case[0]
    for name in names:
        mine = [row for row in rows if row["contender"] == name]
        medians = [row["median_ms"] for row in mine]
        spread = [
            [row["median_ms"] - row["p20_ms"] for row in mine],
            [row["p80_ms"] - row["median_ms"] for row in mine],
        ]
        axes.errorbar(
            medians,
            [positions[row["op"], size_text(row)] for row in mine],
            xerr=spread,
            fmt=_marker(name, names),
            color=_colour(name, names),
            markersize=6 if name == OURS else 5,
            elinewidth=1.2,
            capsize=2,
            zorder=4 if name == OURS else 3,
            label=LEGIBLE.get(name, name),
        )
    for case, position in positions.items():
        medians_of = {row["contender"]: row["median_ms"] for row in rows if (row["op"], size_text(row)) == case}
        axes.plot(
            [min(medians_of.values()), max(medians_of.values())], [position] * 2, color="#e4e4e4", linewidth=3, zorder=1
        )
        others = [value for name, value in medians_of.items() if name != OURS]
        if OURS in medians_of and others:
            factor = min(others) / medians_of[OURS]
            axes.annotate(
                f"×{factor:.1f}" if factor >= 1 else f"×{factor:.2f}",
                xy=(1.015, position),
                xycoords=("axes fraction", "data"),
                va="center",
                fontweight="bold",
                color=COLOURS[OURS] if factor >= 1 else COLOURS[EAGER],
            )
    axes.annotate("next\nbest", xy=(1.015, 1.0), xycoords="axes fraction", fontsize=7, color=GREY, va="bottom")
    axes.set_xscale("log")
    axes.set_yticks(list(positions.values()), [size.replace(" x ", " × ") for _, size in positions])
    axes.set_ylim(y + 0.8, 0.7)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", which="major", color="#ededed", zorder=0)
    axes.set_axisbelow(True)
    low, high = axes.get_xlim()
    axes.set_xticks(_ticks(low, high))
    axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel(f"milliseconds, {_what(rows)} (median; bars: 20th to 80th percentile; logarithmic)")
    figure.suptitle("Time per loss: further left is faster", x=0.045, ha="left", y=1 - 0.12 / height, fontsize=12)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(0.035, 1 - 0.3 / height),
        ncols=math.ceil(len(names) / lines),
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.2,
        labelcolor="linecolor",
    )
    return figure


def _sweep(rows: Sequence[Row], axis: int) -> Any:
    """Draw time and memory, where there are any, as curves over one growing number."""
    from matplotlib.figure import Figure

    panels = [
        (name, title, unit)
        for name, title, unit in (("median_ms", "Time", "milliseconds"), ("peak_mb", "Peak memory", "megabytes"))
        if any(name in row for row in rows)
    ]
    width = 6.2 * len(panels)
    figure = Figure(figsize=(width, 4.6))
    # Beside every panel 0.8 inches for its axis and 1.75 for the names of its curves.
    figure.subplots_adjust(left=0.8 / width, right=1 - 1.75 / width, top=0.84, bottom=0.17, wspace=2.55 / 3.65)
    names = _names(rows)
    for index, (name, title, unit) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), index)
        ends = []
        for contender in names:
            points = sorted((row["size"][axis], row) for row in rows if row["contender"] == contender and name in row)
            if not points:
                continue
            x, y = [size for size, _ in points], [row[name] for _, row in points]
            ours = contender == OURS
            colour = _colour(contender, names)
            axes.plot(
                x, y, marker=_marker(contender, names), color=colour, linewidth=2.2 if ours else 1.4, markersize=5
            )
            if name == "median_ms":
                low, high = [row["p20_ms"] for _, row in points], [row["p80_ms"] for _, row in points]
                axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            ends.append((y[-1], x[-1], LEGIBLE.get(contender, contender), colour, ours))
            if ours:
                straight = [y[0] * size / x[0] for size in x]
                axes.plot(x, straight, linestyle=(0, (2, 3)), color=GREY, zorder=1)
                axes.annotate(
                    "in proportion to N" if axis == 0 else "in proportion",
                    (x[len(x) // 2], straight[len(x) // 2]),
                    xytext=(6, -11),
                    textcoords="offset points",
                    fontsize=7,
                    color=GREY,
                )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        _label_ends(axes, ends)
        axes.grid(which="major", color="#ededed")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        low, high = axes.get_ylim()
        axes.set_yticks(_ticks(low, high))
        axes.set_ylim(low, high)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xticks(sorted({row["size"][axis] for row in rows}))
        axes.tick_params(axis="x", which="minor", bottom=False)
        axes.set_xlabel(f"{'N, rows per view' if axis == 0 else f'number {axis + 1} of the size'}")
        axes.set_title(f"{title} in {unit}", loc="left", fontsize=10)
    fixed = " × ".join("N" if place == axis else str(value) for place, value in enumerate(rows[0]["size"]))
    figure.suptitle(f"{rows[0]['op']} at {fixed}, {_what(rows)}", x=0.02, ha="left", fontsize=12)
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers from ``low`` to ``high``, not too many for a logarithmic axis."""
    steps = (1, 2, 5) if high / low < 2000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def _label_ends(axes: Any, ends: list[tuple[float, float, str, str, bool]]) -> None:
    """Name each curve at its end; names that would overlap are moved apart."""
    low, high = (math.log10(one) for one in axes.get_ylim())
    step, last = 0.052 * (high - low), -math.inf
    right = axes.get_xlim()[1]
    for y, x, text, colour, ours in sorted(ends):
        place = max(math.log10(y), last + step)
        last = place
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(right, 10**place),
            textcoords="data",
            va="center",
            color=colour,
            fontweight="bold" if ours else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5, "shrinkA": 1, "shrinkB": 3},
        )


def _what(rows: Sequence[Row]) -> str:
    passes = {row["mode"] for row in rows}
    if passes == {"both"}:
        return "forward and backward"
    return "forward" if passes == {"forward"} else "forward and backward where there is a gradient"


def _source(rows: Sequence[Row], machines: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what the picture was measured on."""
    machine = machines[rows[0]["machine"]]
    device = machine["cuda"][0] if rows[0]["device"] == "cuda" else machine["processor"]
    where = f"{device}, {machine['threads']} threads" if rows[0]["device"] == "cpu" else device
    allocator = f", allocator {rows[0]['allocator']}" if rows[0]["allocator"] else ""
    torch = machine["versions"].get("torch", "?")
    return f"{where}; {rows[0]['dtype']}{allocator}; torch {torch}, commit {machine['commit']}"
