"""Run the Triton kernels of a test module on a GPU, or interpreted on the CPU in a process of their own."""

import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# How often a run is repeated that must be bit-equal: the interpreter schedules nothing.
REPEATS = 1 if INTERPRETED else 20


def kernel_test(function):
    """A test of the kernels themselves: one for the GPU, unless they are interpreted."""
    if INTERPRETED:
        return function
    reason = "torch finds no CUDA device; test_under_the_interpreter runs this test without one"
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)(function))


def run_interpreted(file):
    """Run the tests of a module under the interpreter, which must be on before Triton is imported."""
    if INTERPRETED:
        pytest.skip("this is the interpreted run itself")
    words = [sys.executable, "-P", "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*words, str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout and "failed" not in run.stdout
