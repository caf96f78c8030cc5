"""The command line's frame: help, unknown commands, one-line errors, exit codes."""

import subprocess
import sys

import pytest

from sslfast.cli.main import COMMANDS, main
from sslfast.errors import SslfastError, UsageError
from sslfast.progress import bar


def sslfast(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sslfast.cli.main", *words], capture_output=True, text=True)


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in COMMANDS)


def test_no_command_is_a_usage_error():
    assert main([]) == 2


def test_an_unknown_command_is_one_line(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_options(name, capsys):
    assert main([name, "--help"]) == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_a_usage_error(name, capsys):
    assert main([name, "--no-such-option", "3"]) == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("error", "code"), [(SslfastError("no  disk\nleft"), 1), (UsageError("no"), 2), (ValueError("x"), 1)]
)
def test_errors_are_one_line_and_an_exit_code(error, code, capsys, monkeypatch):
    def fail(name, words):
        raise error

    monkeypatch.setattr("sslfast.cli.main._run", fail)
    assert main(["demo"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith("sslfast demo: ") and shown.count("\n") == 1
    assert main(["demo", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_crash():
    words = [sys.executable, "-m", "sslfast.cli.main", "doctor", "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


def test_titles_and_notes_of_bars_are_no_markup(capsys):
    with bar("features of imagefolder:[/x]", 2) as progress:
        progress.note("[/y]")
        progress.advance(2)
    assert "imagefolder:[/x]" in capsys.readouterr().err


def test_a_gpu_that_is_not_there(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = sslfast("pretrain", "simclr", "--data", "digits", "--device", "cuda", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "no GPU" in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("command", [["pretrain", "simclr"], ["demo"]])
@pytest.mark.parametrize("bad", [["--seed", "-1"], ["--backbone", "x"], ["--dtype", "int8"], ["--device", "tpu"]])
def test_an_option_that_makes_no_sense_leaves_no_run_behind(command, bad, tmp_path, capsys):
    assert main([*command, "--data", "digits", "--out", str(tmp_path / "run"), *bad]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_next_command_can_be_copied(tmp_path, capsys):
    out = tmp_path / ("long" * 20)
    words = ["--image-size", "8", "--epochs", "1", "--batch-size", "512", "--split", "test", "--out", str(out)]
    assert main(["pretrain", "simclr", "--data", "digits", *words]) == 0
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("next: sslfast extract ") and "--split test" in told and told.endswith(f"{out}/features")


@pytest.mark.parametrize("words", ["--help", "data"])
@pytest.mark.parametrize("shut", ["| true", "> /dev/full", ">&-", "2>&-"])
def test_streams_that_take_nothing_are_no_crash(words, shut):
    command = f"set -o pipefail; {sys.executable} -m sslfast.cli.main {words} {shut}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, 1, 2)
    assert "Error" not in done.stderr and len(done.stderr.splitlines()) <= 1
