"""The Triton kernels against the reference: on a GPU, or interpreted on the CPU in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslfast._reference import nt_xent as reference
from sslfast.testing import poisoned

triton = pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def kernel_test(function):
    """A test of the kernels themselves: one for the GPU, unless they are interpreted."""
    if INTERPRETED:
        return function
    reason = "torch finds no CUDA device; test_under_the_interpreter runs this test without one"
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)(function))


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreted run itself")
def test_under_the_interpreter():
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--import-mode=importlib",
            "-p",
            "no:cacheprovider",
            str(Path(__file__)),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout and "failed" not in run.stdout


def unit_rows(m, d, dtype):
    z = torch.randn(m, d, generator=torch.Generator().manual_seed(0), dtype=torch.float32).double()
    return torch.nn.functional.normalize(z, dim=1).to(DEVICE, dtype)


@kernel_test
@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "d"), [(2, 1), (2, 3), (34, 33), (64, 16), (66, 130), (130, 64)])
def test_kernels_match_the_reference(m, d, dtype, temperature):
    from sslfast.kernels import nt_xent as kernels

    z = unit_rows(m, d, dtype)
    grad = torch.tensor(1.3, dtype=dtype, device=DEVICE)
    with poisoned():
        loss, lse = kernels.nt_xent_fwd(z, temperature)
        result = kernels.nt_xent_bwd(grad, z, lse, temperature)
    true_loss, true_lse = reference.nt_xent_fwd(z.double(), temperature)
    truth = reference.nt_xent_bwd(grad.double(), z.double(), true_lse, temperature)
    # The scores are of size 1 / temperature; their rounding errors stay in the loss and, as a factor, in the gradient.
    epsilon = (1e-6 if dtype == torch.float32 else 1e-14) / temperature
    assert (loss - true_loss).abs() <= epsilon
    assert (lse - true_lse).abs().max() <= epsilon
    assert (result - truth).abs().max() <= epsilon / (m * temperature) + epsilon * truth.abs().max()


@kernel_test
def test_runs_are_bit_equal():
    from sslfast.kernels import nt_xent as kernels

    z = unit_rows(70, 20, torch.float32)
    first = kernels.nt_xent_fwd(z, 0.1)
    for _ in range(3):
        assert all(torch.equal(one, other) for one, other in zip(kernels.nt_xent_fwd(z, 0.1), first, strict=True))


@kernel_test
def test_strides_are_respected():
    from sslfast.kernels import nt_xent as kernels

    z = unit_rows(20, 34, torch.float32)
    apart = torch.stack([z, z], dim=2)[:, :, 0]
    assert not apart.is_contiguous()
    assert torch.equal(kernels.nt_xent_fwd(apart, 0.1)[1], kernels.nt_xent_fwd(z, 0.1)[1])
