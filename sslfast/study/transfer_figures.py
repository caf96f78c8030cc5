"""The pictures of the transfer study: its paper's Figures 3 to 6 as grouped bars, its table, and the replay."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslfast.study.drawing import COLOURS, GRID, can_draw, grouped_bars, picture, plain

Row = Mapping[str, Any]
Bar = tuple[float | None, float | None]

NONE: Bar = (None, None)

MODES = {"finetune": "fine-tuned", "transfer": "frozen"}


def draw(table: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw learning rates, batch sizes, modes and epochs; a panel each, a group per backbone.

    Args:
        table: of the study.
        folder: where the PNGs go.

    Returns:
        The files: figure3.png to figure6.png, and sweep.png where the table was trained.
    """
    if not can_draw():
        return []
    rows: list[Row] = table["rows"]
    reference = table["reference"]
    note = _note(table)
    names = list({row["backbone"]: None for row in rows})
    base = {key: reference[key] for key in ("mode", "learning_rate", "batch_size", "epochs")}
    words = {
        "epochs": f"{base['epochs']} epochs",
        "batch_size": f"batches of {base['batch_size']}",
        "learning_rate": f"learning rate {base['learning_rate']:g}",
    }

    def over(key: str) -> dict[str, list[Bar]]:
        """Vary one part of the setting, the others as in the reference; a series per value."""
        fixed = {name: value for name, value in base.items() if name != key}
        kept = [row for row in rows if all(row[name] == value for name, value in fixed.items())]
        values = list({row[key]: None for row in kept})
        order = values if key == "mode" else sorted(values)
        return {
            f"{value:g}" if not isinstance(value, str) else value: [_bar(kept, name, key, value) for name in names]
            for value in order
        }

    modes = list({row["mode"]: None for row in rows})
    pictures = [
        ("learning_rate", f"Figure 3: learning rates, {MODES[base['mode']]}", over("learning_rate")),
        ("batch_size", f"Figure 4: batch sizes, {MODES[base['mode']]}", over("batch_size")),
        ("mode", f"Figure 5: {' and '.join(MODES[mode] for mode in modes)}", over("mode")),
        (
            "epochs",
            f"Figure 6: epochs, {MODES[base['mode']]} (weights as after that epoch)",
            _epochs(rows, base, names),
        ),
    ]
    paths = []
    for number, (varied, title, bars) in enumerate(pictures, start=3):
        at = ", ".join(text for name, text in words.items() if name != varied)
        file = f"figure{number}.png"
        with picture(folder / file, max(5.5, 1.5 * len(names) + 1), 3.4, f"{at}; {note}") as figure:
            axes = figure.add_subplot()
            grouped_bars(axes, names, bars, "test accuracy", share=True)
            axes.set_title(title, loc="left", fontsize=11)
        paths.append(folder / file)
    if table["sweep"]["learning_rates"]:
        paths.append(_sweep(table, folder / "sweep.png", note))
    return paths


def draw_replay(table: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what each fault costs: replay.png."""
    if not can_draw():
        return []
    rows: list[Row] = table["rows"]
    path = folder / "replay.png"
    with picture(path, 1.35 * len(rows) + 1.2, 3.6, f"{table['backbone']}; {_note(table)}") as figure:
        axes = figure.add_subplot()
        bars = {
            mode: [NONE if row[mode] is None else (row[mode]["accuracy"], row[mode]["deviation"]) for row in rows]
            for mode in table["modes"]
        }
        grouped_bars(axes, [row["fault"] for row in rows], bars, "accuracy that is reported as test", share=True)
        for index, mode in enumerate(table["modes"]):
            honest = rows[0][mode]["accuracy"]
            if honest is not None:
                axes.axhline(100 * honest, color=COLOURS[index], linewidth=0.8, linestyle=":", zorder=0)
        axes.set_title("Six faults of a published comparison, each alone and all together", loc="left", fontsize=11)
    return [path]


def _note(table: Mapping[str, Any]) -> str:
    seeds = len(table["seeds"])
    return f"{table['images']}; {seeds} seed{'s, bars: standard deviation' if seeds > 1 else ''}"


def _bar(rows: Sequence[Row], name: str, key: str, value: Any) -> Bar:
    for row in rows:
        if row["backbone"] == name and row[key] == value:
            return row["test_accuracy"], row["test_accuracy_deviation"]
    return NONE


def _epochs(rows: Sequence[Row], base: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[Bar]]:
    found = {row["backbone"]: row["marks"] for row in rows if all(row[key] == value for key, value in base.items())}
    epochs = sorted({int(epoch) for marks in found.values() for epoch in marks})
    return {
        f"{epoch} epochs": [
            (marks["value"], marks["deviation"]) if (marks := found.get(name, {}).get(str(epoch))) else NONE
            for name in names
        ]
        for epoch in epochs
    }


def _sweep(table: Mapping[str, Any], path: Path, note: str) -> Path:
    sweep = table["sweep"]
    points = sorted(
        (row["learning_rate"], row["test_accuracy"], row["test_accuracy_deviation"])
        for row in table["rows"]
        if row["backbone"] == sweep["backbone"]
        and (row["epochs"], row["batch_size"]) == (sweep["epochs"], sweep["batch_size"])
        and row["learning_rate"] in sweep["learning_rates"]
        and row["mode"] == table["reference"]["mode"]
        and row["test_accuracy"] is not None
    )
    at = f"{sweep['epochs']} epochs, batches of {sweep['batch_size']}"
    with picture(path, 5.5, 3.2, f"{at}; {note}") as figure:
        axes = figure.add_subplot()
        spread = [100 * (deviation or 0.0) for _, _, deviation in points]
        axes.errorbar(
            [rate for rate, _, _ in points], [100 * value for _, value, _ in points],
            yerr=spread if any(spread) else None, fmt="o-", color=COLOURS[0], capsize=2,
        )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("test accuracy, %")
        axes.grid(color=GRID)
        title = f"Learning rates of {sweep['backbone']}, {MODES[table['reference']['mode']]}"
        axes.set_title(plain(title), loc="left", fontsize=11)
    return path
