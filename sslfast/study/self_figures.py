"""The pictures of the Self-Classifier study: its paper's Figures 3, 5 and 7."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslfast.study.drawing import COLOURS, GRID, can_draw, over_epochs, picture, plain

Row = Mapping[str, Any]


def draw(table: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw loss and accuracy over epochs, and the linear probe; the study itself has written the examples.

    Args:
        table: of the study.
        folder: where the PNGs go.

    Returns:
        The files: curves.png (Figures 3 and 5) and probe.png (Figure 7).
    """
    if not can_draw():
        return []
    seeds = len(table["seeds"])
    note = f"{table['images']}; {seeds} seed{'s, the first is shown' if seeds > 1 else ''}"
    paths = [_curves(table["rows"], folder / "curves.png", note)]
    if table["probe"]:
        paths.append(_probe(table["probe"], folder / "probe.png", note))
    return paths


def name(row: Row) -> str:
    """Name a row as the paper does."""
    return f"{row['backbone']} ({row['linears']} HL), {row['epochs']} epochs"


def _curves(rows: Sequence[Row], path: Path, note: str) -> Path:
    with picture(path, 9.0, 3.2, note) as figure:
        loss, accuracy = figure.subplots(1, 2)
        for index, row in enumerate(rows):
            colour = COLOURS[index % len(COLOURS)]
            loss.plot([x for x, _ in row["loss"]], [y for _, y in row["loss"]], color=colour, label=plain(name(row)))
            points = row["curve"]
            accuracy.plot([p["epoch"] for p in points], [100 * p["acc"] for p in points], color=colour)
        loss.set_title("Loss (Figures 3, 5)", loc="left", fontsize=10)
        accuracy.set_title("Accuracy of the best matching, %, training images", loc="left", fontsize=10)
        for axes in (loss, accuracy):
            over_epochs(axes)
            axes.grid(color=GRID)
        if rows:
            loss.legend(frameon=False, fontsize=7.5)
    return path


def _probe(probe: Row, path: Path, note: str) -> Path:
    with picture(path, 9.0, 3.2, f"{name(probe)}; {probe['detail']}; {note}") as figure:
        loss, accuracy = figure.subplots(1, 2)
        for axes, key, title, scale in (
            (loss, "train_loss", "Linear probe (Figure 7): training loss", 1),
            (accuracy, "validation_accuracy", "Accuracy on held-out training images, %", 100),
        ):
            points = [(line["epoch"], scale * line[key]) for line in probe["curve"]]
            axes.plot([x for x, _ in points], [y for _, y in points], color=COLOURS[0])
            axes.set_title(title, loc="left", fontsize=10)
            over_epochs(axes)
            axes.grid(color=GRID)
    return path
