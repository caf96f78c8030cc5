"""The table beside a search: selection on held-out rows, the test rows once, and whether TPE was worth it."""

import json
import statistics
import subprocess
import sys
import weakref

import pytest
import torch
from sklearn.datasets import load_digits
from stores import clusters, write_store

from sslfast.cli.main import main
from sslfast.errors import DataError, UsageError
from sslfast.recipes import tuning
from sslfast.recipes.scored import TestRows
from sslfast.recipes.tuning import RANDOM, STREAMED, TUNED, tune_and_compare, worth_in_words
from sslfast.search import HeadSpace, sources
from sslfast.search.sources import open_rows

features, labels = load_digits(return_X_y=True)
FEATURES, LABELS = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
NAMES = tuple("0123456789")
LINEAR = "linear head, same learning rate"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), FEATURES[None, :1400], LABELS[:1400])


@pytest.fixture(scope="module")
def test_store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("test"), FEATURES[None, 1400:], LABELS[1400:], split="test")


@pytest.fixture
def tune(store, test_store):
    def call(out, test=test_store, seeds=(0,), memory="load", **options):
        defaults = {"trials": 4, "epochs": 3, "parallel": 2, "dtype": "float32", "study_name": "s"}
        return tune_and_compare(
            lambda seed: open_rows(store, 0.2, seed, memory=memory),
            None if test is None else TestRows(test, store, NAMES),
            HeadSpace(units=(128, 256)), out=out, classes=NAMES, seeds=seeds, **{**defaults, **options},
        )  # fmt: skip

    return call


def test_two_seeds_give_mean_deviation_and_the_difference_with_its_error(tune, tmp_path):
    results, table = tune(tmp_path / "run", seeds=(0, 1))
    assert json.loads((tmp_path / "run" / "table.json").read_text()) == table
    names = [row["name"] for row in table["rows"]]
    assert names == [TUNED, LINEAR, "logistic regression", "k-NN", RANDOM]
    for row in table["rows"]:
        scores = [one["test_accuracy"] for one in row["seeds"]]
        assert row["test_accuracy"] == statistics.mean(scores) and row["test_deviation"] == statistics.stdev(scores)
        assert 0.3 < row["test_accuracy"] <= 1
    assert [result.recipe["seed"] for result in results] == [0, 1]
    for result in results:
        head = result.head()
        right = float((head(FEATURES[1400:]).argmax(1) == LABELS[1400:]).double().mean())
        assert right in [one["test_accuracy"] for one in table["rows"][0]["seeds"]]
    ours, random = (next(row for row in table["rows"] if row["name"] == name)["seeds"] for name in (TUNED, RANDOM))
    gaps = [100 * (a["test_accuracy"] - b["test_accuracy"]) for a, b in zip(ours, random, strict=True)]
    worth = table["worth"]["test"]
    assert worth["points"] == pytest.approx(statistics.mean(gaps))
    assert worth["standard_error"] == pytest.approx(statistics.stdev(gaps) / 2**0.5)
    assert "2 seeds" in worth_in_words(table["worth"])


def test_a_table_has_all_seeds_of_its_folder(tune, tmp_path):
    options = {"baselines": False, "trials": 2, "epochs": 1, "resume": True}
    tune(tmp_path / "one", **options)
    before = (tmp_path / "one" / "table.json").read_bytes()
    with pytest.raises(UsageError, match=r"holds the search of one seed, asked for are \[0, 1\]"):
        tune(tmp_path / "one", seeds=(0, 1), **options)
    assert (tmp_path / "one" / "table.json").read_bytes() == before
    tune(tmp_path / "two", seeds=(0, 1), **options)
    for seeds in ((0,), (1, 2)):
        with pytest.raises(UsageError, match=r"holds the search of the seeds \[0, 1\]"):
            tune(tmp_path / "two", seeds=seeds, **options)
    _, table = tune(tmp_path / "two", seeds=(0, 1, 2), **options)
    assert table["seeds"] == [0, 1, 2]


