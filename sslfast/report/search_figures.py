"""The three figures of a head search: history, parallel coordinates, accuracy per epoch (Figures 4-6 of the paper)."""

import math
from typing import Any

from sslfast.report.contents import Search, Trial
from sslfast.report.drawing import BLUE, GREY, VERMILLION, Figure, axis, blend, layout, legend_above, whole_ticks

UNUSED = "unused"


def history(search: Search, untrained: Search | None) -> Figure:
    """Draw the validation accuracy of every trial and the best so far; the untrained backbone's best beside it."""
    trials = search.finished()
    data = [_best_line("best so far", trials, VERMILLION, 2.5, "solid")]
    longest = len(search.trials)
    if untrained is not None and untrained.finished():
        data.insert(0, _best_line("best so far, untrained backbone", untrained.finished(), GREY, 2, "dash"))
        longest = max(longest, len(untrained.trials))
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "one trial",
            "x": [trial.number for trial in trials],
            "y": [_percent(trial) for trial in trials],
            "marker": {"color": BLUE, "size": 8, "line": {"color": "#FFFFFF", "width": 1}},
            "text": [describe(trial) for trial in trials],
            "hovertemplate": "trial %{x}: %{y:.2f} %<br>%{text}<extra></extra>",
        }
    )
    return {
        "data": data,
        "layout": layout(
            360,
            showlegend=True,
            legend=legend_above(),
            xaxis=axis("trial", **whole_ticks(0, longest - 1)),
            yaxis=axis("validation accuracy (%)", range=_history_range(trials, untrained)),
        ),
    }


def _best_line(name: str, trials: list[Trial], colour: str, width: float, dash: str) -> dict[str, Any]:
    """Draw the best so far as steps, each from the trial that reached it; the last one is drawn out a little."""
    best = _best_so_far(trials)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [*(trial.number for trial in trials), trials[-1].number + 0.3],
        "y": [*best, best[-1]],
        "line": {"color": colour, "width": width, "dash": dash, "shape": "hv"},
        "hovertemplate": f"{name}: %{{y:.2f}} %<extra></extra>",
    }


def _history_range(trials: list[Trial], untrained: Search | None) -> list[float]:
    """Cover every trial and where the untrained search ended; its first steps may lie far below and be cut."""
    low, high = accuracy_range(trials)
    if untrained is not None and untrained.finished():
        end = _best_so_far(untrained.finished())[-1]
        low, high = min(low, end), max(high, end)
    room = 0.06 * (high - low)
    return [low - room, high + room]


def epochs(search: Search) -> Figure:
    """Draw every trial's validation accuracy after each epoch; the winner stands out."""
    trials = [trial for trial in search.trials if any(value is not None for value in trial.intermediate)]
    low, high = accuracy_range(search.finished())
    order = sorted(trials, key=lambda trial: -1.0 if trial.value is None else trial.value)
    data: list[dict[str, Any]] = []
    for trial in order:
        won = trial.number == search.best
        colour = GREY if trial.value is None else blend((100 * trial.value - low) / (high - low))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(trial.intermediate) < 3 or won else "lines",
                "name": f"best: trial {trial.number}" if won else f"trial {trial.number}",
                "x": list(range(1, len(trial.intermediate) + 1)),
                "y": [None if value is None else 100 * value for value in trial.intermediate],
                "line": {"color": VERMILLION if won else colour, "width": 3 if won else 1.3},
                "marker": {"size": 6},
                "hovertemplate": f"trial {trial.number}, epoch %{{x}}: %{{y:.2f}} %<br>{describe(trial)}"
                "<extra></extra>",
            }
        )
    winner = search.winner()
    if winner is not None and winner.epoch is not None and 0 <= winner.epoch < len(winner.intermediate):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "its best epoch",
                "x": [winner.epoch + 1],
                "y": [_percent(winner)],
                "marker": {"symbol": "star", "size": 15, "color": VERMILLION, "line": {"color": "#FFFFFF", "width": 1}},
                "hovertemplate": "best: epoch %{x}, %{y:.2f} %<extra></extra>",
            }
        )
    longest = max((len(trial.intermediate) for trial in trials), default=1)
    return {
        "data": data,
        "layout": layout(
            380,
            xaxis=axis("epoch", **whole_ticks(1, longest)),
            yaxis=axis("validation accuracy (%)"),
        ),
    }


