"""The Triton kernels against the reference: on a GPU, or interpreted on the CPU in a process of their own."""

import pytest
import torch
from interpreter import DEVICE, REPEATS, kernel_test, run_interpreted

from sslfast._reference import sinkhorn as reference
from sslfast.bench.cases.sinkhorn import cosines
from sslfast.testing import poisoned

triton = pytest.importorskip("triton")


def test_under_the_interpreter():
    run_interpreted(__file__)


def scores(b, k, dtype, size=1.0):
    return (cosines(b, k) * size).to(DEVICE, dtype)


def close(got, want, tolerance):
    assert got.shape == want.shape
    assert (got.double() - want).abs().max() <= tolerance * max(1.0, float(want.abs().max()))


@kernel_test
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    # The largest is more than one block of rows and of columns in every pass.
    ("b", "k", "iterations"),
    [*((b, k, iterations) for b, k in ((1, 1), (5, 3), (34, 130)) for iterations in (0, 1, 3)), (130, 520, 2)],
)
def test_assignments_match_the_reference(b, k, dtype, iterations):
    from sslfast.kernels import sinkhorn as kernels

    x = scores(b, k, dtype)
    with poisoned():
        got = kernels.sinkhorn_fwd(x, None, iterations, 0.05)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(got, reference.sinkhorn_fwd(x.double(), None, iterations, 0.05), 1e-13 if dtype == torch.float64 else 3e-6)


@kernel_test
@pytest.mark.parametrize("size", [50.0, 1e4])
def test_large_logits(size):
    from sslfast.kernels import sinkhorn as kernels

    x = scores(20, 70, torch.float64, size)
    x[:, 3] -= size
    got = kernels.sinkhorn_fwd(x, None, 3, 0.05)
    close(got, reference.sinkhorn_fwd(x, None, 3, 0.05), 1e-9)
    assert kernels.sinkhorn_fwd(x.float(), None, 3, 0.05).isfinite().all()


@kernel_test
@pytest.mark.parametrize("valid", [0, 1, 17, 40, 99, -1])
@pytest.mark.parametrize("iterations", [0, 3])
def test_valid_rows_are_read_on_the_device(valid, iterations):
    from sslfast.kernels import sinkhorn as kernels

    x = scores(40, 70, torch.float64)
    count = torch.tensor(valid, device=DEVICE)
    with poisoned():
        got = kernels.sinkhorn_fwd(x, count, iterations, 0.05)
    want = torch.zeros_like(x)
    rows = min(max(valid, 0), 40)
    if rows:
        want[:rows] = reference.sinkhorn_fwd(x[:rows], None, iterations, 0.05)
    close(got, want, 1e-13)


@kernel_test
@pytest.mark.parametrize("valid", [None, 23])
def test_single_passes_match_the_reference(valid):
    from sslfast.kernels import sinkhorn as kernels

    x = scores(40, 70, torch.float64)
    count = None if valid is None else torch.tensor(valid, device=DEVICE)
    sums = kernels.sinkhorn_log_sums(x, count, 0.05)
    close(sums, reference.sinkhorn_log_sums(x, count, 0.05), 1e-13)
    close(
        kernels.sinkhorn_probability_sums(x, sums, count, 0.05),
        reference.sinkhorn_probability_sums(x, sums, count, 0.05),
        1e-13,
    )
    for normalised in (True, False):
        got = kernels.sinkhorn_assign(x, sums, count, 0.05, normalised)
        close(got, reference.sinkhorn_assign(x, sums, count, 0.05, normalised), 1e-13)


@kernel_test
@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, under the interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_come_out_as_nan(bad):
    from sslfast.kernels import sinkhorn as kernels

    x = scores(20, 30, torch.float32)
    x[4, 5] = bad
    assert kernels.sinkhorn_fwd(x, None, 3, 0.05).isnan().all()
    x[4, 5] = float("-inf")
    got = kernels.sinkhorn_fwd(x, None, 3, 0.05)
    assert got[4, 5] == 0 and got.isfinite().all()


@kernel_test
def test_runs_are_bit_equal_and_strides_respected():
    from sslfast.kernels import sinkhorn as kernels

    x = scores(70, 300, torch.float32)
    first = kernels.sinkhorn_fwd(x, None, 3, 0.05)
    for _ in range(REPEATS):
        assert torch.equal(kernels.sinkhorn_fwd(x, None, 3, 0.05), first)
    apart = torch.stack([x, x], dim=2)[:, :, 0]
    assert torch.equal(kernels.sinkhorn_fwd(apart, None, 3, 0.05), first)
