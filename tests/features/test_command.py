"""``sslfast extract`` as a person types it."""

import json

import pytest
import torch

from sslfast.cli.main import main
from sslfast.features import FeatureStore
from sslfast.models import Preprocess, load_backbone, save_backbone


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    backbone = load_backbone("resnet-small", preprocess=Preprocess(8))
    save_backbone(backbone, tmp_path / "backbone.safetensors")
    return tmp_path / "backbone.safetensors"


def command(checkpoint, out, *more):
    return main(["extract", "--backbone", str(checkpoint), "--data", "digits", "--out", str(out), *more])


def test_extract_and_again(checkpoint, tmp_path, capsys):
    assert command(checkpoint, tmp_path / "store", "--views", "identity", "flip", "--dtype", "float16", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    store = FeatureStore.open(tmp_path / "store")
    assert result["rows"] == len(store) and result["views"] == ["identity", "flip"] and result["features"] == 128
    assert store.verify().bytes == result["bytes"]
    assert command(checkpoint, tmp_path / "store", "--views", "identity", "flip", "--dtype", "float16", "--resume") == 0
    output = capsys.readouterr()
    assert "rows" in output.out and "next: sslfast tune" in output.err
    assert command(checkpoint, tmp_path / "store", "--dtype", "float16") == 2
    assert "was extracted with views" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(checkpoint, tmp_path, capsys):
    assert command(checkpoint, tmp_path / "store", "--device", "cuda") == 2
    error = capsys.readouterr().err.strip()
    assert "--device cuda was asked for" in error and "\n" not in error
    assert not (tmp_path / "store").exists()


def test_a_checkpoint_that_is_not_there(tmp_path, capsys):
    assert command(tmp_path / "none.safetensors", tmp_path / "store") == 1
    error = capsys.readouterr().err.strip()
    assert "there is no checkpoint" in error and "\n" not in error
