"""Compares ways to draw a head search's trials: ``python -m sslfast.bench.samplers STORE TEST-STORE``.

All searches of all samplers go in lockstep: each draws its next batch from its own trials, then every head of every
search trains in one bank. A head's result depends on its search's seed and trial number and not on who trains beside
it, so each search is what it would be alone.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import TrialState, create_trial

from sslfast.bench.machine import machine
from sslfast.features import FeatureStore
from sslfast.files import write_json
from sslfast.models.head import HeadSpec
from sslfast.search.bank import HeadBank, can_use_half, stream
from sslfast.search.sampler import Sampler
from sslfast.search.sources import Rows, standardised
from sslfast.search.space import HeadSpace
from sslfast.search.train import Recipe, train_epoch, validation_accuracy

PINNED = {"constant_liar": True, "n_startup_trials": 10, "n_ei_candidates": 24}
FORMS = {
    "random search": Sampler("random"),
    "TPE, one by one (Optuna 4's default)": Sampler("tpe", {**PINNED, "multivariate": False, "constant_liar": False}),
    "TPE, Optuna 5's default": Sampler("tpe"),
    "TPE, multivariate and group": Sampler("tpe", {**PINNED, "multivariate": True, "group": True}),
    "TPE, fixed width": Sampler("tpe", {**PINNED, "multivariate": True, "group": False}, every_layer=True),
}


Job = tuple[int, int, HeadSpec]
"""Seed of a search, number of its trial, head."""


class Search:
    """One search: a sampler, a seed, and the trials so far."""

    def __init__(self, form: str, seed: int) -> None:
        self.form, self.seed = form, seed
        self.trials: list[optuna.trial.FrozenTrial] = []
        self.values: list[float] = []

    def draw(self, count: int, space: HeadSpace) -> list[HeadSpec]:
        """Draw a batch; its trials are running while the next ones are drawn."""
        for _ in range(count):
            number = len(self.trials)
            params, distributions = FORMS[self.form].draw(space, self.trials, self.seed, number)
            self.trials.append(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
        return [space.spec(trial.params) for trial in self.trials[-count:]]

    def tell(self, values: list[float]) -> None:
        """Finish the batch with validation accuracies."""
        for position, value in enumerate(values, len(self.trials) - len(values)):
            trial = self.trials[position]
            self.trials[position] = create_trial(value=value, params=trial.params, distributions=trial.distributions)
        self.values += values

    def winner(self, space: HeadSpace) -> Job:
        """Give the best trial."""
        best = max(range(len(self.values)), key=lambda number: (self.values[number], -number))
        return self.seed, best, space.spec(self.trials[best].params)


def train(jobs: list[Job], rows: Rows, recipe: Recipe, test: Rows | None = None) -> list[tuple[float, float]]:
    """Train heads together; give validation and, with ``test``, test accuracy at the best epoch."""
    # A bank has one seed; the number that decides first weights and dropout stands for seed and number.
    numbers = [stream(seed, number) % 2**31 for seed, number, _ in jobs]
    specs = [spec for _, _, spec in jobs]
    bank = HeadBank(
        specs, len(rows.mean), rows.classes, 0, optimizers=[recipe.optimizer(spec) for spec in specs], numbers=numbers,
        half=recipe.dtype == "bfloat16",
    )  # fmt: skip
    best = [(0.0, 0.0)] * len(jobs)
    if not jobs:
        return best
    rates = torch.tensor([spec.learning_rate for spec in specs], dtype=torch.float64)
    for epoch in range(recipe.epochs):
        train_epoch(bank, rows, recipe, epoch, rates)
        found = validation_accuracy(bank, rows)
        tested = found if test is None else validation_accuracy(bank, test)
        for index, (value, score) in enumerate(zip(found.tolist(), tested.tolist(), strict=True)):
            if value > best[index][0]:
                best[index] = value, score
    return best


def summary(searches: list[Search], tests: list[float], trials: int) -> dict[str, dict[str, Any]]:
    """Give, by sampler, mean and standard error over seeds of what was found, and the difference to random search."""
    found: dict[str, dict[str, list[float]]] = {}
    for search, test in zip(searches, tests, strict=True):
        so_far = [max(search.values[: number + 1]) for number in range(trials)]
        entry = found.setdefault(search.form, {"best": [], "half": [], "mean": [], "test": []})
        entry["best"].append(100 * so_far[-1])
        entry["half"].append(100 * so_far[trials // 2 - 1])
        entry["mean"].append(100 * statistics.mean(so_far[10:] or so_far))
        entry["test"].append(100 * test)
    random = found["random search"]
    return {
        form: {
            name: {
                **error_of(values),
                "against_random": error_of([ours - theirs for ours, theirs in zip(values, random[name], strict=True)]),
                "seeds": [round(value, 3) for value in values],
            }
            for name, values in entry.items()
        }
        for form, entry in found.items()
    }


def error_of(values: list[float]) -> dict[str, float]:
    """Give mean and its standard error."""
    return {
        "mean": round(statistics.mean(values), 4),
        "standard_error": round(statistics.stdev(values) / len(values) ** 0.5, 4),
    }


def main() -> None:
    """Compare, and write ``bench/results/samplers.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--rows", type=int, nargs=3, default=[2500, 2000, 10000], metavar="N", help="train, val, test")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench/results/samplers.json"))
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    store, test_store = FeatureStore.open(options.store), FeatureStore.open(options.test)
    features, labels = store.load(), store.labels
    test_features, test_labels = test_store.load(), test_store.labels
    assert labels is not None and test_labels is not None
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    many, held_out, tested = options.rows
    part, other = order[:many], order[many : many + held_out]
    classes = int(labels.max()) + 1
    train_rows = (features[part], labels[part])
    rows = standardised(train_rows, (features[other], labels[other]), classes)
    test = standardised(train_rows, (test_features[:tested], test_labels[:tested]), classes)
    recipe = Recipe(options.epochs, 64, dtype="bfloat16" if can_use_half() else "float32")
    space = HeadSpace.paper()
    results: dict[str, Any] = {}
    known: dict[Job, float] = {}
    for parallel in options.parallel:
        started = time.monotonic()
        searches = [Search(form, seed) for seed in range(options.seeds) for form in FORMS]
        for first in range(0, options.trials, parallel):
            count = min(parallel, options.trials - first)
            jobs = [
                (search.seed, first + index, spec)
                for search in searches
                for index, spec in enumerate(search.draw(count, space))
            ]
            # Samplers begin with the same random trials.
            missing = [job for job in dict.fromkeys(jobs) if job not in known]
            known |= dict(zip(missing, [value for value, _ in train(missing, rows, recipe)], strict=True))
            for index, search in enumerate(searches):
                search.tell([known[job] for job in jobs[index * count : (index + 1) * count]])
            print(f"parallel {parallel}: {first + count} trials, {time.monotonic() - started:.0f} s", flush=True)
        winners = list(dict.fromkeys(search.winner(space) for search in searches))
        scores = dict(zip(winners, [score for _, score in train(winners, rows, recipe, test)], strict=True))
        tests = [scores[search.winner(space)] for search in searches]
        results[f"parallel {parallel}"] = summary(searches, tests, options.trials)
        write_json(
            options.out,
            {
                "objective": f"best of {options.epochs} epochs, validation accuracy in percent; {many} training, "
                f"{held_out} validation, {tested} test rows of {labels.shape[0]} features of length "
                f"{features.shape[1]} ({store.manifest['dataset']['name']})",
                "seeds": options.seeds,
                "trials": options.trials,
                "samplers": {form: sampler.describe() for form, sampler in FORMS.items()},
                "results": results,
                "machine": machine("bench/samplers.py", "sslfast/search", "csrc/head_bank"),
                "optuna": optuna.__version__,
            },
        )


if __name__ == "__main__":
    main()
