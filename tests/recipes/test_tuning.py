"""The table beside a search: selection on held-out rows, the test rows once, and whether TPE was worth it."""

import json
import statistics

import pytest
import torch
from sklearn.datasets import load_digits

from sslfast.data import holdout
from sslfast.errors import DataError
from sslfast.recipes import tuning
from sslfast.recipes.tuning import RANDOM, TUNED, check_test_rows, tune_and_compare, worth_in_words
from sslfast.search import HeadSpace

features, labels = load_digits(return_X_y=True)
FEATURES, LABELS = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
TEST = FEATURES[1400:], LABELS[1400:]


def parts(seed):
    rest, held_out = (torch.as_tensor(rows) for rows in holdout(LABELS[:1400].numpy(), 0.2, seed))
    return (FEATURES[rest], LABELS[rest]), (FEATURES[held_out], LABELS[held_out])


def tune(out, test=TEST, seeds=(0,), **options):
    defaults = {"trials": 4, "epochs": 3, "parallel": 2, "dtype": "float32", "study_name": "s"}
    return tune_and_compare(
        parts, test, HeadSpace(units=(128, 256)), out=out, classes=tuple("0123456789"), seeds=seeds,
        **{**defaults, **options},
    )  # fmt: skip


def test_two_seeds_give_mean_deviation_and_the_difference_with_its_error(tmp_path):
    results, table = tune(tmp_path / "run", seeds=(0, 1))
    assert json.loads((tmp_path / "run" / "table.json").read_text()) == table
    names = [row["name"] for row in table["rows"]]
    assert names == [TUNED, "linear head, same learning rate", "logistic regression", "k-NN", RANDOM]
    for row in table["rows"]:
        scores = [one["test_accuracy"] for one in row["seeds"]]
        assert row["test_accuracy"] == statistics.mean(scores) and row["test_deviation"] == statistics.stdev(scores)
        assert 0.3 < row["test_accuracy"] <= 1
    assert [result.recipe["seed"] for result in results] == [0, 1]
    for result in results:
        head = result.head()
        right = float((head(TEST[0]).argmax(1) == TEST[1]).double().mean())
        assert right in [one["test_accuracy"] for one in table["rows"][0]["seeds"]]
    ours, random = (next(row for row in table["rows"] if row["name"] == name)["seeds"] for name in (TUNED, RANDOM))
    gaps = [100 * (a["test_accuracy"] - b["test_accuracy"]) for a, b in zip(ours, random, strict=True)]
    worth = table["worth"]["test"]
    assert worth["points"] == pytest.approx(statistics.mean(gaps))
    assert worth["standard_error"] == pytest.approx(statistics.stdev(gaps) / 2**0.5)
    assert "2 seeds" in worth_in_words(table["worth"])


def test_random_search_has_the_same_budget_and_nothing_of_tpe(tmp_path):
    results, _ = tune(tmp_path / "run")
    random = json.loads((tmp_path / "run" / "random" / "result.json").read_text())
    assert random["sampler"]["name"] == "RandomSampler" and "n_ei_candidates" not in random["sampler"]
    assert {key: random["budget"][key] for key in ("trials", "epochs", "batch_size")} == {
        key: results[0].budget[key] for key in ("trials", "epochs", "batch_size")
    }


def test_a_run_that_is_resumed_fits_nothing_twice(tmp_path, monkeypatch):
    _, first = tune(tmp_path / "run")
    monkeypatch.setattr(tuning, "k_nearest", None)
    monkeypatch.setattr(tuning, "logistic_regression", None)
    _, again = tune(tmp_path / "run", resume=True)
    assert first == again


def test_without_test_rows_and_without_baselines(tmp_path):
    _, table = tune(tmp_path / "run", test=None, baselines=False)
    assert [row["name"] for row in table["rows"]] == [TUNED]
    assert table["rows"][0]["test_accuracy"] is None and table["worth"] is None
    _, table = tune(tmp_path / "other", test=None)
    assert "test" not in table["worth"] and "one seed" in worth_in_words(table["worth"])


def test_test_rows_of_another_backbone_or_label_are_refused():
    train = {"backbone": {"fingerprint": "a"}, "preprocess": "p"}
    labels = torch.tensor([0, 1, 2])
    assert check_test_rows(train, dict(train), 3, labels) is labels
    with pytest.raises(DataError, match="another backbone"):
        check_test_rows(train, {**train, "backbone": {"fingerprint": "b"}}, 3, labels)
    with pytest.raises(DataError, match="another preprocess"):
        check_test_rows(train, {**train, "preprocess": "q"}, 3, labels)
    with pytest.raises(DataError, match="from 0 to 2, there are 2 classes"):
        check_test_rows(train, train, 2, labels)
    with pytest.raises(DataError, match="no labels"):
        check_test_rows(train, train, 2, None)
