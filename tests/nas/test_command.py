import json
import subprocess
import sys

import pytest

from sslfast.cli.main import main

SEARCH = [
    *("nas", "search", "--data", "digits", "--images", "16", "--device", "cpu"),
    *("--cells", "3", "--operations", "8", "--skip-dropout", "0", "--channels", "4"),
    *("--epochs", "1", "--alpha-from", "0", "--batch-size", "8", "--projection", "8"),
]


def test_a_search_by_command(tmp_path, capsys):
    words = [*SEARCH, "--seeds", "2", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[:2]] == [["seed", "0"], ["seed", "1"]]
    assert "genes in common" in printed[2]
    config = json.loads((tmp_path / "run" / "seed-1" / "config.json").read_text())
    assert (config["seed"], config["data"], config["s"]) == (1, "digits", 1.0)
    assert main(words) == 2 and "add --resume" in capsys.readouterr().err
    assert main([*words, "--resume", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seeds"] == [0, 1] and told["genotypes"][0] in printed[0]
    assert main([*words, "--resume", "--s", "0.5"]) == 2
    assert "was started with s=1.0, now it is 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--s", "2"], "s must be a finite number at least 0 and at most 1, got 2"),
        (["--recipe", "nothing"], "unknown recipe 'nothing'; there are: darts, "),
        (["--resume"], "--resume needs --out"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--images", "-1"], "images must be at least 0"),
        (["--policy", "supervised"], "Barlow Twins needs two views"),
        (["--channels", "6"], "channels must be a multiple of partial"),
    ],
)
def test_what_makes_no_search_is_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*SEARCH, *words]) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_recipe_gives_the_defaults(capsys):
    import tyro

    from sslfast.cli.nas import options
    from sslfast.nas.recipes import RECIPES

    words = ["search", "--data", "digits", "--recipe", "paper002", "--s", "0.25"]
    found = tyro.cli(options(words), args=words)
    assert found.config.s == 0.25 and found.config.epochs == RECIPES["paper002"].config.epochs == 40


def test_what_was_found_is_trained(tmp_path, capsys):
    assert main([*SEARCH, "--out", str(tmp_path / "run")]) == 0
    assert f"sslfast nas train --genotype {tmp_path / 'run' / 'seed-0'} --data digits" in " ".join(
        capsys.readouterr().err.split()
    )
    words = ["nas", "train", "--genotype", str(tmp_path / "run" / "seed-0"), "--data", "digits", "--images", "64"]
    words += ["--channels", "4", "--layers", "3", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "net")]
    assert main(words) == 0
    assert "test accuracy" in capsys.readouterr().out
    told = json.loads((tmp_path / "net" / "result.json").read_text())
    assert told["genotype"] == json.loads((tmp_path / "run" / "seed-0" / "result.json").read_text())["genotype"]
    assert told["train_images"] == 64 and 0 <= told["right"] <= told["test_images"] > 64
    assert main([*words, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    words[3] = "random:7"
    assert main([*words, "--resume"]) == 2
    assert "was started with genotype=" in capsys.readouterr().err


def test_random_cells_are_shown(capsys):
    assert main(["nas", "show", "random:7", "--json"]) == 0
    from sslfast.nas.genotype import drawn

    assert json.loads(capsys.readouterr().out)["genotype"] == str(drawn(7))


def test_cells_are_shown(capsys):
    assert main(["nas", "show", "PDARTS", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["parameters"], told["parameters_with_auxiliary"]) == (3_433_798, 3_910_224)
    assert (told["skips_normal"], told["depth_normal"]) == (2, 3)
    assert main(["nas", "show", told["genotype"]]) == 0
    printed = capsys.readouterr().out
    assert "0 -> 2  skip_connect" in printed and "3,433,798 weights" in printed
    assert main(["nas", "show", "PDART"]) == 2
    assert "no genotype: 'PDART'" in capsys.readouterr().err


def test_help_stays_light():
    code = "import sys; from sslfast.cli.main import main; main(['nas', 'search', '--help']); "
    code += "print('loop' if 'sslfast.nas.loop' in sys.modules else 'light')"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "light" and "Barlow Twins" in done.stdout
