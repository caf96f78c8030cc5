"""The tables of real head searches in docs/tune.md, from ``bench/results/head_search_*.json``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslfast.files import read_json
from sslfast.recipes.tuning import worth_in_words

PREFIX = "head_search_"


def page(path: Path) -> Iterator[str]:
    """Make the lines of one search's table."""
    if not path.exists():
        yield f"Not measured yet: `python -m sslfast.bench.head_search` writes `{path.name}`."
        return
    found = read_json(path)
    table = found["table"]
    yield "| classifier | validation | test | seconds | |"
    yield "| --- | ---: | ---: | ---: | --- |"
    for row in table["rows"]:
        validation = _percent(row["validation_accuracy"], row["validation_deviation"])
        test = _percent(row["test_accuracy"], row["test_deviation"])
        yield f"| {row['name']} | {validation} | {test} | {row['seconds']:,.0f} | {row['detail']} |"
    yield ""
    budget, rows = table["budget"]["tune"], found["features"]["rows"]
    seeds = len(table["seeds"])
    worth = table["worth"]
    yield (
        f"{rows['train']:,} + {rows['test']:,} images, {found['features']['features']:,} features, views "
        f"{' and '.join(found['features']['views'])}; {budget['trials']} trials x {budget['epochs']} epochs, batch "
        f"{budget['batch_size']}, {budget['parallel']} heads at a time, "
        f"{'one seed' if seeds == 1 else f'mean ± deviation of {seeds} seeds'}; {table['split']}."
    )
    if worth:
        yield f"{worth_in_words(worth)}."
    machine = found["machine"]
    yield (
        f"{machine['processor']}, {machine['threads']} threads, load {machine['load'][0]}, torch "
        f"{machine['versions']['torch']}, optuna {machine['versions']['optuna']}, commit {machine['commit']}."
    )


def _percent(value: Any, deviation: Any) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
