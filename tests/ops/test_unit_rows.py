import pytest
import torch

from sslfast._reference import unit_rows as reference
from sslfast.ops.unit_rows import unit_rows
from sslfast.testing import poisoned


@pytest.mark.parametrize("count", [0, 1, 31, 33, 65537])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odd_numbers_of_rows(count, dtype):
    x = torch.randn(count, 3, dtype=dtype, requires_grad=True)
    with poisoned():
        got = unit_rows(x)
        (grad,) = torch.autograd.grad(got.square().sum() + got[:, 0].sum(), x)
    want = reference.unit_rows(x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grad, torch.autograd.grad(want.square().sum() + want[:, 0].sum(), x)[0])


def test_rows_without_columns():
    assert unit_rows(torch.zeros(3, 0)).shape == (3, 0)


@pytest.mark.parametrize("row", [[0.0, 0.0], [1e-30, 0.0], [1e-13, 1e-13], [3e-12, 4e-12], [3e30, 4e30], [3e-30, 4.0]])
def test_short_and_long_rows(row):
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([row, [3.0, 4.0]], dtype=dtype, requires_grad=True)
        want_x = x.detach().double().requires_grad_()
        got, want = unit_rows(x), reference.unit_rows(want_x)
        torch.testing.assert_close(got, want.to(dtype))
        weight = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=dtype)
        (grad,) = torch.autograd.grad((got * weight).sum(), x)
        (want_grad,) = torch.autograd.grad((want * weight.double()).sum(), want_x)
        torch.testing.assert_close(grad, want_grad.to(dtype), rtol=1e-5, atol=1e-6)


def test_nan_and_infinity_stay_in_their_row():
    x = torch.ones(3, 4)
    x[0, 1], x[2, 0] = float("nan"), float("inf")
    got = unit_rows(x)
    torch.testing.assert_close(got, reference.unit_rows(x), equal_nan=True)
    assert got[1].isfinite().all()


def test_non_contiguous_rows_and_gradients():
    x = torch.randn(6, 4, dtype=torch.float64).T.requires_grad_()
    assert torch.autograd.gradcheck(unit_rows, [x])
    (grad,) = torch.autograd.grad(unit_rows(x), x, torch.ones((), dtype=x.dtype).expand(4, 6))
    (want,) = torch.autograd.grad(reference.unit_rows(x), x, torch.ones((), dtype=x.dtype).expand(4, 6))
    torch.testing.assert_close(grad, want)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unit_rows_fwd", (torch.zeros(3),)),
        ("unit_rows_fwd", (torch.zeros(3, 2, dtype=torch.int64),)),
        ("unit_rows_bwd", (torch.zeros(3, 2), torch.zeros(3, 3), torch.zeros(3))),
        ("unit_rows_bwd", (torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2))),
        ("unit_rows_bwd", (torch.zeros(3, 2).double(), torch.zeros(3, 2), torch.zeros(3))),
        ("unit_rows_bwd", (torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 1))),
    ],
)
def test_the_raw_operators_refuse_what_does_not_fit(name, arguments):
    with pytest.raises(RuntimeError, match=f"{name}: "):
        getattr(torch.ops.sslfast, name)(*arguments)
