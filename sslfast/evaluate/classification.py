"""How predictions fall on classes: accuracy, confusion matrix, and the table of every class as the papers print it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sslfast.data.dataset import printable
from sslfast.errors import DataError
from sslfast.evaluate.counting import Counts, count_pairs, label_pair

COLUMNS = ("precision", "recall", "f1-score", "accuracy")
"""What a row of the report holds."""

_PLACES = (6, 4, 6, 4)
"""Digits behind the point, as the self-supervised PC-DARTS study prints its columns."""


@dataclass(frozen=True)
class ClassRow:
    """One class against all others.

    Args:
        name: of the class.
        precision: TP / (TP + FP); 0 where it was never predicted.
        recall: TP / (TP + FN); 0 where it does not occur.
        f1: 2 TP / (2 TP + FP + FN); 0 where it neither occurs nor was predicted.
        accuracy: (TP + TN) / N.
        support: rows of this class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    accuracy: float
    support: int

    def numbers(self) -> tuple[float, float, float, float]:
        """Give the numbers in the order of `COLUMNS`."""
        return self.precision, self.recall, self.f1, self.accuracy


@dataclass(frozen=True)
class ClassificationReport:
    """Every class, and all of them.

    Args:
        rows: one per class.
        everything: the micro average ("all"): every one of its numbers is the share of right predictions.
        macro: mean over the classes that occur or were predicted; its accuracy is the mean of theirs.
        confusion: (classes, classes), int64: label by predicted class.
    """

    rows: tuple[ClassRow, ...]
    everything: ClassRow
    macro: ClassRow
    confusion: Counts

    @property
    def accuracy(self) -> float:
        """Share of right predictions, in [0, 1]."""
        return self.everything.accuracy

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that occur, in [0, 1]."""
        present = [row.recall for row in self.rows if row.support]
        return float(np.mean(present))

    def text(self) -> str:
        """Lay it out with six places (precision, F1) and four (recall, accuracy), the row "all" last."""
        table: list[tuple[str, ...]] = [("class", *COLUMNS, "support")]
        for row in (*self.rows, self.everything):
            shown = (f"{value:.{places}f}" for value, places in zip(row.numbers(), _PLACES, strict=True))
            table.append((printable(row.name), *shown, str(row.support)))
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        return "\n".join(
            line[0].ljust(widths[0])
            + "".join("  " + part.rjust(width) for part, width in zip(line[1:], widths[1:], strict=True))
            for line in table
        )

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON-able values."""

        def one(row: ClassRow) -> dict[str, Any]:
            return {**dict(zip(COLUMNS, row.numbers(), strict=True)), "support": row.support}

        return {
            "classes": {row.name: one(row) for row in self.rows},
            "all": one(self.everything),
            "macro": one(self.macro),
            "balanced_accuracy": self.balanced_accuracy,
            "confusion": self.confusion.tolist(),
        }


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Give the share of rows, in [0, 1], whose predicted class is their label.

    Raises:
        DataError: lengths differ, there are no rows, or these are no whole numbers.
    """
    true, predicted = label_pair(y_true, y_pred)
    return int((true == predicted).sum()) / len(true)


def confusion_matrix(y_true: ArrayLike, y_pred: ArrayLike, classes: int) -> Counts:
    """Count rows by label (first axis) and predicted class (second axis): (classes, classes), int64.

    Raises:
        DataError: lengths differ, there are no rows, or a label is not a whole number from 0 to classes - 1.
    """
    true, predicted = label_pair(y_true, y_pred)
    for what, values in (("true label", true), ("predicted label", predicted)):
        bad = (values < 0) | (values >= classes)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"{what} of row {row} is {values[row]}, but there are {classes} classes (labels 0 to {classes - 1})"
            )
    return count_pairs(true, predicted, classes, classes)


def classification_report(y_true: ArrayLike, y_pred: ArrayLike, names: Sequence[str]) -> ClassificationReport:
    """Give precision, recall, F1 and one-against-the-rest accuracy of every class, and of all of them together.

    Args:
        y_true: label of each row (N,), from 0 to len(names) - 1.
        y_pred: predicted class of each row (N,).
        names: of the classes.

    Raises:
        DataError: lengths differ, there are no rows, a label is out of range, or two classes share a name.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise DataError(f"two classes are called {twice!r}; give every class a name of its own")
    return report_of(confusion_matrix(y_true, y_pred, len(names)), names)


def report_of(
    confusion: NDArray[np.integer[Any]] | Sequence[Sequence[int]], names: Sequence[str]
) -> ClassificationReport:
    """Give the report of a confusion matrix (classes, classes): label by predicted class.

    Raises:
        DataError: it is not square, has a negative count or no row, or there are not as many names.
    """
    table = np.asarray(confusion)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(names) != len(table) or table.dtype.kind not in "iu":
        wanted = f"{len(names)} x {len(names)} whole numbers"
        raise DataError(f"a confusion matrix of these names must be {wanted}, got {table.dtype} {table.shape}")
    table = table.astype(np.int64)
    if not table.size or table.min() < 0 or not table.sum():
        raise DataError("the confusion matrix holds no row, or a negative count")
    total = int(table.sum())
    rows = []
    for index, name in enumerate(names):
        right, true, predicted = int(table[index, index]), int(table[index].sum()), int(table[:, index].sum())
        rows.append(
            ClassRow(
                name,
                right / predicted if predicted else 0.0,
                right / true if true else 0.0,
                2 * right / (true + predicted) if true + predicted else 0.0,
                (total - true - predicted + 2 * right) / total,
                true,
            )
        )
    share = int(np.trace(table)) / total
    seen = [row.numbers() for row in rows if row.support or table[:, list(names).index(row.name)].sum()]
    precision, recall, f1, mean_accuracy = np.mean(seen, axis=0).tolist()
    return ClassificationReport(
        tuple(rows),
        ClassRow("all", share, share, share, share, total),
        ClassRow("macro", precision, recall, f1, mean_accuracy, total),
        table,
    )
