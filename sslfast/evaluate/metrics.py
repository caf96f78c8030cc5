"""Accuracy, confusion matrix and the per-class report, as scikit-learn computes them."""

from collections.abc import Sequence
from typing import Any

import numpy
import numpy.typing
from sklearn import metrics

Labels = numpy.typing.ArrayLike


def accuracy(labels: Labels, predicted: Labels) -> float:
    """Give the share of rows, in [0, 1], whose predicted class is their label."""
    return float(metrics.accuracy_score(labels, predicted))


def confusion_matrix(labels: Labels, predicted: Labels, classes: int) -> numpy.typing.NDArray[numpy.int64]:
    """Count rows by label (first axis) and predicted class (second axis): (classes, classes), int64."""
    matrix: numpy.typing.NDArray[numpy.int64] = metrics.confusion_matrix(labels, predicted, labels=range(classes))
    return matrix.astype(numpy.int64)


def classification_report(labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, Any]:
    """Give precision, recall, f1-score and support per class name, accuracy and averages, in scikit-learn's names.

    A class that was never predicted has precision 0, one without a row recall 0.
    """
    report: dict[str, Any] = metrics.classification_report(
        labels, predicted, labels=range(len(names)), target_names=list(names), output_dict=True, zero_division=0
    )
    if "micro avg" in report:  # scikit-learn's name for the accuracy where a listed class does not occur
        del report["micro avg"]
        report["accuracy"] = accuracy(labels, predicted)
    return report


def report_text(report: dict[str, Any]) -> str:
    """Lay a report out as scikit-learn prints it."""
    width = max(12, *map(len, report))
    lines = [f"{'':>{width}} {'precision':>10} {'recall':>10} {'f1-score':>10} {'support':>10}", ""]
    for name, row in report.items():
        if isinstance(row, dict):
            numbers = " ".join(f"{row[key]:>10.2f}" for key in ("precision", "recall", "f1-score"))
            lines.append(f"{name:>{width}} {numbers} {int(row['support']):>10}")
        else:
            lines.append(f"{name:>{width}} {'':>10} {'':>10} {row:>10.2f}")
    return "\n".join(lines) + "\n"
