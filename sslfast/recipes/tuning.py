"""A head search with what it must be compared with: the paper's baseline, others, and random search."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sslfast.errors import UsageError
from sslfast.evaluate import Baseline, k_nearest, linear_head, logistic_regression
from sslfast.files import read_json, write_json
from sslfast.recipes.rows import Row
from sslfast.recipes.scored import TestRows
from sslfast.search import HeadSpace, SearchResult, search_heads
from sslfast.search.sources import Rows, Source

TUNED = "tuned head (TPE)"
RANDOM = "random search, same budget"

SHARED = "their first draws are the same"
"""What TPE draws before it knows anything is what random search draws with the same seed."""

STREAMED = "left out: it needs all rows in memory, and these are read chunk by chunk"
"""In place of a baseline's hyper-parameters."""


def tune_and_compare(
    parts: Callable[[int], Source],
    test: TestRows | None,
    space: HeadSpace,
    *,
    out: Path,
    classes: Sequence[str],
    seeds: Sequence[int],
    baselines: bool = True,
    storage: str | None = None,
    study_name: str,
    resume: bool = False,
    **options: Any,
) -> tuple[list[SearchResult], dict[str, Any]]:
    """Search once per seed, fit the baselines on the same rows, and score all on the test rows once.

    With one seed the search's folder is ``out``, with several ``out/seed-<seed>``. Writes ``table.json`` in ``out``.

    Args:
        parts: from a seed to training and validation rows, in memory or read chunk by chunk (for all seeds alike).
            The rows of one seed are let go before the next ones are asked for.
        test: rows that nothing is chosen on, or None.
        space: what to search.
        out: folder.
        classes: class names.
        seeds: of the searches.
        baselines: fit them.
        storage: see ``search_heads``.
        study_name: see ``search_heads``; a seed is added where there are several.
        resume: go on with the searches that are there.
        options: of ``search_heads``.

    Returns:
        The results of the searches and the table.
    """
    _check_seeds(out, list(seeds))
    results, rows = [], []

    def one_seed(seed: int) -> None:
        folder = out if len(seeds) == 1 else out / f"seed-{seed}"
        name = study_name if len(seeds) == 1 else f"{study_name}-{seed}"
        source = parts(seed)

        def search(folder: Path, sampler: str, study: str, resume: bool) -> SearchResult:
            return search_heads(
                source, None, space, out=folder, classes=classes, seed=seed, sampler=sampler, storage=storage,
                study_name=study, resume=resume, title="random search" if sampler == "random" else "tune", **options,
            )  # fmt: skip

        tuned = search(folder, "tpe", name, resume)
        results.append(tuned)
        found = [_searched(TUNED, tuned, space, test)]
        if baselines:
            # A folder that was begun is gone on with, whether or not the search above was.
            other = search(folder / "random", "random", f"{name}-random", True)
            found += _fitted(folder / "baselines.json", tuned, space, source, test, len(classes), seed)
            found.append(_searched(RANDOM, other, space, test))
        rows.append(found)

    for seed in seeds:
        one_seed(seed)
    table = make_table(rows, results, list(seeds), None if test is None else len(test))
    write_json(out / "table.json", table)
    return results, table


def _check_seeds(out: Path, seeds: list[int]) -> None:
    """Refuse a folder whose searches are not among those asked for: the table would leave them out.

    Raises:
        UsageError: it holds one search where several are asked for, or the other way round, or another seed's.
    """
    alone = (out / "config.json").exists()
    begun = sorted(int(path.parent.name.removeprefix("seed-")) for path in out.glob("seed-*/config.json"))
    if alone and len(seeds) > 1 or begun and not set(begun) <= set(seeds if len(seeds) > 1 else ()):
        held = "one seed" if alone else f"the seeds {begun}"
        raise UsageError(
            f"{out} holds the search of {held}, asked for are {seeds}; resume with the same --seed and --seeds (or "
            "more of several), or choose another --out"
        )


def make_table(
    rows: list[list[Row]], results: list[SearchResult], seeds: list[int], test_rows: int | None
) -> dict[str, Any]:
    """Put the seeds' rows together: mean and standard deviation of each classifier, and whether TPE was worth it."""
    together = []
    for same in zip(*rows, strict=True):
        validation = [row.validation_accuracy for row in same if row.validation_accuracy is not None]
        test = [row.test_accuracy for row in same if row.test_accuracy is not None]
        chosen, tested = len(validation) == len(same), len(test) == len(same)
        together.append(
            {
                "name": same[0].name,
                "test_accuracy": statistics.mean(test) if tested else None,
                "test_deviation": _deviation(test) if tested else None,
                "validation_accuracy": statistics.mean(validation) if chosen else None,
                "validation_deviation": _deviation(validation) if chosen else None,
                "detail": same[0].detail if len(same) == 1 or not chosen else f"first seed: {same[0].detail}",
                "seconds": statistics.mean(row.seconds for row in same),
                "seeds": [asdict(row) for row in same],
            }
        )
    budget = results[0].budget
    tested_on = "no test rows were given" if test_rows is None else f"test, {test_rows} images"
    return {
        "split": f"{tested_on}; chosen on {budget['val_rows']} images held out of train",
        "seeds": seeds,
        "which_epoch": "each head as it was after its best epoch on the held-out images",
        "rows": together,
        "worth": _worth(together),
        "budget": {"tune": budget, "seconds": sum(row.seconds for found in rows for row in found)},
    }


