"""A training that is killed at any moment ends like an unbroken one, to the bit, for every method."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from quick import QUICK

PROGRAM = Path(__file__).with_name("kills.py")


def killed(folder, methods, kills):
    words = [sys.executable, "-P", "-W", "ignore", str(PROGRAM), str(folder), ",".join(methods), str(kills), "0"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_killed_training_ends_like_an_unbroken_one(tmp_path):
    found = killed(tmp_path, QUICK, 1)
    probes = {"simclr": 2}
    assert found == {
        method: {"kills": 1, "equal": True, "kept": True, "lines": 10 + probes.get(method, 0)} for method in QUICK
    }


@pytest.mark.soak
@pytest.mark.parametrize("method", QUICK)
def test_killed_at_twenty_random_moments(method, tmp_path, record_property):
    found = killed(tmp_path, [method], 20)[method]
    assert found["kills"] == 20 and found["equal"]
    record_property("kills", found["kills"])
