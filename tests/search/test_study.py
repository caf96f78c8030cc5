import dataclasses
import json
import math

import pytest
import torch

from sslfast.errors import DataError, SslfastError, UsageError
from sslfast.models.head import Head, save_head
from sslfast.search import HeadSpace, SearchResult, search_heads
from sslfast.search import study as study_module

SMALL = HeadSpace(units=(128, 256))


def search(digits, out, **options):
    train, val = digits
    defaults = {"trials": 6, "epochs": 3, "parallel": 2, "dtype": "float32"}
    return search_heads(train, val, SMALL, out=out, **{**defaults, **options})


def trials_of(result):
    return [dataclasses.replace(trial, seconds=0.0, finished=0.0) for trial in result.trials]


@pytest.mark.parametrize("parallel", [1, 3])
def test_the_same_seed_gives_the_same_trials_and_another_seed_others(digits, tmp_path, parallel):
    first = search(digits, tmp_path / "a", parallel=parallel)
    again = search(digits, tmp_path / "b", parallel=parallel)
    other = search(digits, tmp_path / "c", parallel=parallel, seed=1)
    assert trials_of(first) == trials_of(again)
    assert [trial.params for trial in first.trials] != [trial.params for trial in other.trials]


def test_the_best_is_at_least_the_first_and_far_above_chance(digits, tmp_path):
    result = search(digits, tmp_path / "run", trials=8, epochs=6)
    assert result.best.value == max(trial.value for trial in result.trials) >= result.trials[0].value
    assert result.best.value > 0.8
    assert result.best.value == result.best.intermediate[result.best.epoch]
    features, labels = digits[1]
    right = result.head()(features).argmax(1) == labels
    assert int(right.sum()) / len(right) == result.best.value


def test_result_json_keeps_the_contract(digits, tmp_path):
    result = search(digits, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"number", "params", "value", "epoch"} <= set(content["best"])
    for trial in content["trials"]:
        assert {"number", "state", "params", "value", "epoch", "intermediate", "seconds"} <= set(trial)
        assert len(trial["intermediate"]) == 3
    assert {"trials", "epochs", "batch_size", "train_rows", "val_rows", "seconds"} <= set(content["budget"])
    assert content["sampler"]["multivariate"] is True and content["sampler"]["constant_liar"] is True
    assert SearchResult.load(tmp_path / "run") == result


def test_a_finished_search_is_refused_or_read_again(digits, tmp_path):
    first = search(digits, tmp_path / "run")
    with pytest.raises(UsageError, match="--resume"):
        search(digits, tmp_path / "run")
    (tmp_path / "run" / "head.safetensors").unlink()
    assert search(digits, tmp_path / "run", resume=True) == first
    features, labels = digits[1]
    assert int((first.head()(features).argmax(1) == labels).sum()) / len(labels) == first.best.value
    with pytest.raises(UsageError, match="seed"):
        search(digits, tmp_path / "run", resume=True, seed=9)
    (features, labels), val = digits
    with pytest.raises(UsageError, match="data"):
        search(((features + 1, labels), val), tmp_path / "run", resume=True)


def test_a_head_of_another_search_is_not_taken_for_the_winner(digits, tmp_path):
    """A folder may outlive its storage, and in the next one the same trial be another head."""
    first = search(digits, tmp_path / "run")
    path = tmp_path / "run" / "head.safetensors"
    wanted = first.head()
    other = dataclasses.replace(wanted.spec, units=(64,))
    save_head(Head(64, 10, other), path, tuple("0123456789"), "", {"trial": str(first.best.number)})
    again = search(digits, tmp_path / "run", resume=True)
    assert again == first and again.head().spec == wanted.spec
    assert all(map(torch.equal, again.head().state_dict().values(), wanted.state_dict().values()))


