import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "lines", "word"), [("papers_scripts", 4, "gradients differ by"), ("drop_in", 5, "loss")]
)
def test_examples_run(name, lines, word):
    run = subprocess.run([sys.executable, "-P", EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == lines and run.stdout.count(word) == lines
