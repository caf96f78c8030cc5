"""The Triton kernels against the reference: on a GPU, or interpreted on the CPU in a process of their own."""

import pytest
import torch
from interpreter import DEVICE, INTERPRETED, REPEATS, kernel_test, run_interpreted

from sslfast._reference import nt_xent as reference
from sslfast.testing import poisoned

triton = pytest.importorskip("triton")


def test_under_the_interpreter():
    run_interpreted(__file__)


def rows(m, d, dtype, seed=0):
    return torch.randn(m, d, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def tolerance(dtype):
    return {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]


@kernel_test
@pytest.mark.parametrize("temperature", [0.03, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 3), (17, 33), (32, 16), (33, 130), (65, 64)])
def test_nt_xent_matches_the_reference(n, d, dtype, temperature):
    from sslfast.kernels import nt_xent as kernels

    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter computes products of bfloat16 wrongly; they are compiled ahead, and run on a GPU")
    z0, z1 = rows(n, d, dtype), rows(n, d, dtype, seed=1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grad = torch.tensor(1.3, dtype=wide, device=DEVICE)
    with poisoned():
        loss, lse = kernels.nt_xent_fwd(z0, z1, temperature)
        found = kernels.nt_xent_bwd(grad, z0, z1, lse, temperature)
    assert loss.dtype == lse.dtype == wide
    true_loss, true_lse = reference.nt_xent_fwd(z0.double(), z1.double(), temperature)
    truth = reference.nt_xent_bwd(grad.double(), z0.double(), z1.double(), true_lse, temperature)
    # The scores are of size 1 / temperature; their rounding errors stay in the loss and, as a factor, in the gradient.
    epsilon = tolerance(dtype) / temperature
    assert (loss - true_loss).abs() <= epsilon
    assert (lse - true_lse).abs().max() <= epsilon
    longest = 1 / torch.cat([z0, z1]).double().norm(dim=1).min()
    for one, true in zip(found, truth, strict=True):
        assert one.dtype == dtype and one.shape == true.shape
        assert (one - true).abs().max() <= longest * epsilon / (n * temperature) + epsilon * truth[0].abs().max()


@kernel_test
def test_rows_of_zeros_and_long_rows():
    from sslfast.kernels import nt_xent as kernels

    z0, z1 = rows(5, 7, torch.float32), rows(5, 7, torch.float32, seed=1)
    loss, _ = kernels.nt_xent_fwd(z0 * 1e30, z1 * 1e30, 0.2)
    torch.testing.assert_close(loss, kernels.nt_xent_fwd(z0, z1, 0.2)[0])
    z0[2] = 0
    loss, lse = kernels.nt_xent_fwd(z0, z1, 0.2)
    found = kernels.nt_xent_bwd(torch.ones((), device=DEVICE), z0, z1, lse, 0.2)
    truth = reference.nt_xent_bwd(torch.ones((), device=DEVICE), z0, z1, lse, 0.2)
    torch.testing.assert_close(found[0], truth[0], rtol=1e-4, atol=1e-6)


@kernel_test
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (5, 3, 2), (33, 70, 40), (65, 17, 130)])
def test_score_lse_matches_the_reference(n, m, d, labels, dtype):
    from sslfast._reference import score_lse as score_reference
    from sslfast.kernels import score_lse as kernels

    one, other = rows(n, d, dtype), rows(m, d, dtype, seed=1)
    generator = torch.Generator().manual_seed(2)
    row_label, column_label = (
        torch.randint(3, (count,), generator=generator).to(DEVICE) if labels else None for count in (n, m)
    )
    arguments = (row_label, column_label, -1, 0.7)
    epsilon = tolerance(dtype) * 50
    with poisoned():
        found = kernels.score_lse_fwd(one, other, *arguments)
    truth = score_reference.score_lse_fwd(one.double(), other.double(), *arguments)
    for got, true in zip(found, truth, strict=True):
        torch.testing.assert_close(got.double(), true, rtol=epsilon, atol=epsilon)
    row_side = torch.stack([rows(n, 1, dtype)[:, 0], rows(n, 1, dtype, seed=3)[:, 0], *found])
    column_side = torch.stack(
        [
            rows(m, 1, dtype)[:, 0],
            rows(m, 1, dtype, seed=3)[:, 0],
            *(rows(m, 1, dtype, seed=s)[:, 0] + 9 for s in (4, 5)),
        ]
    )
    for sides in ((row_side, column_side), (row_side, None), (None, column_side)):
        with poisoned():
            result = kernels.score_lse_bwd(one, other, *arguments, *sides)
        wide = [None if side is None else side.double() for side in sides]
        true = score_reference.score_lse_bwd(one.double(), other.double(), *arguments, *wide)
        torch.testing.assert_close(result.double(), true, rtol=epsilon, atol=epsilon * float(true.abs().max()))


@kernel_test
def test_runs_are_bit_equal():
    from sslfast.kernels import nt_xent as kernels

    views = rows(35, 20, torch.float32), rows(35, 20, torch.float32, seed=1)
    first = kernels.nt_xent_fwd(*views, 0.1)
    for _ in range(REPEATS):
        assert all(torch.equal(one, other) for one, other in zip(kernels.nt_xent_fwd(*views, 0.1), first, strict=True))


@kernel_test
def test_strides_are_respected():
    from sslfast.kernels import nt_xent as kernels

    z0, z1 = rows(10, 34, torch.float32), rows(10, 34, torch.float32, seed=1)
    apart = torch.stack([z0, z1], dim=2)
    assert not apart[:, :, 0].is_contiguous()
    found = kernels.nt_xent_fwd(apart[:, :, 0], apart[:, :, 1], 0.1)
    assert torch.equal(found[1], kernels.nt_xent_fwd(z0, z1, 0.1)[1])
