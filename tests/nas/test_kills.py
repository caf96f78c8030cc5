"""A search that is killed at any moment ends in the same alphas and the same genotype, to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("kills.py")


def killed(folder, kills):
    words = [sys.executable, "-P", "-W", "ignore", str(PROGRAM), str(folder), str(kills), "0"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_killed_twice(tmp_path):
    found = killed(tmp_path, 2)
    assert found["kills"] == 2 and found["equal"]


@pytest.mark.soak
def test_killed_at_twenty_random_moments(tmp_path, record_property):
    found = killed(tmp_path, 20)
    assert found["kills"] == 20 and found["equal"]
    record_property("kills", found["kills"])
