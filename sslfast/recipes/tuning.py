"""A head search with what it must be compared with: the paper's baseline, others, and random search."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslfast.errors import DataError
from sslfast.evaluate import Baseline, accuracy, k_nearest, linear_head, logistic_regression, predict_probabilities
from sslfast.files import read_json, write_json
from sslfast.progress import console
from sslfast.recipes.rows import Row
from sslfast.search import HeadSpace, SearchResult, search_heads
from sslfast.search.sources import Source

Labelled = tuple[Tensor, Tensor]

TUNED = "tuned head (TPE)"
RANDOM = "random search, same budget"


def tune_and_compare(
    parts: Callable[[int], tuple[Labelled | Source, Labelled | None]],
    test: Labelled | None,
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
        parts: from a seed to training and validation rows; beside a ``Source`` random search is the only baseline.
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
    results, rows = [], []
    for seed in seeds:
        folder = out if len(seeds) == 1 else out / f"seed-{seed}"
        name = study_name if len(seeds) == 1 else f"{study_name}-{seed}"
        train, val = parts(seed)

        def search(
            folder: Path,
            sampler: str,
            study: str,
            resume: bool,
            train: Labelled | Source = train,
            val: Labelled | None = val,
            seed: int = seed,
        ) -> SearchResult:
            return search_heads(
                train, val, space, out=folder, classes=classes, seed=seed, sampler=sampler, storage=storage,
                study_name=study, resume=resume, title="random search" if sampler == "random" else "tune", **options,
            )  # fmt: skip

        tuned = search(folder, "tpe", name, resume)
        results.append(tuned)
        found = [_searched(TUNED, tuned, space, test)]
        if baselines:
            # A folder that was begun is gone on with, whether or not the search above was.
            other = search(folder / "random", "random", f"{name}-random", True)
            if isinstance(train, tuple) and val is not None:
                found += _fitted(folder / "baselines.json", tuned, space, train, val, test, len(classes), seed)
            else:
                console.print("rows are read chunk by chunk: baselines that need them all in memory are left out")
            found.append(_searched(RANDOM, other, space, test))
        rows.append(found)
    table = make_table(rows, results, list(seeds), None if test is None else len(test[1]))
    write_json(out / "table.json", table)
    return results, table


def make_table(
    rows: list[list[Row]], results: list[SearchResult], seeds: list[int], test_rows: int | None
) -> dict[str, Any]:
    """Put the seeds' rows together: mean and standard deviation of each classifier, and whether TPE was worth it."""
    together = []
    for same in zip(*rows, strict=True):
        validation = [row.validation_accuracy for row in same]
        test = [row.test_accuracy for row in same if row.test_accuracy is not None]
        tested = len(test) == len(same)
        together.append(
            {
                "name": same[0].name,
                "test_accuracy": statistics.mean(test) if tested else None,
                "test_deviation": _deviation(test) if tested else None,
                "validation_accuracy": statistics.mean(validation),
                "validation_deviation": _deviation(validation),
                "detail": same[0].detail if len(same) == 1 else f"first seed: {same[0].detail}",
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
    return f"TPE minus random search: {', '.join(parts)} ({sure})"


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _searched(name: str, result: SearchResult, space: HeadSpace, test: Labelled | None) -> Row:
    best = result.best
    assert best.value is not None and best.epoch is not None
    detail = f"{space.spec(best.params).describe()}; trial {best.number}, epoch {best.epoch + 1}"
    return Row(name, _score(result.head(), test), best.value, detail, result.budget["seconds"])


def _fitted(
    cache: Path,
    tuned: SearchResult,
    space: HeadSpace,
    train: Labelled,
    val: Labelled,
    test: Labelled | None,
    classes: int,
    seed: int,
) -> list[Row]:
    """Fit the baselines, or read those that an earlier run of the same search has written to ``cache``."""
    content = read_json(cache) if cache.exists() else []
    done = {entry["name"]: Row(**entry) for entry in content}
    spec = space.spec(tuned.best.params)
    recipe = tuned.recipe

    def linear() -> Baseline:
        return linear_head(
            train,
            val,
            spec.learning_rate,
            classes=classes,
            epochs=recipe["epochs"],
            batch_size=recipe["batch_size"],
            seed=seed,
            dtype=recipe["dtype"],
            optimizer=spec.optimizer,
        )

    plan: dict[str, Callable[[], Baseline]] = {
        "linear head, same learning rate": linear,
        "logistic regression": lambda: logistic_regression(train, val, classes=classes, seed=seed),
        "k-NN": lambda: k_nearest(train, val, classes=classes),
    }
    rows = []
    for name, fit in plan.items():
        if name not in done or (done[name].test_accuracy is None) != (test is None):
            fitted = fit()
            score = _score(fitted.predictor, test)
            done[name] = Row(name, score, fitted.validation_accuracy, fitted.detail, fitted.seconds)
            write_json(cache, [asdict(row) for row in done.values()])
        rows.append(done[name])
    return rows


def _score(predictor: nn.Module, test: Labelled | None) -> float | None:
    if test is None:
        return None
    return accuracy(test[1].numpy(), predict_probabilities(predictor.eval(), test[0]).argmax(1).numpy())


def check_test_rows(train: dict[str, Any], test: dict[str, Any], classes: int, labels: Tensor | None) -> Tensor:
    """Refuse test features that another backbone made, or labels that training does not know; give the labels.

    Args:
        train: manifest of the training features.
        test: manifest of the test features.
        classes: number of classes.
        labels: of the test features.

    Raises:
        DataError: they do not fit.
    """
    for key in ("preprocess", "backbone"):
        one, other = train.get(key), test.get(key)
        if key == "backbone":
            one, other = (value.get("fingerprint") if isinstance(value, dict) else value for value in (one, other))
        if one != other:
            raise DataError(f"the test features were extracted with another {key} than the training features")
    if labels is None or not len(labels):
        raise DataError("the test features have no labels to score with")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(f"test labels go from {int(labels.min())} to {int(labels.max())}, there are {classes} classes")
    return torch.as_tensor(labels)
