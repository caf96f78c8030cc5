"""The Triton kernels against the reference: on a GPU, or interpreted on the CPU in a process of their own."""

import pytest
import torch
from interpreter import DEVICE, REPEATS, kernel_test, run_interpreted

from sslfast._reference import barlow_twins as reference
from sslfast.testing import poisoned

triton = pytest.importorskip("triton")
EPS = 1e-5
EPSILON = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def test_under_the_interpreter():
    run_interpreted(__file__)


def views(n, d, dtype):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(n, d, generator=generator) for _ in range(2))
    return [z.to(DEVICE, dtype) for z in (first + 3, first + 0.5 * second)]


def assert_near(got, want, epsilon):
    for one, other in zip(got, want, strict=True):
        assert (one.double() - other).abs().max() <= epsilon * other.abs().max()


def computed(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


SIZES = [(5, 3), (6, 1), (34, 33), (64, 64), (66, 130), (130, 66)]


@kernel_test
@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_direct_kernels_match_the_reference(n, d, dtype):
    from sslfast.kernels import barlow_twins as kernels

    z0, z1 = views(n, d, dtype)
    wide = z0.double(), z1.double()
    grad = torch.tensor(1.3, dtype=computed(dtype), device=DEVICE)
    with poisoned():
        loss, statistics, correlation = kernels.barlow_twins_direct_fwd(z0, z1, 0.3, EPS)
        got = kernels.barlow_twins_direct_bwd(grad, z0, z1, statistics, correlation, n, 0.3, EPS)
        part = kernels.barlow_twins_correlation(z0, z1, statistics, 2 * n)
    want_loss, *kept = reference.barlow_twins_direct_fwd(*wide, 0.3, EPS)
    want = reference.barlow_twins_direct_bwd(grad.double(), *wide, *kept, n, 0.3, EPS)
    epsilon = EPSILON[computed(dtype)]
    assert loss.dtype == statistics.dtype == correlation.dtype == computed(dtype)
    assert all(one.dtype == dtype for one in got)
    # The loss is a sum of squares of differences from entries of size 1.
    assert abs(loss.double() - want_loss) <= epsilon * max(1, want_loss)
    assert_near((correlation, part), (kept[1], kept[1] / 2), epsilon)
    assert_near(got, want, epsilon + EPSILON[dtype])


@kernel_test
@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("part", [False, True])
def test_dual_kernels_match_the_reference(n, d, dtype, part):
    from sslfast.kernels import barlow_twins_dual as kernels

    z0, z1 = views(n, d, dtype)
    wide = z0.double(), z1.double()
    first, rows = (n // 3, max(1, n // 2)) if part else (0, n)
    grad = torch.tensor(1.3, dtype=computed(dtype), device=DEVICE)
    with poisoned():
        loss, *kept = kernels.barlow_twins_dual_fwd(z0, z1, first, rows, 0.3, EPS)
        *got, along = kernels.barlow_twins_dual_bwd(grad, z0, z1, *kept, first, 0.3, EPS)
    want_loss, *want_kept = reference.barlow_twins_dual_fwd(*wide, first, rows, 0.3, EPS)
    *want, want_along = reference.barlow_twins_dual_bwd(grad.double(), *wide, *want_kept, first, 0.3, EPS)
    epsilon = EPSILON[computed(dtype)]
    assert all(one.dtype == dtype for one in got)
    # The loss is a difference of terms of size lambda D.
    assert abs(loss.double() - want_loss) <= epsilon * max(0.3 * d, want_loss)
    assert_near((*kept[1:], along), (*want_kept[1:], want_along), epsilon)
    assert_near(got, want, epsilon + EPSILON[dtype])


@kernel_test
def test_large_means_and_constant_columns():
    from sslfast.kernels import barlow_twins_dual as kernels

    z0, z1 = (z + 1e3 for z in views(40, 70, torch.float32))
    z0[:, 5] = 7.25
    wide = z0.double(), z1.double()
    grad = torch.ones((), device=DEVICE)
    loss, *kept = kernels.barlow_twins_dual_fwd(z0, z1, 0, 40, 0.3, EPS)
    got = kernels.barlow_twins_dual_bwd(grad, z0, z1, *kept, 0, 0.3, EPS)
    want_loss, *kept = reference.barlow_twins_dual_fwd(*wide, 0, 40, 0.3, EPS)
    want = reference.barlow_twins_dual_bwd(grad.double(), *wide, *kept, 0, 0.3, EPS)
    assert_near((loss, *got), (want_loss, *want), 1e-5)


@kernel_test
def test_runs_are_bit_equal():
    from sslfast.kernels import barlow_twins as direct_kernels
    from sslfast.kernels import barlow_twins_dual as kernels

    z0, z1 = views(70, 90, torch.float32)
    first = kernels.barlow_twins_dual_fwd(z0, z1, 0, 70, 0.1, EPS)
    direct = direct_kernels.barlow_twins_direct_fwd(z0, z1, 0.1, EPS)
    for _ in range(REPEATS):
        again = kernels.barlow_twins_dual_fwd(z0, z1, 0, 70, 0.1, EPS)
        assert all(torch.equal(one, other) for one, other in zip(again, first, strict=True))
        again = direct_kernels.barlow_twins_direct_fwd(z0, z1, 0.1, EPS)
        assert all(torch.equal(one, other) for one, other in zip(again, direct, strict=True))


@kernel_test
def test_strides_are_respected():
    from sslfast.kernels import barlow_twins_dual as kernels

    z0, z1 = views(20, 34, torch.float32)
    apart = torch.stack([z0, z0], dim=2)[:, :, 0]
    assert not apart.is_contiguous()
    assert torch.equal(
        kernels.barlow_twins_dual_fwd(apart, z1, 0, 20, 0.1, EPS)[0],
        kernels.barlow_twins_dual_fwd(z0, z1, 0, 20, 0.1, EPS)[0],
    )
