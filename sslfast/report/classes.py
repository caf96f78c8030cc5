"""How the predictions fall on the classes: confusion matrix, precision, recall and F1."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sslfast.report.contents import Predictions
from sslfast.report.drawing import MUTED, Figure, axis, label, layout

SHARES = [(0.0, "#F5F8FB"), (0.02, "#DCE9F5"), (0.3, "#8DBBE0"), (0.7, "#2F7DBB"), (1.0, "#08306B")]
"""Colours of a row's shares; a small confusion shows as well."""


@dataclass(frozen=True)
class ClassScore:
    """One class: its name, its test images, and precision, recall and F1 in [0, 1] (None: nothing to divide by)."""

    name: str
    images: int
    precision: float | None
    recall: float | None
    f1: float | None


def count_pairs(predictions: Predictions) -> list[list[int]]:
    """Count images by true class (row) and predicted class (column)."""
    many = len(predictions.classes)
    pairs = np.bincount(predictions.labels * many + predictions.predicted, minlength=many * many)
    counts: list[list[int]] = pairs.reshape(many, many).tolist()
    return counts


def score_classes(counts: list[list[int]], classes: tuple[str, ...]) -> list[ClassScore]:
    """Compute precision, recall and F1 of every class from the counts of `count_pairs`."""
    scores = []
    for index, name in enumerate(classes):
        right = counts[index][index]
        true = sum(counts[index])
        predicted = sum(row[index] for row in counts)
        scores.append(
            ClassScore(
                name,
                true,
                right / predicted if predicted else None,
                right / true if true else None,
                2 * right / (true + predicted) if true + predicted else None,
            )
        )
    return scores


def confusion(counts: list[list[int]], classes: tuple[str, ...]) -> Figure:
    """Draw the confusion matrix: rows are true classes, columns predicted ones, colour is the share of the row.

    Up to 20 classes every cell shows its count; beyond that the counts are in the hover text.
    """
    many = len(classes)
    shares = [[100 * cell / max(sum(row), 1) for cell in row] for row in counts]
    numbered = many <= 20
    cell = 44 if many <= 20 else max(9, 640 // many)
    names = [label(name) for name in classes]
    size = 12 if many <= 20 else max(7, min(11, cell - 1))
    ticks = {
        "tickmode": "array",
        "tickvals": list(range(many)),  # by position: two classes may look alike once their names are shortened
        "ticktext": names,
        "tickfont": {"size": size, "color": MUTED},
        "showgrid": False,
        "ticks": "outside",
        "tickcolor": "rgba(0,0,0,0)",  # a gap between names and cells
    }
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": [[round(share, 2) for share in row] for row in shares],
        "text": counts,
        "zmin": 0,
        "zmax": 100,
        "colorscale": SHARES,
        "xgap": 1 if many <= 50 else 0,
        "ygap": 1 if many <= 50 else 0,
        "hovertext": [[f"true: {row}<br>predicted: {column}" for column in names] for row in names],
        "hovertemplate": "%{hovertext}<br>%{text} images, %{z:.1f} % of the true class<extra></extra>",
        "showscale": False,
    }
    if numbered:
        trace["texttemplate"] = "%{text}"
        trace["textfont"] = {"size": 12}
    true = axis("true class", autorange="reversed", **ticks) | {"showline": False}
    true["title"]["standoff"] = 16  # clear of the longest name
    # Names that fit beside each other stand upright.
    angle = 0 if max(map(len, classes), default=0) * many <= 48 else -90 if many > 20 else -40
    return {
        "data": [trace],
        "layout": layout(
            cell * many + 150,
            margin={"l": 60, "r": 16, "t": 12, "b": 60},
            xaxis=axis("predicted class", tickangle=angle, **ticks) | {"showline": False},
            yaxis=true,
        ),
    }
