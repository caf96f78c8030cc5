"""The gradients of a log-sum-exp over a memory bank, in one pass over the scores."""

import os
import subprocess
import sys

import pytest
import torch

import sslfast
from sslfast._reference import score_lse as reference
from sslfast.ops import score_lse as op
from sslfast.testing import poisoned

backward = torch.ops.sslfast.score_lse_bank_bwd


def drawn(n, m, d, dtype=torch.float32, by_columns=True):
    generator = torch.Generator().manual_seed(0)
    rows, columns, grad = (torch.randn(shape, generator=generator).to(dtype) for shape in ((n, d), (d, m), (n,)))
    columns = columns.T if by_columns else columns.T.contiguous()
    return rows, columns, 0.7, grad, reference.score_lse_fwd(rows, columns, None, None, m, 0.7)[0]


def wide(arguments):
    return [one.double() if isinstance(one, torch.Tensor) else one for one in arguments]


@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (3, 65, 7), (50, 1300, 33), (130, 70, 64), (2, 0, 3), (0, 5, 3), (2, 5, 0)]
)
def test_every_vector_width(bits, dtype, size):
    before = torch.ops.sslfast.cpu_vector_bits(0)
    if torch.ops.sslfast.cpu_vector_bits(512) < bits:
        pytest.skip(f"this processor has no {bits}-bit vectors")
    epsilon = 1e-5 if dtype == torch.float32 else 1e-13
    for by_columns in (True, False):
        arguments = drawn(*size, dtype, by_columns)
        truth = reference.score_lse_bank_bwd(*wide(arguments), True)
        try:
            torch.ops.sslfast.cpu_vector_bits(bits)
            with poisoned():
                found = backward(*arguments, True)
                alone, empty = backward(*arguments, False)
        finally:
            torch.ops.sslfast.cpu_vector_bits(before)
        for one, other in zip(found, truth, strict=True):
            scale = float(other.abs().max()) if other.numel() else 0.0
            torch.testing.assert_close(one.double(), other, rtol=0, atol=epsilon * scale)
        assert torch.equal(alone, found[0]) and empty.shape == (0, size[2])


def test_strides_of_any_kind():
    rows, columns, *rest = drawn(40, 300, 20)
    want = backward(rows, columns, *rest, True)
    apart = torch.stack([columns, -columns], dim=2)[:, :, 0]
    assert 1 not in apart.stride()
    for one, other in zip(backward(rows.T.contiguous().T, apart, *rest, True), want, strict=True):
        assert torch.equal(one, other)


def test_the_number_of_threads_changes_nothing():
    arguments = drawn(33, 3000, 20)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            found.append(backward(*arguments, True))
    finally:
        torch.set_num_threads(threads)
    for both in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(both, found[0], strict=True))


def test_a_column_that_is_no_number_spoils_no_other():
    rows, columns, temperature, grad, _ = drawn(5, 70, 6)
    columns = columns.contiguous()
    columns[3, 0] = float("nan")
    lse = torch.ones(5)
    of_rows, of_columns = backward(rows, columns, temperature, grad, lse, True)
    assert of_rows.isnan().all() and of_columns[3].isnan().all()
    assert of_columns[:3].isfinite().all() and of_columns[4:].isfinite().all()


@pytest.mark.parametrize("bank_requires_grad", [False, True])
def test_a_loss_takes_this_way_and_agrees_with_the_other(bank_requires_grad, monkeypatch):
    z0, z1 = (torch.randn(6, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bank = torch.randn(9, 200, dtype=torch.float64, requires_grad=bank_requires_grad)
    inputs = [one for one in (z0, z1, bank) if one.requires_grad]

    def gradients():
        loss = sslfast.nt_xent(z0, z1, 0.3, negatives=bank)
        with torch.profiler.profile() as profile:
            found = torch.autograd.grad(loss, inputs)
        return {event.name for event in profile.events()}, found

    ran, found = gradients()
    assert "sslfast::score_lse_bank_bwd" in ran and "sslfast::score_lse_bwd" not in ran
    monkeypatch.setattr(op, "LEAST_BANK", 100)
    ran, other = gradients()
    assert "sslfast::score_lse_bank_bwd" not in ran and "sslfast::score_lse_bwd" in ran
    torch.testing.assert_close(found, other)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": torch.zeros(2)},
        {"columns": torch.zeros(9, 2)},
        {"columns": torch.zeros(9, 3).double()},
        {"temperature": 0.0},
        {"grad": torch.zeros(3)},
        {"grad": torch.zeros(2).double()},
        {"lse": torch.zeros(2, 1)},
    ],
)
def test_the_raw_operator_refuses_what_does_not_fit(change):
    given = {"rows": torch.zeros(2, 3), "columns": torch.zeros(9, 3), "temperature": 1.0}
    given |= {"grad": torch.zeros(2), "lse": torch.zeros(2), "of_columns": True, **change}
    with pytest.raises(RuntimeError, match="score_lse_bank_bwd: "):
        backward(**given)


INTERPRETED = """
import torch
from sslfast._reference import score_lse as reference
from sslfast.kernels.score_lse import score_lse_bank_bwd
rows, bank, grad = torch.randn(5, 7), torch.randn(7, 40).T, torch.randn(5)
lse = reference.score_lse_fwd(rows, bank, None, None, 40, 0.7)[0]
found = score_lse_bank_bwd(rows, bank, 0.7, grad, lse, True)
torch.testing.assert_close(found, reference.score_lse_bank_bwd(rows, bank, 0.7, grad, lse, True), rtol=1e-4, atol=1e-5)
alone, empty = score_lse_bank_bwd(rows, bank, 0.7, grad, lse, False)
assert torch.equal(alone, found[0]) and empty.shape == (0, 7)
"""


def test_the_triton_form_under_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-P", "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
