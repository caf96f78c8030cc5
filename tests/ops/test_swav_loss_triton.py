"""The Triton kernels against the reference: on a GPU, or interpreted on the CPU in a process of their own."""

import pytest
import torch
from interpreter import DEVICE, REPEATS, kernel_test, run_interpreted

from sslfast._reference import swav_loss as reference
from sslfast.bench.cases.sinkhorn import cosines
from sslfast.testing import poisoned

triton = pytest.importorskip("triton")


def test_under_the_interpreter():
    run_interpreted(__file__)


def views(b, k, count, dtype, seed=0, size=1.0):
    return [(cosines(b, k, seed=seed + v) * size).to(DEVICE, dtype) for v in range(count)]


def double(tensors):
    return [tensor.double() for tensor in tensors]


@kernel_test
@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("b", "k", "high", "low", "queue"),
    [(1, 3, 2, 0, 0), (5, 33, 1, 2, 7), (3, 1100, 2, 3, 0), (5, 40, 3, 2, 150)],
)
def test_kernels_match_the_reference(b, k, high, low, queue, dtype, iterations):
    from sslfast.kernels import swav_loss as kernels

    first, rest = views(b, k, high, dtype), views(b, k, low, dtype, seed=20)
    queues = views(queue, k, high, dtype, seed=40) if queue else []
    epsilon = 1e-12 if dtype == torch.float64 else 5e-6
    with poisoned():
        potential = kernels.swav_potentials(first, queues, iterations, 0.05)
        loss, lse, code_lse = kernels.swav_loss_fwd(first, rest, potential, iterations > 0, 0.1, 0.05)
        grad = torch.tensor(1.3, dtype=loss.dtype, device=DEVICE)
        got = kernels.swav_loss_bwd(grad, first, rest, potential, lse, code_lse, iterations > 0, 0.1, 0.05)
    true_potential = reference.swav_potentials(double(first), double(queues), iterations, 0.05)
    arguments = (double(first), double(rest), true_potential, iterations > 0, 0.1, 0.05)
    true_loss, true_lse, true_code_lse = reference.swav_loss_fwd(*arguments)
    true_potential = potential.double()
    for one, other in ((potential, true_potential), (loss, true_loss), (lse, true_lse), (code_lse, true_code_lse)):
        assert (one.double() - other).abs().max() <= epsilon * max(1.0, float(other.abs().max()))
    truth = reference.swav_loss_bwd(
        grad.double(), *arguments[:2], arguments[2], true_lse, true_code_lse, iterations > 0, 0.1, 0.05
    )
    assert got.dtype == dtype
    rounding = 8e-3 if dtype == torch.bfloat16 else epsilon
    assert (got.double() - truth).abs().max() <= rounding * float(truth.abs().max()) + epsilon / (b * 0.1)


@kernel_test
def test_large_logits_stay_finite():
    from sslfast.kernels import swav_loss as kernels

    both = views(3, 1100, 2, torch.float32, size=50.0)
    potential = kernels.swav_potentials(both, [], 3, 0.05)
    loss, lse, code_lse = kernels.swav_loss_fwd(both, [], potential, True, 0.1, 0.05)
    grad = torch.ones((), device=DEVICE)
    got = kernels.swav_loss_bwd(grad, both, [], potential, lse, code_lse, True, 0.1, 0.05)
    want = reference.swav_loss_fwd(double(both), [], potential.double(), True, 0.1, 0.05)[0]
    assert got.isfinite().all()
    torch.testing.assert_close(loss.double(), want, rtol=1e-4, atol=0)


@kernel_test
def test_runs_are_bit_equal_and_strides_respected():
    from sslfast.kernels import swav_loss as kernels

    three = views(9, 300, 3, torch.float32)
    apart = [torch.stack([view, view], dim=2)[:, :, 1] for view in three]
    results = []
    for given in (*[three] * REPEATS, three, apart):
        potential = kernels.swav_potentials(given[:2], [], 3, 0.05)
        outputs = kernels.swav_loss_fwd(given[:2], given[2:], potential, True, 0.1, 0.05)
        grad = torch.ones((), device=DEVICE)
        results.append(
            [*outputs, kernels.swav_loss_bwd(grad, given[:2], given[2:], potential, *outputs[1:], True, 0.1, 0.05)]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
