import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sslfast.cli.main import main
from sslfast.data import load
from sslfast.features import extract
from sslfast.models import load_backbone
from sslfast.models.head import load_head


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
        (["--seed", "-1"], "seed must lie between"),
        (["--storage", "no url"], "--storage cannot be opened"),
        (["--dtype", "bfloat16"], "bfloat16 needs a processor that multiplies it"),
    ],
)
def test_options_that_make_no_sense_are_told_in_one_line(store, tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sslfast.search.train.can_use_half", lambda device: False)
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "--features", str(store), *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in (".lock", "log.txt")]


def test_a_folder_without_a_store_is_told(tmp_path, capsys):
    assert main(["tune", "--features", str(tmp_path)]) == 1
    assert "no feature store" in capsys.readouterr().err


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails with EFBIG
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from sslfast.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2500, 20_000])
def test_a_full_disk_is_one_line_and_the_search_is_resumed(store, tmp_path, limit):
    def tune(out, *more):
        return ["tune", "--features", str(store), "--out", str(tmp_path / out), "--trials", "3", "--epochs", "2", *more]

    words = [sys.executable, "-c", FULL_DISK, str(limit), *tune("run")]
    done = subprocess.run(words, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last.startswith("sslfast tune: ") and "cannot write" in last and "File too large" in last
    assert main(tune("run", "--resume")) == 0 and main(tune("whole")) == 0
    results = [json.loads((tmp_path / out / "result.json").read_text()) for out in ("run", "whole")]
    for result in results:
        for trial in result["trials"]:
            del trial["seconds"], trial["finished"]
    assert results[0]["trials"] == results[1]["trials"]


def test_a_folder_whose_name_is_no_utf8(store, tmp_path):
    folder = tmp_path / os.fsdecode(b"run-\xff")
    words = ["tune", "--features", str(store), "--out", str(folder), "--trials", "2", "--epochs", "1"]
    assert main(words) == 0
    head, classes, _ = load_head(Path(folder) / "head.safetensors")
    assert len(head.mean) == 64 and len(classes) == 10
