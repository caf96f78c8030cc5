"""Draws what a head search found as one PNG: the paper's Figures 4 to 6, accuracy over wall time, importance.

Needs matplotlib, which the extra ``plot`` brings. ``sslfast report`` draws the same for the browser.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from sslfast.bench.plots import COLOURS, GREY, check
from sslfast.files import writing

BEST, OTHERS = "#D55E00", COLOURS["sslfast"]
LABELS = {"layers": "layers", "learning_rate": "learning rate (log)", "dropout": "dropout"}


def draw(found: Mapping[str, Any], title: str, path: Path) -> None:
    """Draw the first seed's TPE search, and random search beside it.

    Args:
        found: what ``head_search.collect`` gives.
        title: of the picture.
        path: of the PNG.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check(path)
    searches = list(found["searches"].values())
    tpe, random = searches[0], searches[1] if len(searches) > 1 else None
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "font.family": "sans-serif"}
    with rc_context(style):
        figure = Figure(figsize=(13.0, 7.6))
        grid = figure.add_gridspec(2, 3, left=0.055, right=0.985, top=0.88, bottom=0.1, hspace=0.42, wspace=0.24)
        _history(figure.add_subplot(grid[0, 0]), tpe, random)
        _curves(figure.add_subplot(grid[0, 1]), tpe)
        _wall_time(figure.add_subplot(grid[0, 2]), tpe, random)
        _parallel(figure.add_subplot(grid[1, :2]), tpe)
        _importance(figure.add_subplot(grid[1, 2]), tpe)
        figure.suptitle(title, x=0.02, ha="left", fontsize=13)
        machine = found["machine"]
        source = f"{machine['processor']}, {machine['threads']} threads, torch {machine['versions']['torch']}"
        figure.text(0.01, 0.008, source, fontsize=6.5, color=GREY, va="bottom")
        canvas = FigureCanvasAgg(figure)
        with writing(path) as partial:
            canvas.figure.savefig(partial, dpi=100, format="png")