def test_random_search_has_the_same_budget_and_nothing_of_tpe(tune, tmp_path):
    results, _ = tune(tmp_path / "run")
    random = json.loads((tmp_path / "run" / "random" / "result.json").read_text())
    assert random["sampler"]["name"] == "RandomSampler" and "n_ei_candidates" not in random["sampler"]
    assert {key: random["budget"][key] for key in ("trials", "epochs", "batch_size")} == {
        key: results[0].budget[key] for key in ("trials", "epochs", "batch_size")
    }


def test_a_run_that_is_resumed_fits_nothing_twice(tune, tmp_path, monkeypatch):
    _, first = tune(tmp_path / "run")
    for name in ("k_nearest", "logistic_regression", "linear_head"):
        monkeypatch.setattr(tuning, name, lambda *arguments, **options: pytest.fail("fitted twice"))
    _, again = tune(tmp_path / "run", resume=True)
    assert first == again


def test_without_test_rows_and_without_baselines(tune, tmp_path):
    _, table = tune(tmp_path / "run", test=None, baselines=False)
    assert [row["name"] for row in table["rows"]] == [TUNED]
    assert table["rows"][0]["test_accuracy"] is None and table["worth"] is None
    _, table = tune(tmp_path / "other", test=None)
    assert "test" not in table["worth"] and "one seed" in worth_in_words(table["worth"])


def scores(table, what="test_accuracy"):
    return {row["name"]: row[what] for row in table["rows"]}


def test_a_resumed_table_is_scored_on_one_test_store(tune, tmp_path):
    half = write_store(tmp_path / "half", FEATURES[None, 1400:1500], LABELS[1400:1500].flip(0), split="other")
    tune(tmp_path / "run")
    _, resumed = tune(tmp_path / "run", half, resume=True)
    _, whole = tune(tmp_path / "whole", half)
    assert scores(resumed) == scores(whole) and max(scores(resumed).values()) < 0.3


def test_the_table_is_the_same_in_either_form_but_for_what_needs_all_rows(tune, tmp_path):
    _, loaded = tune(tmp_path / "run")
    _, streamed = tune(tmp_path / "streamed", memory="stream")
    for what in ("test_accuracy", "validation_accuracy"):
        one, other = scores(loaded, what), scores(streamed, what)
        assert list(one) == list(other) == [TUNED, LINEAR, "logistic regression", "k-NN", RANDOM]
        for name in (TUNED, LINEAR, RANDOM):
            assert one[name] == other[name]
        assert other["logistic regression"] is None and other["k-NN"] is None
    assert scores(streamed, "detail")["k-NN"] == STREAMED
    # A folder of one form is gone on with in the other.
    _, again = tune(tmp_path / "run", memory="stream", resume=True)
    assert again == loaded
    _, again = tune(tmp_path / "streamed", memory="load", resume=True)
    assert scores(again) == scores(loaded)


def test_the_rows_of_a_seed_are_let_go_before_the_next_ones_are_read(tune, tmp_path, monkeypatch):
    alive = []

    def watched(store, validation_share, seed, *, memory):
        assert not any(rows() is not None for rows in alive)
        rows = sources.open_rows(store, validation_share, seed, memory=memory)
        alive.append(weakref.ref(rows))
        return rows

    monkeypatch.setitem(globals(), "open_rows", watched)
    tune(tmp_path / "run", seeds=(0, 1, 2), trials=1, epochs=1)
    assert len(alive) == 3


