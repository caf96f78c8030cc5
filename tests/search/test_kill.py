import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sslfast.models.head import head_metadata

SCRIPT = Path(__file__).with_name("killed_search.py")


def command(folder, threads):
    return [sys.executable, str(SCRIPT), str(folder), str(threads)]


def without_times(folder):
    result = json.loads((folder / "result.json").read_text())
    result["budget"].pop("seconds")
    for trial in (result["best"], *result["trials"]):
        trial.pop("seconds")
        trial.pop("finished")
    return result


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    subprocess.run(command(folder, 1), check=True, stderr=subprocess.DEVNULL)
    return folder


def kill_when(folder, threads, lines, wait=0.0):
    """Start the search and kill it ``wait`` seconds after its journal has ``lines`` lines."""
    process = subprocess.Popen(command(folder, threads), stderr=subprocess.DEVNULL)
    journal = folder / "journal.log"
    while process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait()


def check_equal(folder, unbroken, threads):
    subprocess.run(command(folder, threads), check=True, stderr=subprocess.DEVNULL)
    result = without_times(folder)
    assert result == without_times(unbroken)
    assert {trial["state"] for trial in result["trials"]} == {"COMPLETE"}
    # Not the bytes: safetensors writes the keys of its metadata in any order.
    found, wanted = (load_file(run / "head.safetensors") for run in (folder, unbroken))
    assert set(found) == set(wanted) and all(torch.equal(found[key], wanted[key]) for key in wanted)
    metadata = head_metadata(folder / "head.safetensors")
    assert metadata == head_metadata(unbroken / "head.safetensors")
    assert metadata["trial"] == str(result["best"]["number"])
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [
        "config.json",
        "head.safetensors",
        "journal.log",
        "log.txt",
        "result.json",
    ]


def test_a_search_killed_twice_and_resumed_equals_an_unbroken_one(unbroken, tmp_path):
    kill_when(tmp_path / "run", 1, 4)  # between the draw of a batch and its first epochs
    kill_when(tmp_path / "run", 1, 40)
    check_equal(tmp_path / "run", unbroken, 1)


def test_the_number_of_threads_does_not_change_the_result(unbroken, tmp_path):
    kill_when(tmp_path / "run", 2, 8)
    check_equal(tmp_path / "run", unbroken, 2)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(20))
def test_killed_at_random_moments(unbroken, tmp_path, number, record_property):
    moments = random.Random(number)
    threads = moments.choice([1, 2])
    for _ in range(2):
        kill_when(tmp_path / "run", threads, moments.randrange(0, 75), moments.uniform(0, 0.05))
    check_equal(tmp_path / "run", unbroken, threads)
    record_property("kills", 2)
