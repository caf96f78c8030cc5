"""Foreign checkpoints as a person meets them: inspected, converted, extracted with."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from published import CASES
from strays import strays

from sslfast.cli.main import main
from sslfast.features import FeatureStore
from sslfast.models import load_backbone, save_backbone


@pytest.fixture
def solo(tmp_path):
    content, _, _ = CASES["solo"].make()
    torch.save({**content, **strays()}, tmp_path / "solo.ckpt")
    return tmp_path / "solo.ckpt"


@pytest.fixture
def photos(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "photos" / "train" / label).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / "train" / label / f"{i}.png")
    return f"imagefolder:{tmp_path / 'photos'}"


def test_a_file_is_inspected_and_converted(solo, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "inspect-checkpoint", str(solo)]) == 0
    told = capsys.readouterr().err
    assert "checkpoint: solo-learn" in told and "network: resnet18-cifar-pad2" in told
    assert "32 x 32, RGB in [0, 1], minus (0.4914, 0.4822, 0.4465)" in told and "known layout" in told
    assert "0 missing" in told and "posix.system" in told and not (tmp_path / "exploded").exists()
    words = ["--backbone", "resnet18-cifar", "--out", "b.safetensors", "--json"]
    assert main(["data", "inspect-checkpoint", str(solo), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["architecture"] == "resnet18-cifar-pad2" and found["size"] == 32 and found["missing"] == []
    assert main(["data", "inspect-checkpoint", "b.safetensors"]) == 0
    assert "resnet18-cifar-pad2 that sslfast wrote" in capsys.readouterr().out
    assert main(["extract", "--backbone", "b.safetensors", "--data", photos, "--out", "store"]) == 0


def test_features_of_a_foreign_checkpoint(solo, photos, tmp_path, capsys):
    words = ["--checkpoint", str(solo), "--data", photos, "--out", str(tmp_path / "store")]
    assert main(["extract", "--backbone", "resnet18-cifar", *words]) == 0
    told = capsys.readouterr().err
    assert "checkpoint: solo-learn" in told and "input: 32 x 32" in told
    store = FeatureStore.open(tmp_path / "store")
    assert store.manifest["backbone"]["architecture"] == "resnet18-cifar-pad2"
    # The same backbone, converted first, continues the same store.
    save_backbone(load_backbone("resnet18-cifar", solo), tmp_path / "b.safetensors")
    assert main(["extract", "--backbone", str(tmp_path / "b.safetensors"), *words[2:]]) == 0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--backbone", "resnet18-cifar"], "names an architecture; give its weights with --checkpoint"),
        (["--backbone", "none.safetensors"], "there is no checkpoint none.safetensors"),
        (["--backbone", "none.safetensors", "--layout", "swav"], "are for a foreign --checkpoint"),
        (["--backbone", "resnet18", "--checkpoint", "FILE"], "does not fit a resnet18.*it looks like a resnet18-cifar"),
        (["--backbone", "resnet18-cifar", "--checkpoint", "FILE", "--layout", "moco-v1"], "does not have the layout"),
        (["--backbone", "resnet18-cifar", "--checkpoint", "nowhere.pth"], "there is no checkpoint nowhere.pth"),
    ],
)
def test_what_does_not_go_together_is_one_line(words, match, solo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(solo) if word == "FILE" else word for word in words]
    assert main(["extract", *words, "--data", "digits", "--out", "store"]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(match, error)
    assert not (tmp_path / "store").exists()


def test_a_file_that_does_not_tell_its_network(tmp_path, capsys):
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "c.pth")
    assert main(["data", "inspect-checkpoint", str(tmp_path / "c.pth")]) == 2
    assert "give it with --backbone NAME" in capsys.readouterr().err
    assert main(["data", "inspect-checkpoint"]) == 2
    assert main(["data", "digits", "digits"]) == 2
