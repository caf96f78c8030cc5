"""SimCLR pre-training: it learns, every image comes once, and its arithmetic is that of a plain loop."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import sslfast
from sslfast.data import load
from sslfast.data.loader import ViewLoader
from sslfast.data.views import plan
from sslfast.errors import DataError, SslfastError, UsageError
from sslfast.models import load_backbone
from sslfast.pretrain.config import SimCLRConfig
from sslfast.pretrain.loop import pretrain
from sslfast.run import Run

QUICK = SimCLRConfig(epochs=2, batch_size=256, dtype="float32")


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


def test_it_learns_and_leaves_a_backbone(digits, tmp_path):
    with Run(tmp_path / "run", {}) as run:
        trained = pretrain(digits, QUICK, run, image_size=16)
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
        assert pretrain(digits, QUICK, run, image_size=16).fingerprint() == trained.fingerprint()


def test_every_bit_is_that_of_a_plain_loop(digits, tmp_path):
    """What the demo's results stand on: the order of the random numbers, of the weights and of the arithmetic."""
    part = digits.subset(np.arange(300))
    config = SimCLRConfig(epochs=2, batch_size=128, dtype="float32")
    with Run(tmp_path / "run", {}) as run:
        trained = pretrain(part, config, run, image_size=16)
    torch.manual_seed(config.seed)
    backbone = load_backbone(config.backbone, preprocess=trained.preprocess)
    width = backbone.features
    projector = nn.Sequential(
        nn.Linear(width, 2 * width, bias=False), nn.BatchNorm1d(2 * width), nn.ReLU(), nn.Linear(2 * width, 128)
    )
    model = nn.ModuleDict({"network": backbone.network, "projector": projector}).to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    loader = ViewLoader(part, plan("simclr"), 16, 128, seed=0)
    steps = 2 * loader.steps_per_epoch
    rise = max(1, round(0.05 * steps))
    for step, batch in enumerate(loader.batches(0, steps)):
        for group in optimizer.param_groups:
            fall = 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))
            group["lr"] = 2e-3 * (step + 1) / rise if step < rise else 2e-3 * fall
        x = trained.preprocess.normalise(batch.views[0]).contiguous(memory_format=torch.channels_last)
        z = torch.cat([projector(backbone.network(view)) for view in x.chunk(2)])
        loss = sslfast.nt_xent(*z.chunk(2), 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert backbone.fingerprint() == trained.fingerprint()


def test_a_damaged_state_is_one_line(digits, tmp_path):
    with Run(tmp_path / "run", {}) as run:
        (tmp_path / "run" / "training.safetensors").write_bytes(b"\0" * 100)
        with pytest.raises(SslfastError, match=r"training\.safetensors .*remove it"):
            pretrain(digits, QUICK, run, image_size=16)


def test_a_loss_that_diverges_stops_the_run(digits, tmp_path):
    config = SimCLRConfig(epochs=2, batch_size=256, learning_rate=1e30, warmup=0, dtype="float32")
    with Run(tmp_path / "run", {}) as run, pytest.raises(SslfastError, match="lower --learning-rate"):
        pretrain(digits, config, run, image_size=16)
    assert not (tmp_path / "run" / "backbone.safetensors").exists()


def test_one_image_is_too_few(digits, tmp_path):
    with Run(tmp_path / "run", {}) as run, pytest.raises(DataError, match="at least 2 images"):
        pretrain(digits.subset(np.array([0])), QUICK, run, image_size=16)


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
        pretrain(digits, SimCLRConfig(**bad), run, image_size=16)


def test_a_batch_may_be_larger_than_any_pipeline(digits):
    loader = ViewLoader(digits.subset(np.arange(5)), plan("simclr"), 8, 10**11, seed=0)
    (batch,) = loader.batches(0, 1)
    assert len(batch.views[0]) == 10
