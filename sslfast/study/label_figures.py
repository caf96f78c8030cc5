"""The pictures of the study of label fractions, as its paper has them, for every arm."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslfast.study.drawing import COLOURS, GRID, can_draw, curve, grouped_bars, over_epochs, picture

Row = Mapping[str, Any]


def draw(table: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw F1 over epochs, time to accuracy, time per iteration and the data that an accuracy needs.

    Args:
        table: of the study.
        folder: where the PNGs go.

    Returns:
        The files: f1.png, time_to_accuracy.png, time_to_accuracy_with_pretraining.png, iteration.png, needed.png.
    """
    if not can_draw():
        return []
    rows: list[Row] = table["rows"]
    seeds = len(table["seeds"])
    note = f"{table['images']}; {seeds} seed{'s, bars and bands: standard deviation' if seeds > 1 else ''}"
    threshold = f"{100 * table['threshold']:g} %"
    return [
        _f1(rows, folder / "f1.png", note),
        _bars(rows, "time_to_accuracy", f"Seconds of training the head to {threshold} (no bar: not reached)",
              folder / "time_to_accuracy.png", note),
        _bars(rows, "time_to_accuracy_with_pretraining",
              f"Seconds of pre-training and of training the head to {threshold} (no bar: not reached)",
              folder / "time_to_accuracy_with_pretraining.png", note),
        _bars(rows, "iteration_ms", "Milliseconds of a training step of the head", folder / "iteration.png", note),
        _needed(table["needed"], folder / "needed.png", note),
    ]  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _arms(rows: Sequence[Row]) -> list[str]:
    return [arm for arm in {row["arm"]: None for row in rows} if arm != "supervised"]


def _labelled(rows: Sequence[Row]) -> list[float]:
    return sorted({row["labelled"] for row in rows})


def _f1(rows: Sequence[Row], path: Path, note: str) -> Path:
    arms, amounts = _arms(rows), _labelled(rows)
    with picture(path, 3.0 * len(amounts) + 0.4, 2.5 * len(arms) + 0.6, note) as figure:
        panels = figure.subplots(len(arms), len(amounts), squeeze=False, sharex=True, sharey=True)
        figure.suptitle(
            "Macro F1 on held-out images, per cent, over epochs of the head", x=0.01, ha="left", fontsize=11
        )
        for line, arm in zip(panels, arms, strict=True):
            for axes, amount in zip(line, amounts, strict=True):
                for row in rows:
                    if row["labelled"] != amount or row["arm"] not in (arm, "supervised") or not row["curve"]:
                        continue
                    supervised = row["arm"] == "supervised"
                    shares = sorted({one["unlabelled"] for one in rows if one["arm"] == arm})
                    index = 7 if supervised else shares.index(row["unlabelled"])
                    spread = [
                        None if p["val_f1_deviation"] is None else 100 * p["val_f1_deviation"] for p in row["curve"]
                    ]
                    name = "supervised" if supervised else f"{_percent(row['unlabelled'])} unlabelled"
                    points = [100 * point["val_f1"] for point in row["curve"]]
                    epochs = [point["epoch"] for point in row["curve"]]
                    curve(axes, epochs, points, spread, name, index, style="--" if supervised else "-")
                axes.set_title(f"{arm}, {_percent(amount)} labelled", loc="left", fontsize=9)
                axes.grid(color=GRID)
        for axes in panels[-1]:
            over_epochs(axes)
        panels[0, -1].legend(frameon=False, fontsize=7)
    return path


def _bars(rows: Sequence[Row], key: str, title: str, path: Path, note: str) -> Path:
    """Draw a panel per labelled amount, a group per unlabelled amount and a bar per arm."""
    amounts = _labelled(rows)
    shares = sorted({row["unlabelled"] for row in rows if row["unlabelled"] is not None})
    with picture(path, 3.4 * len(amounts) + 0.4, 3.0, note) as figure:
        panels = figure.subplots(1, len(amounts), squeeze=False, sharey=True)[0]
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        for axes, amount in zip(panels, amounts, strict=True):
            found = {(row["arm"], row["unlabelled"]): (row[key], row[f"{key}_deviation"])
                     for row in rows if row["labelled"] == amount}  # fmt: skip
            bars = {arm: [found.get((arm, share), (None, None)) for share in shares] for arm in _arms(rows)}
            grouped_bars(axes, [_percent(share) for share in shares], bars, "")
            baseline = found.get(("supervised", None), (None, None))[0]
            if baseline is not None:
                axes.axhline(baseline, color=COLOURS[7], linestyle="--", linewidth=1, label="supervised")
                axes.legend(frameon=False, fontsize=7)
            axes.set_title(f"{_percent(amount)} labelled", loc="left", fontsize=9)
            axes.set_xlabel("unlabelled")
    return path


def _needed(needed: Sequence[Row], path: Path, note: str) -> Path:
    """Draw the labelled fraction that an accuracy needs: a panel per arm, a group per unlabelled amount."""
    arms, targets = _arms(needed), sorted({row["accuracy"] for row in needed})
    found = {(row["arm"], row["unlabelled"], row["accuracy"]): row["labelled"] for row in needed}
    with picture(path, 4.4 * len(arms) + 0.4, 3.2, note) as figure:
        panels = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
        title = "Smallest labelled share that reached a test accuracy, per cent (no bar: none did)"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        for axes, arm in zip(panels, arms, strict=True):
            shares = sorted({row["unlabelled"] for row in needed if row["arm"] == arm})
            places = [*((arm, share) for share in shares), ("supervised", None)]
            bars = {_percent(one): [(found.get((*place, one)), None) for place in places] for one in targets}
            grouped_bars(axes, [*map(_percent, shares), "supervised"], bars, "", share=True)
            axes.set_ylabel("")
            axes.set_title(arm, loc="left", fontsize=9)
            axes.set_xlabel("unlabelled")
            axes.set_ylim(0, 130)  # room for the legend
            axes.set_yticks(range(0, 101, 20))
            if len(targets) > 1:
                axes.legend(title="accuracy", frameon=False, fontsize=7, ncols=len(targets), loc="upper left")
    return path