@pytest.mark.parametrize("damage", [lambda c: c[:-7], lambda c: c + b"\0" * 9, lambda c: c[: len(c) // 2]])
def test_a_damaged_journal_is_mended_and_the_search_ends_the_same(digits, tmp_path, capsys, damage):
    whole = search(digits, tmp_path / "whole")
    search(digits, tmp_path / "run")
    journal = tmp_path / "run" / "journal.log"
    journal.write_bytes(damage(journal.read_bytes()))
    (tmp_path / "run" / "result.json").unlink()
    assert trials_of(search(digits, tmp_path / "run", resume=True)) == trials_of(whole)
    assert (tmp_path / "run" / "journal.log.damaged-1").exists()
    assert "damaged line" in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_value_that_is_not_finite_fails_the_trial_and_is_never_best(digits, tmp_path, monkeypatch, value):
    plain = study_module.train_heads

    def spoiled(jobs, *arguments):
        found = plain(jobs, *arguments)
        return {
            number: dataclasses.replace(trained, value=value) if number in (0, 3) else trained
            for number, trained in found.items()
        }

    monkeypatch.setattr(study_module, "train_heads", spoiled)
    result = search(digits, tmp_path / "run")
    assert [trial.state for trial in result.trials] == ["FAIL", "COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert result.best.number not in (0, 3)
    assert result.trials[0].value is None and "finite" in result.trials[0].reason


def test_trials_that_all_diverge_end_in_one_line(digits, tmp_path):
    with pytest.raises(SslfastError, match="all 6 trials failed; the first: training diverged"):
        search_heads(*digits, HeadSpace(learning_rate=(1e30, 1e31)), out=tmp_path / "run", trials=6, epochs=1)


def test_two_views_are_both_seen(digits, tmp_path):
    (features, labels), val = digits
    other = features.flip(1)
    found = []
    for number, views in enumerate([(features, features), (features, other), (other, features)]):
        result = search(((torch.stack(views), labels), val), tmp_path / str(number), trials=2)
        assert result.budget["views"] == 2 and result.budget["train_rows"] == len(labels)
        found.append(tuple(trial.intermediate for trial in result.trials))
    assert len(set(found)) == 3


@pytest.mark.parametrize("name", ["trials", "epochs", "batch_size", "parallel"])
def test_a_count_of_zero_is_refused_and_nothing_is_written(digits, tmp_path, name):
    with pytest.raises(UsageError, match="at least 1, got 0"):
        search(digits, tmp_path / "run", **{name: 0})
    assert not (tmp_path / "run").exists()


def spoil_nan(features, labels):
    features[17, 3] = math.nan
    return features, labels


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_nan, "row 17"),
        (lambda features, labels: (features, labels[:-1]), "do not match"),
        (lambda features, labels: (features, labels.index_fill(0, torch.tensor([5]), 10)), "row 5 has label 10"),
        (lambda features, labels: (features, labels.index_fill(0, torch.tensor([5]), -1)), "row 5 has label -1"),
        (lambda features, labels: (features, labels.clamp(max=8)), "class '9' has no training row"),
        (lambda features, labels: (features, labels.double()), "whole numbers"),
        (lambda features, labels: (features[:, :60], labels), "length 60"),
        (lambda features, labels: (features[:0], labels[:0]), "no training rows"),
        (lambda features, labels: (features[0], labels), "shape"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(digits, tmp_path, spoil, says):
    (features, labels), val = digits
    with pytest.raises(DataError, match=says):
        search((spoil(features.clone(), labels.clone()), val), tmp_path / "run", classes=tuple("0123456789"))
    assert not (tmp_path / "run").exists()


def test_a_number_of_trials_that_is_none_is_refused_and_nothing_is_written(digits, tmp_path):
    with pytest.raises(UsageError, match=r"trials must be a whole number, got 2\.5"):
        search(digits, tmp_path / "run", trials=2.5)
    assert not (tmp_path / "run").exists()


def test_fewer_trials_than_a_batch_are_all_there_is(digits, tmp_path):
    few, enough = (search(digits, tmp_path / f"{parallel}", trials=3, parallel=parallel) for parallel in (10, 3))
    assert [trial.params for trial in few.trials] == [trial.params for trial in enough.trials]
    assert [trial.value for trial in few.trials] == [trial.value for trial in enough.trials]


def test_one_class_only_is_refused(digits, tmp_path):
    (features, labels), (val_features, val_labels) = digits
    zeros = ((features, labels * 0), (val_features, val_labels * 0))
    with pytest.raises(DataError, match="one class only"):
        search(zeros, tmp_path / "run")


def test_a_class_with_one_row_and_fewer_rows_than_a_batch_work(digits, tmp_path):
    (features, labels), val = digits
    rows = torch.cat([(labels == 7).nonzero()[:1, 0], (labels != 7).nonzero()[:40, 0]])
    result = search(((features[rows], labels[rows]), val), tmp_path / "run", trials=2, classes=tuple("0123456789"))
    assert result.best.value > 0.1