def _complete(search: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [trial for trial in search["trials"] if trial["value"] is not None]


def _best_so_far(trials: Sequence[Mapping[str, Any]]) -> list[float]:
    return list(accumulate((100 * trial["value"] for trial in trials), max))


def _history(axes: Any, tpe: Mapping[str, Any], random: Mapping[str, Any] | None) -> None:
    trials = _complete(tpe)
    numbers = [trial["number"] for trial in trials]
    axes.scatter(numbers, [100 * trial["value"] for trial in trials], s=16, color=OTHERS, label="trial")
    axes.step(numbers, _best_so_far(trials), where="post", color=BEST, label="best so far")
    if random is not None:
        other = _complete(random)
        numbers = [trial["number"] for trial in other]
        axes.step(numbers, _best_so_far(other), where="post", color=GREY, linestyle="--", label="random search")
    axes.set_ylim(_range([100 * trial["value"] for trial in trials]))
    _name(axes, "Optimisation history (Figure 4)", "trial", "validation accuracy, %")
    axes.legend(frameon=False, loc="lower right")


def _curves(axes: Any, tpe: Mapping[str, Any]) -> None:
    for trial in tpe["trials"]:
        won = trial["number"] == tpe["best"]
        values = [100 * value for value in trial["intermediate"]]
        colour, width, order = (BEST, 2.4, 3) if won else (OTHERS, 0.8, 2)
        axes.plot(
            range(1, len(values) + 1), values, color=colour, linewidth=width, alpha=1 if won else 0.5, zorder=order
        )
    everything = [100 * value for trial in tpe["trials"] for value in trial["intermediate"]]
    axes.set_ylim(_range(everything, 4))
    _name(axes, f"All {len(tpe['trials'])} trials (Figure 6)", "epoch", "validation accuracy, %")


def _wall_time(axes: Any, tpe: Mapping[str, Any], random: Mapping[str, Any] | None) -> None:
    for name, search, colour, line in (("TPE", tpe, BEST, "-"), ("random search", random, GREY, "--")):
        if search is None:
            continue
        trials = sorted(_complete(search), key=lambda trial: trial["finished"])
        minutes = [trial["finished"] / 60 for trial in trials]
        axes.step(minutes, _best_so_far(trials), where="post", color=colour, linestyle=line, label=name)
        if name == "TPE":
            axes.scatter(minutes, [100 * trial["value"] for trial in trials], s=12, color=OTHERS, alpha=0.6)
            axes.set_ylim(_range([100 * trial["value"] for trial in trials]))
    _name(axes, "Accuracy over wall time", "minutes", "best validation accuracy, %")
    axes.legend(frameon=False, loc="lower right")


def _parallel(axes: Any, tpe: Mapping[str, Any]) -> None:
    """Draw a line per trial through its hyperparameters and its accuracy (Figure 5); what a head has not is below 0."""
    import math

    trials = sorted(_complete(tpe), key=lambda trial: trial["value"])
    names = list(dict.fromkeys(name for trial in trials for name in trial["params"]))
    columns = ["value", *sorted(names, key=lambda name: (name == "dropout", name == "learning_rate", name))]
    kinds = {name: sorted({str(t["params"][name]) for t in trials if name in t["params"]}) for name in names}

    def number(trial: Mapping[str, Any], name: str) -> float | None:
        value = 100 * trial["value"] if name == "value" else trial["params"].get(name)
        if isinstance(value, str):
            return float(kinds[name].index(value))
        return math.log10(value) if name == "learning_rate" else value

    spans = {}
    for name in columns:
        found = [value for trial in trials if (value := number(trial, name)) is not None]
        spans[name] = (min(found), max(found))
    colours = _shades(len(trials))
    for trial, colour in zip(trials, colours, strict=True):
        places = []
        for name in columns:
            low, high = spans[name]
            value = number(trial, name)
            places.append(-0.14 if value is None else (value - low) / ((high - low) or 1))
        won = trial["number"] == tpe["best"]
        axes.plot(range(len(columns)), places, color=BEST if won else colour, linewidth=2.4 if won else 0.9)
    for place, name in enumerate(columns):
        axes.axvline(place, color=GREY, linewidth=0.7, zorder=0)
        for value, at in zip(spans[name], (0, 1), strict=True):
            text = (
                f"{value:.2f} %" if name == "value" else f"{10**value:.2g}" if name == "learning_rate" else f"{value:g}"
            )
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            axes.text(place + 0.04, at, text, fontsize=7.5, va="center", bbox=box, zorder=5)
    axes.axhline(-0.14, color=GREY, linewidth=0.5, linestyle=":")
    axes.text(-0.02, -0.14, "unused ", ha="right", va="center", fontsize=7.5)
    axes.set_xticks(
        range(len(columns)), ["accuracy", *(LABELS.get(name, name.replace("_", " ")) for name in columns[1:])]
    )
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("Parallel coordinates (Figure 5): darker is better, the best in orange", loc="left", fontsize=10)


def _importance(axes: Any, tpe: Mapping[str, Any]) -> None:
    shares = sorted(tpe["importance"].items(), key=lambda pair: pair[1])
    # The names hang into the panel on the left: without the scale's name the longest one just fits.
    names = [LABELS.get(name, name.replace("_", " ")).removesuffix(" (log)") for name, _ in shares]
    axes.barh(names, [100 * share for _, share in shares])
    for bar in axes.patches:
        bar.set_color(OTHERS)
    axes.tick_params(axis="y", length=0)
    _name(axes, "Importance (fANOVA)", "share of the differences, %", "")


def _shades(count: int) -> list[tuple[float, float, float]]:
    shares = [index / max(1, count - 1) for index in range(count)]
    return [(0.85 * (1 - s), 0.9 - 0.45 * s, 0.95 - 0.25 * s) for s in shares]


def _range(values: Sequence[float], share: int = 10) -> tuple[float, float]:
    """Cover all but the worst of ``share`` parts, which would press the others together."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // share], ordered[-1]
    room = 0.08 * (high - low) or 1.0
    return low - room, high + room


def _name(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="x" if not y else "y", color="#ededed")
    axes.set_axisbelow(True)
