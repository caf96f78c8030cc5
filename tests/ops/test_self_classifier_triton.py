"""The Triton kernels against the reference: on a GPU, or interpreted on the CPU in a process of their own."""

import pytest
import torch
from interpreter import DEVICE, REPEATS, kernel_test, run_interpreted

from sslfast._reference import self_classifier as reference
from sslfast.testing import poisoned

triton = pytest.importorskip("triton")


def test_under_the_interpreter():
    run_interpreted(__file__)


def views(count, rows, classes, dtype, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(rows, classes, generator=generator) * scale).to(DEVICE, dtype) for _ in range(count)]


def run(x, row, column, global_views, eps):
    from sslfast.kernels import self_classifier as kernels

    options = (row, column, global_views, eps, x[0].shape[0])
    with poisoned():
        loss, columns, rows = kernels.self_classifier_fwd(x, *options[:4])
        exact = torch.float64 if x[0].dtype == torch.float64 else torch.float32
        grad = torch.tensor(1.3, dtype=exact, device=DEVICE)
        gradient = kernels.self_classifier_bwd(grad, x, columns, rows, *options)
    return loss, columns, rows, gradient


def truth(x, row, column, global_views, eps):
    leaves = [one.double().requires_grad_() for one in x]
    loss = reference.self_classifier(leaves, row, column, global_views=global_views, eps=eps)
    return loss.detach(), torch.stack(torch.autograd.grad(loss * 1.3, leaves))


HALF = [torch.float16, torch.bfloat16]
FULL = [torch.float32, torch.float64]


@kernel_test
@pytest.mark.parametrize(
    ("count", "rows", "classes", "global_views", "scale", "dtype"),
    [
        *((2, 1, 1, 2, 1.0, dtype) for dtype in FULL),
        *((3, 34, 17, 1, 0.3, dtype) for dtype in FULL),
        *((2, 3, 5, 2, 1.0, dtype) for dtype in HALF),
        (5, 33, 40, 2, 1.0, torch.float32),
        (3, 4, 1100, 5, 0.3, torch.float32),
        (3, 4, 600, 2, 0.3, torch.float64),
    ],
)
def test_kernels_match_the_reference(count, rows, classes, global_views, scale, dtype):
    x = views(count, rows, classes, dtype, scale)
    options = (0.1, 0.05, global_views, 1e-8)
    loss, _, _, gradient = run(x, *options)
    want, want_gradient = truth(x, *options)
    epsilon = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    loss_epsilon = 1e-13 if dtype == torch.float64 else 3e-6
    assert (loss - want).abs() <= loss_epsilon * max(1.0, float(want))
    size = max(float(want_gradient.abs().max()), 18 / (count * rows * 0.05) if dtype != torch.float16 else 0.0)
    assert (gradient.double() - want_gradient).abs().max() <= epsilon * size
    assert gradient.dtype == dtype


@kernel_test
def test_statistics_are_those_of_the_plain_form():
    x = views(4, 34, 20, torch.float64)
    options = (0.2, 0.1, 2, 1e-8)
    loss, columns, rows, _ = run(x, *options)
    torch.testing.assert_close((loss, columns, rows), reference.self_classifier_fwd(x, *options))


@kernel_test
def test_large_logits_and_small_sums():
    x = views(2, 34, 20, torch.float32, 1e4)
    loss, _, _, gradient = run(x, 0.1, 0.05, 2, 1e-8)
    want, want_gradient = truth(x, 0.1, 0.05, 2, 1e-8)
    assert (loss - want).abs() <= 1e-5 * want and (gradient - want_gradient).abs().max() <= 1e-5 * 18 / (2 * 34 * 0.05)
    x = views(2, 34, 20, torch.float64)
    x[0][2] -= 5.0
    x[1][:, 3] -= 5.0
    x[1][:33, 5] = -torch.inf
    loss, _, _, gradient = run(x, 0.1, 0.05, 2, 1e-8)
    torch.testing.assert_close((loss, gradient), truth(x, 0.1, 0.05, 2, 1e-8), rtol=1e-9, atol=1e-12)


@kernel_test
def test_nan_stays_nan():
    x = views(2, 5, 4, torch.float32)
    x[1][2, 3] = torch.nan
    loss, _, _, gradient = run(x, 0.1, 0.05, 2, 1e-8)
    assert loss.isnan() and gradient.isnan().all()


@kernel_test
def test_runs_are_bit_equal():
    first = run(views(2, 33, 20, torch.float32), 0.1, 0.05, 2, 1e-8)
    for _ in range(REPEATS):
        again = run(views(2, 33, 20, torch.float32), 0.1, 0.05, 2, 1e-8)
        assert all(torch.equal(one, other) for one, other in zip(again, first, strict=True))


@kernel_test
def test_strides_are_respected():
    x = views(2, 9, 12, torch.float32)
    apart = [torch.stack([one, one], dim=2)[:, :, 0] for one in x]
    assert not apart[0].is_contiguous()
    options = (0.1, 0.05, 2, 1e-8)
    assert all(torch.equal(one, other) for one, other in zip(run(apart, *options), run(x, *options), strict=True))
