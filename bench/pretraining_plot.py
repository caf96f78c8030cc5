"""Draws what pre-training came to as one PNG: probes over the epochs, test accuracies, and every method's loss.

Needs matplotlib, which the extra ``plot`` brings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslfast.bench.plots import GREY, check
from sslfast.files import writing
from sslfast.pretrain.methods import NAMES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#7F7F7F")
"""Of the methods, in their order."""
PROTOCOLS = {"knn": "k-NN, k 20, T 0.1", "linear": "linear probe, L-BFGS"}
"""The online probe's name, and the row of the evaluation that is drawn for it."""


def accuracy_of(scores: Mapping[str, Any], name: str) -> float:
    """Give the test accuracy of the row of a name, in per cent."""
    (found,) = (row["test_accuracy"] for row in scores["rows"] if row["name"] == name)
    return 100 * float(found)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw what ``pretraining.collect`` gives."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check(path)
    methods = found["methods"]
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "font.family": "sans-serif"}
    with rc_context(style):
        figure = Figure(figsize=(13.0, 7.2))
        grid = figure.add_gridspec(
            2, 24, left=0.055, right=0.985, top=0.87, bottom=0.1, hspace=0.5, wspace=4.0, height_ratios=(1.6, 1)
        )
        for at, probe in enumerate(PROTOCOLS):
            lines = _online(figure.add_subplot(grid[0, 8 * at : 8 * at + 7]), methods, probe)
        figure.legend(handles=lines, frameon=False, ncols=len(lines), loc="upper left", bbox_to_anchor=(0.05, 0.955))
        _tested(figure.add_subplot(grid[0, 18:]), found)
        for at, (name, run) in enumerate(methods.items()):
            axes = figure.add_subplot(grid[1, 4 * at : 4 * at + 4])
            part, points = run["loss"]["steps_of_a_point"], run["loss"]["points"]
            axes.plot([part * (number + 1) for number in range(len(points))], points, color=COLOURS[at])
            axes.set_title(f"{NAMES[name]}: loss", loc="left", fontsize=9)
            axes.set_xlabel("step")
        first = next(iter(methods.values()))["pretraining"]
        title = f"Six methods on {found['data']}, {first['option_epochs']} epochs each, seed {first['option_seed']}"
        figure.suptitle(title, x=0.02, ha="left", fontsize=13)
        machine = found["machine"]
        source = (
            f"{machine['processor']}, {machine['threads']} threads, torch {machine['versions']['torch']}, commit "
            f"{machine['commit']}; probes over the epochs see held-out training images, bars the test split, last epoch"
        )
        figure.text(0.01, 0.008, source, fontsize=6.5, color=GREY, va="bottom")
        canvas = FigureCanvasAgg(figure)
        with writing(path) as partial:
            canvas.figure.savefig(partial, dpi=100, format="png")


def _online(axes: Any, methods: Mapping[str, Any], probe: str) -> list[Any]:
    lines = []
    for colour, (name, run) in zip(COLOURS, methods.items(), strict=True):
        epochs = [line["epoch"] for line in run["online"]]
        right = [100 * line[f"held_out_{probe}"] for line in run["online"]]
        lines += axes.plot(epochs, right, color=colour, marker=".", label=NAMES[name])
    axes.set_xlabel("epoch")
    what = "k-NN" if probe == "knn" else "linear probe"
    axes.set_title(f"{what} on held-out training images, %", loc="left", fontsize=10)
    return lines


def _tested(axes: Any, found: Mapping[str, Any]) -> None:
    rows = {NAMES[name]: run["evaluation"] for name, run in found["methods"].items()}
    rows |= {f"random {network}": scores for network, scores in found["random_backbones"].items()}
    rows["raw pixels"] = found["raw_pixels"]
    height = 0.38
    for at, row in enumerate(PROTOCOLS.values()):
        values = [accuracy_of(scores, row) for scores in rows.values()]
        places = [number + (at - 0.5) * height for number in range(len(rows))]
        axes.barh(places, values, height, color="#56B4E9" if at else "#0072B2", label=row)
        for place, value in zip(places, values, strict=True):
            axes.text(value + 0.5, place, f"{value:.1f}", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    axes.set_title("test split, %", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right", bbox_to_anchor=(1.02, -0.07))
