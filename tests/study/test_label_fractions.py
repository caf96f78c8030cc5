"""The study of label fractions, end to end on digits; kills; which images are labelled and unlabelled."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_study import CONFIG

from sslfast.bench.studies import without_times
from sslfast.cli.main import main
from sslfast.data import load
from sslfast.errors import UsageError
from sslfast.run import Run
from sslfast.study.config import LabelFractionsConfig, decided
from sslfast.study.images import fraction_of, load_images, nested, part
from sslfast.study.label_fractions import needed, run_label_fractions

WORDS = (
    *("study", "label-fractions", "--data", "digits", "--images", "400", "--test-images", "120", "--labelled", "0.3"),
    *("0.9", "--unlabelled", "0.5", "--arms", "autoencoder", "simclr", "barlow-twins", "--pretrain-epochs", "1"),
    *("--epochs", "2", "--batch-size", "16", "--pretrain-batch-size", "128", "--dtype", "float32", "--device", "cpu"),
    *("--threshold", "0.15", "--targets", "0.12", "1.0"),
)


def test_the_whole_study(tmp_path, capsys):
    out = tmp_path / "study"
    assert main([*WORDS, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "next: sslfast study label-fractions --preset paper" in shown.err
    table = json.loads((out / "table.json").read_text())
    arms = {(row["arm"], row["unlabelled"], row["labelled"]) for row in table["rows"]}
    assert arms == {("supervised", None, share) for share in (0.3, 0.9)} | {
        (arm, 0.5, share) for arm in ("autoencoder", "simclr", "barlow-twins") for share in (0.3, 0.9)
    }
    for row in table["rows"]:
        assert 0 <= row["test_f1"] <= 1 and len(row["curve"]) == 2 and row["iteration_ms"] > 0
        assert row["images"] == round(row["labelled"] * 360)
        if row["arm"] != "supervised":
            assert row["pretrain_seconds"] is not None and row["pretrain_loss"] > 0
            if row["time_to_accuracy"] is not None:
                total = row["time_to_accuracy_with_pretraining"]
                assert total == pytest.approx(row["time_to_accuracy"] + row["pretrain_seconds"])
    supervised = next(row for row in table["rows"] if row["arm"] == "supervised" and row["labelled"] == 0.9)
    assert supervised["test_accuracy"] > 0.5 and supervised["time_to_accuracy"] is not None
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert pictures == sorted(
        ["f1.png", "iteration.png", "needed.png", "time_to_accuracy.png", "time_to_accuracy_with_pretraining.png"]
    )
    # The same folder again: nothing is trained; another configuration is refused; more seeds go on.
    assert main([*WORDS, "--out", str(out), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == table
    assert main([*WORDS, "--out", str(out)]) == 2
    assert main([*WORDS, "--out", str(out), "--resume", "--dropout", "0.9"]) == 2
    assert "dropout" in capsys.readouterr().err


def test_another_number_of_images_is_told_as_such(tmp_path):
    config = LabelFractionsConfig(data="digits", images=200, test_images=60)
    with Run(tmp_path, decided(config, ["some images"])) as run:
        run.log("begun")
    with pytest.raises(UsageError, match="images=200, now it is 300"):
        Run(tmp_path, decided(replace(config, images=300), ["more images"]), resume=True)
    with pytest.raises(UsageError, match="pixels"):
        Run(tmp_path, decided(config, ["other images"]), resume=True)


def test_a_backbone_that_is_not_there_is_refused_before_anything_is_trained(tmp_path, capsys):
    words = [*WORDS, "--no-supervised", "--backbone", "resnet19", "--out", str(tmp_path / "study")]
    assert main(words) == 2
    assert "resnet19" in capsys.readouterr().err and not (tmp_path / "study").exists()


def test_seeds_are_added_to_a_finished_study(tmp_path):
    config = LabelFractionsConfig(
        data="digits", images=200, test_images=60, arms=("autoencoder",), labelled=(0.5,), unlabelled=(0.5,),
        supervised=False, pretrain_epochs=1, epochs=1, batch_size=32, dtype="float32",
    )  # fmt: skip
    images = load_images(config, None)
    one = run_label_fractions(config, images, tmp_path, device="cpu")
    two = run_label_fractions(replace(config, seeds=2), images, tmp_path, resume=True, device="cpu")
    assert one["rows"][0]["test_accuracy_deviation"] is None
    assert two["rows"][0]["test_accuracy_seeds"] == 2 and two["rows"][0]["test_accuracy_deviation"] is not None


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_killed_study_ends_like_an_unbroken_one(tmp_path, one_thread):
    broken = tmp_path / "broken"
    program = str(Path(__file__).with_name("killed_study.py"))
    process = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", program, str(broken)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # While a head is trained on the second encoder: one cell is finished, one is begun, one pre-training is done.
    while process.poll() is None and not list(broken.glob("cells/autoencoder*1.0*/metrics.jsonl")):
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    images = load_images(CONFIG, None)
    assert not (broken / "table.json").exists()
    one = run_label_fractions(CONFIG, images, broken, resume=True, device="cpu")
    other = run_label_fractions(CONFIG, images, tmp_path / "whole", device="cpu")
    assert without_times(one) == without_times(other)
    assert [path.name for path in (broken / "cells").iterdir() if path.is_dir()] == []


def test_fractions_are_nested_stratified_and_far_apart():
    digits = part(load("digits", "train"), 500)
    counts = np.bincount(digits.labels)
    assert counts.max() - counts.min() <= 4  # of about 50
    order = nested(digits.labels, 3)
    assert sorted(order) == list(range(500)) and not np.array_equal(order, nested(digits.labels, 4))
    for share in (0.1, 0.5):
        some = fraction_of(digits, share, 3)
        shares = np.bincount(some.labels) / (share * counts)
        assert np.abs(shares - 1).max() < 0.35 and len(some) == round(500 * share)
        assert set(some.ids) <= set(fraction_of(digits, 0.7, 3).ids)
    one, other = fraction_of(digits, 0.5, 3), fraction_of(digits, 0.5, 3, from_the_end=True)
    assert not set(one.ids) & set(other.ids)
    with pytest.raises(UsageError, match="10 classes"):
        fraction_of(digits, 0.01, 0)


def test_validation_images_are_neither_labelled_nor_unlabelled():
    config = LabelFractionsConfig(data="digits", images=300, test_images=100)
    images = load_images(config, None)
    train, val = images.divided(config.val_fraction, 0)
    assert not set(train.ids) & set(val.ids) and len(train) + len(val) == 300
    assert len(images.test) == 100 and images.test.split == "test"
    assert images.divided(config.val_fraction, 1)[1].ids != val.ids


def test_the_price_of_an_accuracy_is_the_smallest_amount_that_reached_it():
    def row(labelled, accuracy):
        return {"arm": "a", "unlabelled": 1.0, "labelled": labelled, "test_accuracy": accuracy, "images": 10 * labelled}

    found = needed([row(0.9, 0.7), row(0.1, 0.3), row(0.5, 0.8), row(0.3, None)], (0.3, 0.65, 0.9))
    assert [one["labelled"] for one in found] == [0.1, 0.5, None]


def test_a_fraction_of_too_few_images_is_refused_before_anything_is_trained(tmp_path, capsys):
    words = [*WORDS, "--labelled", "0.01", "--out", str(tmp_path / "study")]
    assert main(words) == 2
    assert "take more images" in capsys.readouterr().err
    assert not (tmp_path / "study" / "cells").exists()
