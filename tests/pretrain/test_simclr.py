"""SimCLR pre-training: it learns, every image comes once, a kill changes nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sslfast.data import load
from sslfast.data.loader import ViewLoader
from sslfast.data.views import plan
from sslfast.errors import DataError, SslfastError, UsageError
from sslfast.models import load_backbone
from sslfast.pretrain.config import SimCLRConfig
from sslfast.pretrain.simclr import learning_rate, pretrain_simclr
from sslfast.run import Run

QUICK = SimCLRConfig(epochs=2, batch_size=256, dtype="float32")

TRAIN = """
import sys
from pathlib import Path
import torch
from sslfast.data import load
from sslfast.pretrain.config import SimCLRConfig
from sslfast.pretrain.simclr import pretrain_simclr
from sslfast.run import Run
torch.set_num_threads(1)
with Run(Path(sys.argv[1]), {}, resume=True) as run:
    config = SimCLRConfig(epochs=6, batch_size=256, dtype="float32")
    backbone = pretrain_simclr(load("digits", "train"), config, run, image_size=16, save_seconds=0.0)
print(backbone.fingerprint())
"""


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train")


@pytest.mark.parametrize("batch_size", [2, 64, 1000, 5000])
def test_every_image_comes_exactly_once_an_epoch(digits, batch_size):
    part = digits.subset(np.arange(257))
    loader = ViewLoader(part, plan("simclr"), 8, batch_size, seed=0)
    seen = [loader.indices(1, step) for step in range(loader.steps_per_epoch)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(257))
    sizes = [len(rows) for rows in seen]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    assert not np.array_equal(np.concatenate(seen), np.concatenate([loader.indices(2, s) for s in range(len(seen))]))


def test_a_stream_may_start_anywhere(digits):
    loader = ViewLoader(digits.subset(np.arange(100)), plan("simclr"), 8, 30, seed=0)
    whole = list(loader.batches(0, 9))
    assert [len(batch.views[0]) for batch in whole[:4]] == [50, 50, 50, 50]
    for got, want in zip(loader.batches(6, 9), whole[6:], strict=True):
        assert torch.equal(got.views[0], want.views[0]) and np.array_equal(got.indices, want.indices)


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(SimCLRConfig(learning_rate=1.0, warmup=0.1), step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 1e-3


def test_it_learns_and_leaves_a_backbone(digits, tmp_path):
    with Run(tmp_path / "run", {}) as run:
        trained = pretrain_simclr(digits, QUICK, run, image_size=16)
        lines = run.metrics()
    steps = -(-len(digits) // 256)
    assert [line["step"] for line in lines] == list(range(2 * steps))
    assert np.mean([line["loss"] for line in lines[-3:]]) < lines[0]["loss"] - 0.3
    assert not (tmp_path / "run" / "training.safetensors").exists()
    read = load_backbone("resnet-small", tmp_path / "run" / "backbone.safetensors")
    assert read.fingerprint() == trained.fingerprint()
    assert trained.source == "SimCLR on digits (train)"
    assert not read.missing and not read.unexpected and read.preprocess == trained.preprocess
    with Run(tmp_path / "run", {}, resume=True) as run:  # a finished run is read, not trained again
        assert pretrain_simclr(digits, QUICK, run, image_size=16).fingerprint() == trained.fingerprint()


@pytest.mark.slow
def test_a_killed_run_ends_like_an_unbroken_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", TRAIN, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    unbroken = start(tmp_path / "unbroken")
    broken = tmp_path / "broken"
    for steps in (3, 9, 20):
        process = start(broken)
        metrics = broken / "metrics.jsonl"
        while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < steps):
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = start(broken)
    out, err = last.communicate()
    assert last.returncode == 0, err
    want, err = unbroken.communicate()
    assert unbroken.returncode == 0, err
    assert out == want
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("broken", "unbroken")
    ]
    for line in (*lines[0], *lines[1]):
        del line["images_per_second"]
    assert lines[0] == lines[1]


def test_a_damaged_state_is_one_line(digits, tmp_path):
    with Run(tmp_path / "run", {}) as run:
        (tmp_path / "run" / "training.safetensors").write_bytes(b"\0" * 100)
        with pytest.raises(SslfastError, match=r"training\.safetensors .*remove it"):
            pretrain_simclr(digits, QUICK, run, image_size=16)


def test_a_loss_that_diverges_stops_the_run(digits, tmp_path):
    config = SimCLRConfig(epochs=2, batch_size=256, learning_rate=1e30, warmup=0, dtype="float32")
    with Run(tmp_path / "run", {}) as run, pytest.raises(SslfastError, match="lower --learning-rate"):
        pretrain_simclr(digits, config, run, image_size=16)
    assert not (tmp_path / "run" / "backbone.safetensors").exists()


def test_one_image_is_too_few(digits, tmp_path):
    with Run(tmp_path / "run", {}) as run, pytest.raises(DataError, match="at least 2 images"):
        pretrain_simclr(digits.subset(np.array([0])), QUICK, run, image_size=16)


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"temperature": 0.0},
        {"learning_rate": -1.0},
        {"dtype": "float8"},
        {"policy": "x"},
        {"backbone": "x"},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"temperature": float("inf")},
        {"warmup": -0.1},
        {"warmup": 1.5},
        {"weight_decay": -1.0},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_options_that_make_no_sense(digits, tmp_path, bad):
    with Run(tmp_path / "run", {}) as run, pytest.raises(UsageError):
        pretrain_simclr(digits, SimCLRConfig(**bad), run, image_size=16)


def test_a_batch_may_be_larger_than_any_pipeline(digits):
    loader = ViewLoader(digits.subset(np.arange(5)), plan("simclr"), 8, 10**11, seed=0)
    (batch,) = loader.batches(0, 1)
    assert len(batch.views[0]) == 10


@pytest.mark.soak
def test_killed_at_twenty_random_moments(tmp_path, record_property):
    def start(name):
        words = [sys.executable, "-W", "ignore", "-c", TRAIN, str(tmp_path / name)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    want, err = start("unbroken").communicate()
    assert want, err
    moments = random.Random(0)
    kills = 0
    while kills < 20:
        process = start("broken")
        time.sleep(moments.uniform(3, 6))
        finished = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        got, err = process.communicate()
        if finished:  # done before the kill: the result must be right, and the run begins anew
            assert got == want, err
            (tmp_path / "broken").rename(tmp_path / f"done-{kills}")
        else:
            kills += 1
    got, err = start("broken").communicate()
    assert got == want, err
    record_property("kills", kills)
