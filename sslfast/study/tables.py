"""The closing tables of the studies, on the terminal."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from sslfast.study.grid import Mean

Content = Mapping[str, Any]

WIDTH = 160
"""Characters of a line in a file."""


def printed(table: Content) -> None:
    """Print a study's table."""
    # Where no terminal says how wide it is, lines are not to be broken; names are no markup.
    width = None if sys.stdout.isatty() else WIDTH
    Console(highlight=False, markup=False, emoji=False, width=width).print(_TABLES[table["study"]](table))
    if table["study"] in _LINES:
        print(*_LINES[table["study"]](table), sep="\n")


def _made(table: Content, title: str, *columns: str) -> Table:
    seeds = len(table["seeds"])
    sure = f"mean ± deviation of {seeds} seeds" if seeds > 1 else "one seed"
    made = Table(title=f"{title}; {table['images']}; {sure}", caption=table["split"], title_justify="left")
    for column in columns:
        made.add_column(column, justify="left" if column in ("arm", "backbone", "fault", "mode") else "right")
    return made


def _mean(row: Content, key: str, seeds: int) -> Mean:
    return Mean(row[key], row[f"{key}_deviation"], row[f"{key}_seeds"], seeds)


def _label_fractions(table: Content) -> Table:
    seeds, threshold = len(table["seeds"]), f"{100 * table['threshold']:g} %"
    made = _made(
        table, "label fractions", "arm", "unlabelled", "labelled", "images", "macro F1", "accuracy",
        f"s to {threshold}", "with pre-training", "ms a step",
    )  # fmt: skip
    for row in sorted(table["rows"], key=lambda row: (row["labelled"], row["arm"], row["unlabelled"] or 0)):
        made.add_row(
            row["arm"],
            "–" if row["unlabelled"] is None else f"{100 * row['unlabelled']:g} %",
            f"{100 * row['labelled']:g} %",
            "–" if row["images"] is None else f"{row['images']:,}",
            _mean(row, "test_f1", seeds).percent(),
            _mean(row, "test_accuracy", seeds).percent(),
            _mean(row, "time_to_accuracy", seeds).number(2),
            _mean(row, "time_to_accuracy_with_pretraining", seeds).number(1),
            _mean(row, "iteration_ms", seeds).number(1),
        )
    return made


def _needed(table: Content) -> list[str]:
    lines = ["Labelled share that an accuracy needed (smallest of the grid):"]
    for target in sorted({row["accuracy"] for row in table["needed"]}):
        found = []
        for row in table["needed"]:
            if row["accuracy"] == target and row["labelled"] is not None:
                share = "" if row["unlabelled"] is None else f" on {100 * row['unlabelled']:g} %"
                found.append((row["labelled"], f"{row['arm']}{share} {100 * row['labelled']:g} %"))
        if found:
            lines.append(f"  {100 * target:g} %: " + ", ".join(text for _, text in sorted(found)[:6]))
    return lines


def _transfer(table: Content) -> Table:
    seeds = len(table["seeds"])
    columns = ("backbone", "mode", "learning rate", "batch", "epochs", "validation", "test", "best epoch", "last epoch")
    made = _made(table, "transfer", *columns, "seconds")
    for row in table["rows"]:
        last = row["marks"].get(str(row["epochs"]))
        made.add_row(
            row["backbone"],
            row["mode"],
            f"{row['learning_rate']:g}",
            str(row["batch_size"]),
            str(row["epochs"]),
            _mean(row, "val_accuracy", seeds).percent(),
            _mean(row, "test_accuracy", seeds).percent(),
            ", ".join("diverged" if epoch is None else str(epoch) for epoch in row["epoch"]),
            "–" if last is None else f"{100 * last['value']:.2f} %",
            _mean(row, "seconds", seeds).number(0),
        )
    return made


def _replay(table: Content) -> Table:
    made = _made(table, f"six faults, {table['backbone']}", "fault", *table["modes"], "points", "images")
    for row in table["rows"]:
        cells, points = [], []
        for mode in table["modes"]:
            one = row[mode]
            if one is None:
                cells.append("no difference")
                points.append("–")
                continue
            cells.append(Mean(one["accuracy"], one["deviation"], one["seeds"], len(table["seeds"])).percent())
            points.append("–" if one["points"] is None else f"{one['points']:+.1f}")
        images = {row[mode]["images"] for mode in table["modes"] if row[mode] is not None} - {None}
        made.add_row(row["fault"], *cells, " / ".join(points), f"{max(images):,}" if images else "–")
    return made


def _self_classifier(table: Content) -> Table:
    seeds = len(table["seeds"])
    made = _made(
        table, "classes without labels", "backbone", "linear layers", "epochs", "NMI", "AMI", "ARI", "ACC", "seconds"
    )
    for row in table["rows"]:
        scores = (_mean(row, key, seeds).percent().replace(" %", "") for key in ("nmi", "ami", "ari", "acc"))
        made.add_row(
            row["backbone"], str(row["linears"]), str(row["epochs"]), *scores, _mean(row, "seconds", seeds).number(0)
        )
    made.add_section()
    for row in table["paper"]:
        scores = (f"{row[key]:.1f}" for key in ("nmi", "ami", "ari", "acc"))
        made.add_row(f"{row['backbone']}, the paper, CIFAR-10", str(row["linears"]), str(row["epochs"]), *scores, "")
    return made


def _probe(table: Content) -> list[str]:
    probe = table["probe"]
    if probe is None:
        return []
    shown = Mean(probe["test_accuracy"], probe["test_accuracy_deviation"], len(table["seeds"]), len(table["seeds"]))
    return [
        f"linear probe on {probe['backbone']}: {shown.percent()} ({probe['detail']}); "
        f"the paper, ResNet-18 on CIFAR-10: {table['paper_probe']} %"
    ]


_TABLES: dict[str, Callable[[Content], Table]] = {
    "label-fractions": _label_fractions,
    "transfer": _transfer,
    "transfer --replay paper003": _replay,
    "self-classifier": _self_classifier,
}
_LINES: dict[str, Callable[[Content], list[str]]] = {
    "label-fractions": _needed,
    "self-classifier": _probe,
    "transfer --replay paper003": lambda table: [f"wrong checkpoint: {table['wrong_checkpoint']}"],
}
