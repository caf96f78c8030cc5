import json

import pytest

from sslfast.cli.main import main
from sslfast.data import load
from sslfast.features import extract
from sslfast.models import load_backbone


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "digits"
    dataset = load("digits", "train")
    extract(load_backbone("resnet20").eval(), dataset, folder, ("identity", "flip"))
    return folder


def test_tune_searches_a_store_and_resumes(store, tmp_path, capsys):
    words = ["tune", "--features", str(store), "--out", str(tmp_path / "run"), "--trials", "3", "--epochs", "2"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "best of 3 trials" in said.out and "head.safetensors" in said.out
    assert "next: sslfast export" in said.err
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["budget"]["views"] == 2 and len(result["trials"]) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--trials", "0"], "trials must be at least 1"),
        (["--val-fraction", "1.5"], "between 0 and 1"),
        (["--resume"], "needs --out"),
        (["--learning-rate-from", "1"], "search space is empty"),
        (["--device", "cuda"], "no GPU"),
    ],
)
def test_options_that_make_no_sense_are_told_in_one_line(store, tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "--features", str(store), *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_folder_without_a_store_is_told(tmp_path, capsys):
    assert main(["tune", "--features", str(tmp_path)]) == 1
    assert "no feature store" in capsys.readouterr().err