def add_row(folder: Path, table: dict[str, Any], row: Row) -> None:
    """Put one more classifier, of one seed, into the table and its file."""
    scores = {"test_deviation": None, "validation_deviation": None, "seeds": [asdict(row)]}
    table["rows"].append({**asdict(row), **scores})
    write_json(folder / "table.json", table)


def _worth(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Say what TPE found above random search, in percentage points: mean over seeds, and the mean's standard error."""
    by_name = {row["name"]: row["seeds"] for row in rows}
    if RANDOM not in by_name:
        return None
    found: dict[str, Any] = {}
    for what in ("validation", "test"):
        key = f"{what}_accuracy"
        pairs = list(zip(by_name[TUNED], by_name[RANDOM], strict=True))
        if any(row[key] is None for pair in pairs for row in pair):
            continue
        differences = [100 * (ours[key] - theirs[key]) for ours, theirs in pairs]
        deviation = _deviation(differences)
        error = None if deviation is None else deviation / math.sqrt(len(differences))
        found[what] = {"points": statistics.mean(differences), "standard_error": error, "seeds": len(differences)}
    return found


def worth_in_words(worth: dict[str, Any]) -> str:
    """Say in a line whether TPE was worth it."""
    parts = []
    for what, one in worth.items():
        error = "" if one["standard_error"] is None else f" ± {one['standard_error']:.2f}"
        parts.append(f"{one['points']:+.2f}{error} points on {what}")
    seeds = next(iter(worth.values()))["seeds"]
    sure = "one seed: no standard error" if seeds == 1 else f"{seeds} seeds, ± standard error"
    return f"TPE minus random search: {', '.join(parts)} ({sure}; {SHARED})"


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _searched(name: str, result: SearchResult, space: HeadSpace, test: TestRows | None) -> Row:
    best = result.best
    assert best.value is not None and best.epoch is not None
    detail = f"{space.spec(best.params).describe()}; trial {best.number}, epoch {best.epoch + 1}"
    score = None if test is None else test.accuracy(result.head())
    return Row(name, score, best.value, detail, result.budget["seconds"])


def _fitted(
    cache: Path,
    tuned: SearchResult,
    space: HeadSpace,
    source: Source,
    test: TestRows | None,
    classes: int,
    seed: int,
) -> list[Row]:
    """Fit the baselines, or read those that an earlier run of the same search has written to ``cache``.

    A row of another winner, or scored on other test rows, is not read. Where rows are read chunk by chunk, what needs
    them all in memory is a row that says so.
    """
    spec = space.spec(tuned.best.params)
    recipe = tuned.recipe
    key = {"test": None if test is None else test.fingerprint, "winner": asdict(spec)}
    content = read_json(cache) if cache.exists() else {}
    same = isinstance(content, dict) and content.get("key") == json.loads(json.dumps(key))
    done = {entry["name"]: Row(**entry) for entry in content["rows"]} if same else {}

    def linear() -> Baseline:
        return linear_head(
            source,
            None,
            spec.learning_rate,
            classes=classes,
            epochs=recipe["epochs"],
            batch_size=recipe["batch_size"],
            seed=seed,
            dtype=recipe["dtype"],
            optimizer=spec.optimizer,
        )

    plan: dict[str, Callable[[], Baseline] | None] = {
        "linear head, same learning rate": linear,
        "logistic regression": None,
        "k-NN": None,
    }
    if isinstance(source, Rows):
        plan["logistic regression"] = partial(logistic_regression, source, classes=classes, seed=seed)
        plan["k-NN"] = partial(k_nearest, source, classes=classes)
    rows = []
    for name, fit in plan.items():
        if name not in done:
            if fit is None:
                rows.append(Row(name, None, None, STREAMED, 0.0))
                continue
            fitted = fit()
            score = None if test is None else test.accuracy(fitted.predictor)
            done[name] = Row(name, score, fitted.validation_accuracy, fitted.detail, fitted.seconds)
            write_json(cache, {"key": key, "rows": [asdict(row) for row in done.values()]})
            del fitted  # before the next one takes memory
        rows.append(done[name])
    return rows
