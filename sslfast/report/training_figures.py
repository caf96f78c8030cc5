"""Figures of the pre-training: loss, learning rate and speed."""

from itertools import accumulate
from typing import Any

from sslfast.report.contents import as_number
from sslfast.report.drawing import BLUE, Figure, axis, layout, legend_above

MOST_POINTS = 1500
"""Longer curves are averaged over neighbours: more points than pixels only make the file larger."""


def curves(lines: list[dict[str, Any]]) -> list[tuple[str, Figure, str]]:
    """Draw what the metrics hold: (title, figure, caption) of the loss, the probes, the learning rate and the speed."""
    x_name = "epoch" if any(isinstance(line.get("epoch"), float) for line in lines) else "step"
    found = []
    for key, title, unit, caption in (
        ("loss", "Loss", "loss (nats)", "Loss of each step, and its running mean."),
        ("held_out_knn", "k-NN", "share right", "Images held out of training: 20 nearest neighbours."),
        ("held_out_linear", "Linear classifier", "share right", "Images held out of training: logistic regression."),
        ("learning_rate", "Learning rate", "learning rate", "A short rise, then a cosine to zero."),
        ("images_per_second", "Speed", "images per second", "Images that the training saw per second."),
    ):
        points = [
            (x, y)
            for x, y in ((as_number(line.get(x_name)), as_number(line.get(key))) for line in lines)
            if x is not None and y is not None
        ]
        if points:
            found.append((title, _curve(points, x_name, unit, smooth=key != "learning_rate"), caption))
    return found


def probe_curves(lines: list[dict[str, Any]]) -> list[tuple[str, Figure, str]]:
    """Draw what linear probes recorded: (title, figure, caption) of the loss and the accuracy after each epoch."""
    found = []
    for key, title, unit, caption in (
        ("train_loss", "Training loss", "loss (nats)", "Mean over the training rows of each epoch."),
        ("validation_accuracy", "Accuracy", "accuracy (%)", "On training rows that were held out to choose by."),
    ):
        factor = 100 if key == "validation_accuracy" else 1
        data: list[dict[str, Any]] = []
        for seed in dict.fromkeys(line.get("seed") for line in lines):
            points = [
                (x, factor * y)
                for line in lines
                if line.get("seed") == seed
                and (x := as_number(line.get("epoch"))) is not None
                and (y := as_number(line.get(key))) is not None
            ]
            if points:
                data.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers" if len(points) < 3 else "lines",
                        "name": f"seed {seed}",
                        "x": [x for x, _ in points],
                        "y": [float(f"{y:.6g}") for _, y in points],
                        "line": {"width": 2, **({} if data else {"color": BLUE})},
                        "hovertemplate": f"seed {seed}, epoch %{{x}}: %{{y:.4g}}<extra></extra>",
                    }
                )
        if data:
            drawn = layout(
                300,
                showlegend=len(data) > 1,
                legend=legend_above(),
                xaxis=axis("epoch", nticks=8),
                yaxis=axis(unit, nticks=6),
            )
            found.append((title, {"data": data, "layout": drawn}, caption))
    return found


def _curve(points: list[tuple[float, float]], x_name: str, unit: str, *, smooth: bool) -> Figure:
    data: list[dict[str, Any]] = []
    drawn = thinned(points)
    smooth = smooth and len(points) >= 50
    data.append(
        {
            "type": "scatter",
            "mode": "lines+markers" if len(drawn) < 3 else "lines",
            "name": "every step" if len(drawn) == len(points) else "mean of neighbouring steps",
            "x": [round(x, 4) for x, _ in drawn],
            "y": [float(f"{y:.6g}") for _, y in drawn],
            "line": {"color": "#A9C9E4" if smooth else BLUE, "width": 1.2 if smooth else 2},
            "hovertemplate": f"{x_name} %{{x}}: %{{y:.4g}}<extra></extra>",
        }
    )
    if smooth:
        means = running_mean([y for _, y in points], max(5, len(points) // 50))
        mean_points = thinned([(x, y) for (x, _), y in zip(points, means, strict=True)])
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "running mean",
                "x": [round(x, 4) for x, _ in mean_points],
                "y": [float(f"{y:.6g}") for _, y in mean_points],
                "line": {"color": BLUE, "width": 2.5},
                "hovertemplate": f"{x_name} %{{x}}, mean: %{{y:.4g}}<extra></extra>",
            }
        )
    return {
        "data": data,
        "layout": layout(
            300,
            showlegend=smooth,
            legend=legend_above(),
            xaxis=axis(x_name, nticks=8),
            yaxis=axis(unit, nticks=6, exponentformat="power", rangemode="normal" if "loss" in unit else "tozero"),
        ),
    }


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours until at most `MOST_POINTS` are left."""
    group = -(-len(points) // MOST_POINTS)
    if group <= 1:
        return points
    parts = [points[start : start + group] for start in range(0, len(points), group)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def running_mean(values: list[float], width: int) -> list[float]:
    """Average each value with its neighbours, ``width`` values in all; at the ends with those that there are."""
    sums = [0.0, *accumulate(values)]
    means: list[float] = []
    for index in range(len(values)):
        first, last = max(0, index - width // 2), min(len(values), index + width // 2 + 1)
        means.append((sums[last] - sums[first]) / (last - first))
    return means
