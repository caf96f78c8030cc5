"""``sslfast pretrain``: methods as subcommands, recipes as defaults, torchrun."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import tyro

from sslfast.cli import pretrain as command
from sslfast.cli.main import main
from sslfast.pretrain.config import CONFIGS
from sslfast.pretrain.loop import check_names
from sslfast.pretrain.recipes import RECIPES

SHORT = ["--data", "digits", "--split", "test", "--image-size", "16", "--epochs", "1", "--batch-size", "128"]


def parsed(*words):
    return tyro.cli(command.options(words), args=words)


@pytest.mark.parametrize("method", CONFIGS)
def test_every_method_is_a_subcommand_with_its_own_defaults(method):
    options = parsed(method, "--data", "digits", "--seed", "3")
    assert type(options.config) is CONFIGS[method] and options.config == CONFIGS[method](seed=3)
    assert options.data == "digits" and options.split == "train"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_the_place_of_the_defaults(name):
    recipe = RECIPES[name]
    options = parsed(recipe.config.METHOD, "--recipe", name, "--data", "cifar10", "--epochs", "7")
    assert asdict(options.config) == {**asdict(recipe.config), "epochs": 7}
    assert parsed(recipe.config.METHOD, f"--recipe={name}", "--data", "x").config == recipe.config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_what_exists_and_its_source(name):
    check_names(RECIPES[name].config, "cpu")
    assert RECIPES[name].source and name in Path(__file__).parents[2].joinpath("docs/pretrain.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["simclr", "--recipe", "x"], "unknown recipe 'x'; there are: simclr-cifar10-lightly"),
        (["swav", "--recipe", "simclr-imagenet"], "is of simclr: sslfast pretrain simclr --recipe simclr-imagenet"),
    ],
)
def test_a_wrong_recipe_is_one_line(words, message, capsys):
    assert main(["pretrain", *words, "--data", "digits"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0]


def test_an_unknown_method_is_refused(capsys):
    assert main(["pretrain", "byol", "--data", "digits"]) == 2
    assert "byol" in capsys.readouterr().err


def test_a_run_of_another_method_is_not_resumed(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert main(["pretrain", "supervised", *SHORT, *out]) == 0
    assert main(["pretrain", "autoencoder", *SHORT, *out, "--resume"]) == 2
    assert "was started with" in capsys.readouterr().err


def test_what_decides_the_result_is_kept(tmp_path, capsys):
    words = ["self-classifier", *SHORT, "--classes", "10", "30", "--hidden", "32", "--policy", "simclr"]
    assert main(["pretrain", *words, "--out", str(tmp_path / "run"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "self-classifier" and result["option_classes"] == [10, 30]
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["command"] == "pretrain" and kept["method"] == "self-classifier" and kept["classes"] == [10, 30]
    from sslfast.report.contents import read_run
    from sslfast.report.reproduce import command_of

    again = command_of(read_run(tmp_path / "run"))
    assert again.startswith("sslfast pretrain self-classifier ") and "--classes 10 30 " in again


@pytest.mark.slow
def test_torchrun_shares_the_batches(tmp_path):
    out = tmp_path / "run"
    words = [sys.executable, "-P", "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words += ["-m", "sslfast.cli.main", "pretrain", "simclr", *SHORT, "--device", "cpu", "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["processes"] == 2 and result["steps"] == len((out / "metrics.jsonl").read_text().splitlines())