def parallel_coordinates(search: Search) -> Figure:
    """Draw one line per trial through its accuracy and its hyperparameters; a layer that a trial has not is "unused".

    Drawn with lines instead of plotly's own trace, which needs WebGL and cannot name a value "unused".
    """
    trials = search.finished()
    scales = [_accuracy_scale(trials), *(_scale(name, trials) for name in parameter_names(trials))]
    low, high = accuracy_range(trials)
    data: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for trial in sorted(trials, key=lambda trial: (trial.number == search.best, trial.value or 0.0)):
        won = trial.number == search.best
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"best: trial {trial.number}" if won else f"trial {trial.number}",
                "x": list(range(len(scales))),
                "y": [scale.place(trial) for scale in scales],
                "line": {
                    "color": VERMILLION if won else blend((_percent(trial) - low) / (high - low)),
                    "width": 3.5 if won else 1.5,
                },
                "marker": {"size": 6 if won else 4},
                "opacity": 1.0 if won else 0.85,
                "hovertemplate": f"trial {trial.number}: {_percent(trial):.2f} %<br>{describe(trial)}<extra></extra>",
            }
        )
    for position, scale in enumerate(scales):
        first = position == 0  # its numbers stand on the left, where no line passes
        shapes.append(
            {
                "type": "line",
                "layer": "below",
                "x0": position,
                "x1": position,
                "y0": 0,
                "y1": 1,
                "line": {"color": "#55606E", "width": 1.2},
            }
        )
        for place, text in scale.ticks:
            notes.append(
                {
                    "x": position,
                    "y": place,
                    "text": text,
                    "showarrow": False,
                    "xanchor": "right" if first else "left",
                    "xshift": -5 if first else 5,
                    "font": {"size": 11},
                    "bgcolor": "rgba(255,255,255,0.78)",
                    "borderpad": 1,
                }
            )
    names = [scale.title for scale in scales]
    return {
        "data": data,
        "layout": layout(
            420,
            margin={"l": 24, "r": 40, "t": 20, "b": 56},
            hovermode="closest",
            shapes=shapes,
            annotations=notes,
            xaxis={
                "tickvals": list(range(len(names))),
                "ticktext": names,
                "range": [-0.4, len(names) - 0.6],
                "showgrid": False,
                "zeroline": False,
                "fixedrange": True,
                "tickangle": 0,
                "tickfont": {"size": 12},
            },
            yaxis={"visible": False, "range": [-0.06, 1.06], "fixedrange": True},
        ),
    }


