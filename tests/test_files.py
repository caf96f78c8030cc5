"""Files are the old one or the complete new one; runs survive torn lines and second owners."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sslfast.errors import SslfastError, UsageError
from sslfast.files import PARTIAL_SUFFIX, read_json, write_json, write_text, writing
from sslfast.run import Run


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(f"*{PARTIAL_SUFFIX}")]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), writing(path) as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert not partials(tmp_path)


def test_leftovers_of_a_killed_run_are_removed_when_it_is_resumed(tmp_path):
    folder = tmp_path / "run"
    with Run(folder, {}):
        pass
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (folder / "features").mkdir()
    gone = [folder / f"table.json.{ended.pid}.partial", folder / "features" / f"x.safetensors.{ended.pid}.partial"]
    kept = [folder / f"report.html.{os.getppid()}.partial", folder / "video.partial"]
    for path in (*gone, *kept):
        path.touch()
    with Run(folder, {}, resume=True):
        assert not any(path.exists() for path in gone)
        assert all(path.exists() for path in kept)


def test_a_private_file_becomes_readable(tmp_path):
    with writing(tmp_path / "file") as partial:
        partial.touch(mode=0o600)
    (tmp_path / "plain").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_nan_is_never_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"accuracy": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_one_line(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    code = """
import resource, signal, sys
from pathlib import Path
from sslfast.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails with EFBIG
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_bytes(Path(sys.argv[1]), b"x" * 100_000)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "what was there before is untouched" in done.stderr.splitlines()[-1]
    assert path.read_text() == "old"
    assert not partials(tmp_path)


def test_a_full_disk_is_one_line_where_safetensors_or_a_run_writes(tmp_path):
    code = """
import resource, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from sslfast.errors import SslfastError
from sslfast.files import writing
from sslfast.run import Run
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with writing(folder / "x.safetensors") as partial:
        save_file({"x": torch.zeros(1000)}, partial)
except SslfastError as error:
    print(error)
try:
    with Run(folder / "run", {}) as run:
        while True:
            run.metric(loss=1.0)
except SslfastError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert "x.safetensors: File too large; what was there before is untouched" in first
    assert "metrics.jsonl: File too large; --resume continues" in second
    assert not partials(tmp_path)
    with Run(tmp_path / "run", {}, resume=True) as run:
        assert set(line["loss"] for line in run.metrics()) == {1.0}


def test_damaged_json_is_one_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(SslfastError, match="x.json is not the JSON"):
        read_json(path)
    with pytest.raises(SslfastError, match="cannot read"):
        read_json(tmp_path / "none.json")


def test_a_run_is_not_overwritten(tmp_path):
    with Run(tmp_path / "run", {"epochs": 1}):
        pass
    with pytest.raises(UsageError, match="--resume"):
        Run(tmp_path / "run", {"epochs": 1})
    with pytest.raises(UsageError, match="epochs=1, now it is 2"):
        Run(tmp_path / "run", {"epochs": 2}, resume=True)
    with Run(tmp_path / "run", {"epochs": 1}, resume=True):  # none of the refusals kept the lock
        pass


def test_a_run_that_failed_before_it_made_anything_is_no_run(tmp_path):
    with pytest.raises(ValueError), Run(tmp_path / "run", {"epochs": 1}) as run:
        run.log("a note is no result")
        raise ValueError
    with pytest.raises(ValueError), Run(tmp_path / "run", {"epochs": 2}) as run:
        run.metric(step=0)
        raise ValueError
    with pytest.raises(UsageError, match="--resume"):  # this one had begun
        Run(tmp_path / "run", {"epochs": 2})
    with pytest.raises(ValueError), Run(tmp_path / "run", {"epochs": 2}, resume=True):
        raise ValueError
    assert (tmp_path / "run" / "config.json").exists()


def test_a_run_has_one_owner(tmp_path):
    with Run(tmp_path / "run", {}), pytest.raises(SslfastError, match="in use by another"):
        Run(tmp_path / "run", {}, resume=True)


def test_a_torn_metric_line_is_cut(tmp_path):
    with Run(tmp_path / "run", {}) as run:
        run.metric(step=0, loss=1.0)
        run.metric(step=1, loss=0.5)
    with run.metrics_path.open("a") as handle:
        handle.write('{"step": 2, "lo')
    with Run(tmp_path / "run", {}, resume=True) as run:
        assert [line["step"] for line in run.metrics()] == [0, 1]
        run.keep_metrics(lambda line: line["step"] < 1)
        assert [line["step"] for line in run.metrics()] == [0]
    assert json.loads(run.metrics_path.read_text()) == {"step": 0, "loss": 1.0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_read_only_folder_is_one_line(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o755)
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.owner() == "root" and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    code = """
import os, sys
from pathlib import Path
from sslfast.errors import SslfastError
from sslfast.run import Run
os.setuid(65534)
try:
    Run(Path(sys.argv[1]) / "run", {})
except SslfastError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert "cannot write in" in done.stdout and "--out" in done.stdout, done.stderr
    assert not list(folder.iterdir())
