"""The whole job: what it leaves, and that kills in any stage change nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from sslfast.cli.main import main
from sslfast.data import load

QUICK = ("--data", "digits", "--pretrain-epochs", "2", "--pretrain-batch-size", "256", "--trials", "4")
QUICK += ("--tune-epochs", "2", "--parallel", "2", "--image-size", "16", "--dtype", "float32")


def demo(out: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "sslfast.cli.main", "demo", *QUICK, "--out", str(out), "--device", "cpu", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    process = demo(folder, "--json")
    out, err = process.communicate()
    assert process.returncode == 0, err
    return folder, json.loads(out)


def what_matters(folder: Path) -> dict[str, object]:
    table = json.loads((folder / "table.json").read_text())
    tune = json.loads((folder / "tune" / "result.json").read_text())
    return {
        "rows": [{key: value for key, value in row.items() if key != "seconds"} for row in table["rows"]],
        "trials": [
            {key: value for key, value in trial.items() if key not in ("seconds", "finished")}
            for trial in tune["trials"]
        ],
        "backbone": json.loads((folder / "pretrain" / "result.json").read_text())["fingerprint"],
        "features": [
            (folder / "features" / part / "shard-00000.safetensors").read_bytes() for part in ("train", "test")
        ],
    }


@pytest.mark.slow
def test_it_leaves_everything(unbroken):
    folder, table = unbroken
    names = [row["name"] for row in table["rows"]]
    assert len(names) == 5 and "untrained" in names[3] and "raw pixels" in names[4]
    for row in table["rows"]:
        assert 0.1 < row["test_accuracy"] <= 1 and 0.1 < row["validation_accuracy"] <= 1
    assert table["budget"]["tune"]["trials"] == 4 and table["budget"]["pretrain"]["images"] == len(
        load("digits", "train")
    )
    for name in (
        "config.json",
        "table.json",
        "model.onnx",
        "report.html",
        "predictions.safetensors",
        "examples.safetensors",
    ):
        assert (folder / name).stat().st_size > 0
    assert [path.name for path in folder.iterdir() if path.name.startswith("model")] == ["model.onnx"]
    metadata = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(metadata["classes"]) == [str(digit) for digit in range(10)]


@pytest.mark.slow
def test_its_file_predicts_what_its_table_says(unbroken, tmp_path, capsys):
    folder, table = unbroken
    test = load("digits", "test")
    for index in range(len(test)):
        image, label = test[index]
        Image.fromarray(image).save(tmp_path / f"{index:04d}-{label}.png")
    assert main(["predict", "--model", str(folder / "model.onnx"), str(tmp_path), "--json"]) == 0
    images = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    right = [Path(entry["file"]).stem.split("-")[1] == entry["class"] for entry in images]
    assert len(right) == len(test)
    # The tuned head's row; the images go through PNG files and onnxruntime here.
    assert abs(np.mean(right) - table["rows"][0]["test_accuracy"]) < 1.5 / len(test)


@pytest.mark.slow
def test_kills_in_any_stage_change_nothing(unbroken, tmp_path):
    folder, _ = unbroken
    broken = tmp_path / "run"
    # One kill as soon as each of these is there: in every stage, and between them.
    signs = ("pretrain/metrics.jsonl", "pretrain/result.json", "features/train/manifest.json", "tune/journal.log")
    signs += ("tune/result.json", "baselines.json", "predictions.safetensors", "model.onnx")
    kills = 0
    for sign in signs:
        process = demo(broken, "--resume")
        while process.poll() is None and not (broken / sign).exists():
            time.sleep(0.002)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert kills >= len(signs) - 1
    last = demo(broken, "--resume")
    _, err = last.communicate()
    assert last.returncode == 0, err
    assert what_matters(broken) == what_matters(folder)
    assert not list(broken.rglob("*.partial"))


@pytest.mark.slow
def test_a_finished_demo_is_not_overwritten(unbroken):
    process = demo(unbroken[0])
    _, err = process.communicate()
    assert process.returncode == 2 and "--resume" in err
    process = demo(unbroken[0], "--resume", "--seed", "1")
    _, err = process.communicate()
    assert process.returncode == 2 and "seed=0" in err


def test_sets_that_cannot_be_tuned_on(tmp_path, capsys):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    assert main(["demo", "--data", f"folder:{tmp_path}", "--out", str(tmp_path / "run")]) == 1
    assert "no labels" in capsys.readouterr().err
    assert main(["demo", "--data", "no-such-set", "--out", str(tmp_path / "other")]) in (1, 2)
    shown = capsys.readouterr().err.strip().splitlines()
    assert "no-such-set" in shown[-1]


@pytest.mark.parametrize(
    "option", ["--trials", "--pretrain-epochs", "--tune-epochs", "--tune-batch-size", "--parallel"]
)
def test_a_budget_of_zero_is_refused_before_any_work(tmp_path, capsys, option):
    assert main(["demo", "--data", "digits", "--out", str(tmp_path / "run"), option, "0"]) == 2
    assert not (tmp_path / "run" / "pretrain").exists()
    assert option.lstrip("-") in capsys.readouterr().err


@pytest.mark.slow
def test_a_path_that_is_no_utf8_and_no_home(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9/run"
    words = [sys.executable, "-m", "sslfast.cli.main", "demo", *QUICK, "--device", "cpu", "--json", "--out", folder]
    kept = {name: os.environ[name] for name in ("PATH", "SSLFAST_DATA") if name in os.environ}
    done = subprocess.run(words, capture_output=True, env={**kept, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert json.loads(done.stdout)["rows"]
    assert os.path.getsize(folder + b"/report.html") > 0


def test_a_gpu_that_is_not_there_is_refused_before_any_work(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["demo", "--data", "digits", "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    assert "no GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_names_with_brackets_are_no_markup(tmp_path, capsys):
    for part in ("train", "test"):
        for label in ("[b]", "[/b]"):
            folder = tmp_path / "set[/x]" / part / label
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (16, 16), (index * 40, 80, 90)).save(folder / f"{index}.png")
    words = ["demo", "--data", f"imagefolder:{tmp_path / 'set[/x]'}", "--out", str(tmp_path / "run")]
    assert main([*words, *QUICK[2:], "--val-fraction", "0.3"]) == 0, capsys.readouterr().err