def describe(trial: Trial) -> str:
    """Name a trial's hyperparameters in one line."""
    words = []
    units = [trial.params[name] for name in sorted(trial.params) if _is_units(name)]
    for name in parameter_names([trial]):
        if _is_units(name):
            continue
        if name == "layers":
            words.append(f"{trial.params[name]} layer{'' if trial.params[name] == 1 else 's'} {units}")
        else:
            value = trial.params[name]
            words.append(f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(words).replace("<", "&lt;")


def parameter_names(trials: list[Trial]) -> list[str]:
    """Name all hyperparameters in the order of the paper's Table I: layers, their units, learning rate, dropout."""
    names = {name for trial in trials for name in trial.params}

    def rank(name: str) -> tuple[int, str]:
        known = {"layers": 0, "learning_rate": 2, "dropout": 3}
        return (1 if _is_units(name) else known.get(name, 4), name)

    return sorted(names, key=rank)


class _Scale:
    """One vertical line of the parallel coordinates: where a trial's value lies in [0, 1], and the ticks on it."""

    def __init__(self, title: str, values: dict[int, float], ticks: list[tuple[float, str]]) -> None:
        self.title = title
        self.ticks = ticks
        self._values = values

    def place(self, trial: Trial) -> float | None:
        return self._values.get(trial.number)


def _accuracy_scale(trials: list[Trial]) -> _Scale:
    low, high = accuracy_range(trials)
    ticks = [(i / 4, f"{low + (high - low) * i / 4:.1f}") for i in range(5)]
    return _Scale("accuracy<br>(%)", {trial.number: (_percent(trial) - low) / (high - low) for trial in trials}, ticks)


def _scale(name: str, trials: list[Trial]) -> _Scale:
    """Choose the scale of a hyperparameter: logarithmic, one with "unused", a plain one, or one place per word."""
    drawn = {trial.number: trial.params[name] for trial in trials if trial.params.get(name) is not None}
    title = title_of(name)
    if any(not isinstance(value, (int, float)) for value in drawn.values()):
        words = sorted({str(value) for value in drawn.values()})
        by_word = {word: (i + 0.5) / len(words) for i, word in enumerate(words)}
        return _Scale(
            title,
            {number: by_word[str(value)] for number, value in drawn.items()},
            [(place, word.replace("<", "&lt;")[:18]) for word, place in by_word.items()],
        )
    numbers = {number: float(value) for number, value in drawn.items()}
    low, high = min(numbers.values(), default=0.0), max(numbers.values(), default=1.0)
    if name == "learning_rate" and low > 0:
        # Whole decades, so that the ticks are round numbers.
        first = math.floor(math.log10(low) + 1e-9)
        last = max(math.ceil(math.log10(high) - 1e-9), first + 1)
        span = last - first
        return _Scale(
            "learning<br>rate (log)",
            {number: (math.log10(value) - first) / span for number, value in numbers.items()},
            [((power - first) / span, f"1e{power}") for power in range(first, last + 1)],
        )
    some_unused = len(numbers) < len(trials)
    floor = 0.14 if some_unused else 0.0  # "unused" has the line's foot for itself
    different = sorted(set(numbers.values()))
    marks = [low + (high - low) * i / 4 for i in range(5)] if len(different) > 6 else different

    def place(value: float) -> float:
        return floor + (1 - floor) * ((value - low) / (high - low) if high > low else 0.5)

    places = {number: place(value) for number, value in numbers.items()}
    ticks: list[tuple[float, str]] = []
    for mark in marks:
        if ticks and place(mark) - ticks[-1][0] < 0.07:  # they would lie on each other; the outer one stays
            if mark != marks[-1] or len(ticks) == 1:
                continue
            ticks.pop()
        ticks.append((place(mark), f"{round(mark, 3):g}"))
    if some_unused:
        places |= {trial.number: 0.0 for trial in trials if trial.number not in numbers}
        ticks.insert(0, (0.0, UNUSED))
    return _Scale(title, places, ticks)


def title_of(name: str) -> str:
    """Name a hyperparameter above its line; the search counts layers from 0, people from 1."""
    if _is_units(name):
        index = name.removeprefix("units").strip("_")
        return f"units of<br>layer {int(index) + 1}" if index.isdigit() else "units"
    return name.replace("_", "<br>", 1).replace("_", " ").replace("<", "&lt;").replace("&lt;br>", "<br>")


def _is_units(name: str) -> bool:
    return name.startswith("units")


def _percent(trial: Trial) -> float:
    return 100 * (trial.value or 0.0)


def _best_so_far(trials: list[Trial]) -> list[float]:
    best: list[float] = []
    for trial in trials:
        best.append(max(_percent(trial), best[-1]) if best else _percent(trial))
    return best


def accuracy_range(trials: list[Trial]) -> tuple[float, float]:
    """Lowest and highest accuracy in percent, at least half a point apart, so that it can be divided by."""
    values = [_percent(trial) for trial in trials] or [0.0, 100.0]
    low, high = min(values), max(values)
    return (low, high) if high - low >= 0.5 else (high - 0.5, high)