def test_test_rows_that_do_not_fit_are_refused(store, test_store, tmp_path):
    assert len(TestRows(test_store, store, NAMES)) == 397
    rows, right = FEATURES[None, 1400:], LABELS[1400:]

    def refused(name, says, features=rows, labels=right, **manifest):
        other = write_store(tmp_path / name, features, labels, split="test", **manifest)
        with pytest.raises(DataError, match=says):
            TestRows(other, store, NAMES)
        return other

    other = refused("order", "in another order", classes=list("1023456789"))
    refused("few", "lack class '9': 9 classes against 10", rows[:, right < 9], right[right < 9])
    refused("many", "training features lack class '10'", classes=[*NAMES, "10"])
    refused("same", "holds the same features", FEATURES[None, :1400], LABELS[:1400])
    refused("label", "from -1 to 9, there are 10 classes", labels=torch.where(right == 3, -1, right))
    spoiled = rows.clone()
    spoiled[0, 300, 5] = torch.nan
    refused(
        "spoiled", r"shard-00001\.safetensors .* row 50 of the shard, row 300 of the store", spoiled, shard_rows=250
    )
    with pytest.raises(DataError, match="holds the same images"):
        TestRows(store, store, NAMES)
    other = write_store(tmp_path / "other", rows, right, split="test")
    for key, value in (("backbone", {"fingerprint": "b"}), ("preprocess", "q")):
        monkey = {**other.manifest, key: value}
        with pytest.raises(DataError, match=f"another {key}"):
            TestRows(type(other)(other.path, monkey), store, NAMES)


def test_bad_test_rows_are_told_before_anything_is_written(store, tmp_path, capsys):
    words = ["tune", "--features", str(store.path), "--test-features", str(store.path), "--out", str(tmp_path / "run")]
    assert main(words) == 1
    assert "holds the same images" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_labels_that_no_class_has_are_told_with_the_row_of_the_store(tmp_path, capsys):
    for label, classes in ((-1, list("01234")), (7, list("01234")), (-1, None)):
        rows, labels = clusters(300, 9)
        labels[200] = label
        store = write_store(tmp_path / f"{label}{classes is None}", rows, labels, classes=classes)
        assert main(["tune", "--features", str(store.path), "--out", str(tmp_path / "run")]) == 1
        said = capsys.readouterr().err
        assert f"row 200 of {store.path} (train/000200) has label {label}" in " ".join(said.split()), said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_baselines_are_fitted_where_the_search_trains(store, test_store, tmp_path):
    for memory in ("load", "stream"):
        _, table = tune_and_compare(
            lambda seed, memory=memory: open_rows(store, 0.2, seed, memory=memory, device="cuda"),
            TestRows(test_store, store, NAMES), HeadSpace(units=(128, 256)), out=tmp_path / memory, classes=NAMES,
            seeds=(0,), trials=2, epochs=3, device="cuda", dtype="auto", study_name="s",
        )  # fmt: skip
        for name, accuracy in scores(table).items():
            left_out = memory == "stream" and name in ("logistic regression", "k-NN")
            assert accuracy is None if left_out else accuracy > 0.5


LIMITED = """
import resource, sys
from sslfast.cli.main import main
small, large, megabytes, *rest = sys.argv[1:]
assert main(["tune", "--features", small, "--out", large + "-small", *rest]) == 0  # threads, modules, work space
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (int(megabytes) << 20),) * 2)
sys.exit(main(["tune", "--features", large, "--out", large + "-large", *rest]))
"""


@pytest.mark.slow
def test_loading_with_all_baselines_takes_little_more_than_the_rows(tmp_path):
    """256 MiB of rows as float32, one view of them once more in a baseline; all else takes less than 200 MiB."""
    paths = []
    for name, rows in (("small", 200), ("large", 32768)):
        features, labels = clusters(rows, 1024, views=2)
        views = ("identity", "flip")
        paths.append(str(write_store(tmp_path / name, features.bfloat16(), labels, views).path))
    rest = ["--trials", "1", "--epochs", "1", "--seeds", "2", "--memory", "load", "--learning-rate-from", "0.01"]
    words = [sys.executable, "-P", "-c", LIMITED, *paths, "580", *rest]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
