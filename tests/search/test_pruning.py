"""Pruning: off by default, the same trials stopped whether or not the search was broken off."""

import dataclasses

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from sslfast.errors import UsageError
from sslfast.search import HeadSpace, search_heads
from sslfast.search import study as study_module
from sslfast.search.pruning import Pruning

WIDE = HeadSpace(units=(128, 256), learning_rate=(1e-5, 1e-1))


def search(digits, out, **options):
    defaults = {"trials": 12, "epochs": 9, "parallel": 4, "dtype": "float32", "sampler": "random"}
    return search_heads(*digits, WIDE, out=out, **{**defaults, **options})


def trials_of(result):
    return [dataclasses.replace(trial, seconds=0.0, finished=0.0) for trial in result.trials]


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_bad_trials_stop_early_and_the_best_is_found_all_the_same(digits, tmp_path, pruner):
    whole = search(digits, tmp_path / "whole")
    pruned = search(digits, tmp_path / pruner, pruner=pruner)
    stopped = [trial for trial in pruned.trials if trial.state == "PRUNED"]
    assert stopped and all(trial.state == "COMPLETE" for trial in whole.trials)
    assert pruned.best.value == whole.best.value
    for trial in stopped:
        assert trial.value is None and len(trial.intermediate) < 9 and "pruned after epoch" in trial.reason
        assert trial.intermediate == whole.trials[trial.number].intermediate[: len(trial.intermediate)]
    assert pruned.recipe["pruner"]["name"] == pruner


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_broken_search_prunes_what_an_unbroken_one_prunes(digits, tmp_path, monkeypatch, pruner):
    whole = search(digits, tmp_path / "whole", pruner=pruner)
    plain = study_module.Trials.finish
    finished = []

    def break_off(trials, trial, *arguments):
        plain(trials, trial, *arguments)
        finished.append(trial)
        if len(finished) == 6:  # in the midst of the second batch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study_module.Trials, "finish", break_off)
        with pytest.raises(KeyboardInterrupt):
            search(digits, tmp_path / "run", pruner=pruner)
    assert trials_of(search(digits, tmp_path / "run", pruner=pruner, resume=True)) == trials_of(whole)


def test_decisions_are_those_of_optunas_pruner():
    study = optuna.create_study(direction="maximize", storage=InMemoryStorage())
    for value in (0.5, 0.6, 0.7, 0.8, 0.9):
        trial = study.ask()
        for epoch in range(6):
            trial.report(value, epoch)
        study.tell(trial, value)
    study.ask()
    before = study.get_trials(states=[TrialState.COMPLETE])
    batch = {5: study.get_trials()[5]}
    pruning = Pruning("median", 6, before, batch)
    assert not pruning.stops(5, 0, 0.1)  # the warm-up
    assert pruning.stops(5, 1, 0.69)
    assert not Pruning("median", 6, before, batch).stops(5, 1, 0.71)
    assert not Pruning("median", 6, before, batch).stops(5, 5, 0.1)  # there is nothing left to save
    assert not Pruning("none", 6, before, batch).stops(5, 1, 0.0)


def test_an_unknown_pruner_or_sampler_is_refused(digits, tmp_path):
    for name in ("pruner", "sampler"):
        with pytest.raises(UsageError, match=f"{name} must be one of"):
            search(digits, tmp_path / "run", **{name: "hyper"})
