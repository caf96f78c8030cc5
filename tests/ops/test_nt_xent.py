import math

import pytest
import torch

import sslfast
from sslfast._reference import nt_xent as reference
from sslfast.testing import poisoned


def views(n, d, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)  # drawn in float32: other dtypes draw other numbers
    return [torch.randn(n, d, generator=generator).to(dtype).requires_grad_() for _ in range(2)]


def gradients(function, inputs, *options):
    loss = function(*inputs, *options)
    return loss, torch.autograd.grad(loss, inputs)


def test_is_what_the_definition_says():
    z0, z1 = (v.detach() for v in views(2, 3, torch.float64))
    u = [row / row.norm() for row in torch.cat([z0, z1])]
    total = 0.0
    for i in range(4):
        terms = [math.exp(float(u[i] @ u[j]) / 0.3) for j in range(4) if j != i]
        total -= math.log(math.exp(float(u[i] @ u[(i + 2) % 4]) / 0.3) / sum(terms))
    assert float(sslfast.nt_xent(z0, z1, 0.3)) == pytest.approx(total / 4, rel=1e-12)


@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (12, 8), (13, 33), (40, 129), (65, 16)])
def test_every_vector_width_is_right(bits, n, d):
    before = torch.ops.sslfast.cpu_vector_bits(0)
    widest = torch.ops.sslfast.cpu_vector_bits(512)
    if widest < bits:
        pytest.skip(f"this processor has {widest}-bit vectors")
    try:
        assert torch.ops.sslfast.cpu_vector_bits(bits) == bits
        with poisoned():
            loss, grads = gradients(sslfast.nt_xent, views(n, d), 0.2)
    finally:
        torch.ops.sslfast.cpu_vector_bits(before)
    want, want_grads = gradients(reference.nt_xent, [v.detach().double().requires_grad_() for v in views(n, d)], 0.2)
    torch.testing.assert_close(loss, want.float(), rtol=1e-6, atol=1e-6)
    for one, other in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-6)


def test_one_pair_has_no_negatives():
    loss, grads = gradients(sslfast.nt_xent, views(1, 5))
    assert loss == 0
    assert all((grad == 0).all() for grad in grads)


def test_rows_of_zeros_stay_finite():
    z0, z1 = views(4, 5)
    z0 = z0.detach().clone()
    z0[1] = 0
    z0.requires_grad_()
    loss, _ = gradients(sslfast.nt_xent, [z0, z1])
    want, _ = gradients(reference.nt_xent, [z0, z1])
    torch.testing.assert_close(loss, want)
    # The gradient of a row of zeros is 1e12 times something, as with torch.nn.functional.normalize.
    grad = torch.autograd.grad(sslfast.nt_xent(z0, z1), z0)[0]
    torch.testing.assert_close(grad, torch.autograd.grad(reference.nt_xent(z0, z1), z0)[0], rtol=1e-4, atol=1e-6)


def test_long_rows_do_not_overflow():
    z0, z1 = (v.detach() * 1e30 for v in views(8, 16))
    torch.testing.assert_close(sslfast.nt_xent(z0, z1), sslfast.nt_xent(*(v.detach() for v in views(8, 16))))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_come_out_as_nan(bad):
    z0, z1 = (v.detach() for v in views(30, 7))
    z0[3, 2] = bad
    assert sslfast.nt_xent(z0, z1).isnan()


def test_both_sides_of_the_lowest_temperature_agree():
    # Below it the running maximum takes over from the fixed one: another kernel.
    for n in (2, 40, 150):
        inputs = views(n, 20)
        just_above, below = (gradients(sslfast.nt_xent, inputs, tau) for tau in (0.025, 0.025 - 1e-9))
        torch.testing.assert_close(just_above[0], below[0], rtol=1e-5, atol=1e-5)
        for one, other in zip(just_above[1], below[1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [300, 1100])
def test_several_blocks(n):
    # More rows than one block holds, and a last block of padding.
    loss, grads = gradients(sslfast.nt_xent, views(n, 24), 0.1)
    want, want_grads = gradients(reference.nt_xent, [v.detach().double().requires_grad_() for v in views(n, 24)], 0.1)
    torch.testing.assert_close(loss, want.float(), rtol=1e-6, atol=1e-6)
    for one, other in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=3e-6 * float(other.abs().max()))


def test_memory_grows_with_the_rows_and_not_with_their_pairs():
    def peak(n):
        inputs = views(n, 32)
        gradients(sslfast.nt_xent, views(4, 32))
        with torch.profiler.profile(profile_memory=True) as profile:
            gradients(sslfast.nt_xent, inputs)
        alive = highest = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                alive += event.nbytes()
                highest = max(highest, alive)
        return highest

    small, large = peak(1024), peak(4096)
    assert large < 6 * small
    assert large < 8192 * 8192 * 4 / 16, "far below one matrix of scores"


@pytest.mark.parametrize(("n", "temperature"), [(2, 0.5), (33, 0.1), (64, 0.5)])
def test_lightly_agrees(n, temperature):
    lightly = pytest.importorskip("lightly.loss")
    inputs = views(n, 19, torch.float64)
    want, want_grads = gradients(lightly.NTXentLoss(temperature=temperature), inputs)
    loss, grads = gradients(sslfast.nt_xent, inputs, temperature)
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, want_grads, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.01, 0.02])
def test_low_temperatures_neither_overflow_nor_vanish(temperature):
    # Opposite rows: exp((-1 - 1) / 0.01) is 0 in float32, so that a fixed maximum of 1 / temperature would give log 0.
    z0 = torch.eye(4, dtype=torch.float32)
    loss, grads = gradients(sslfast.nt_xent, [z0.clone().requires_grad_(), (-z0).requires_grad_()], temperature)
    want = reference.nt_xent(z0.double(), -z0.double(), temperature)
    torch.testing.assert_close(loss, want.float())
    assert all(grad.isfinite().all() for grad in grads)


def test_non_contiguous_inputs():
    z0, z1 = views(9, 10)
    wide = torch.cat([z0, z1], dim=1).detach()
    torch.testing.assert_close(sslfast.nt_xent(wide[:, :10], wide[:, 10:]), sslfast.nt_xent(z0, z1), rtol=0, atol=0)
    tall = torch.stack([z0.detach().T, z1.detach().T])
    torch.testing.assert_close(sslfast.nt_xent(tall[0].T, tall[1].T), sslfast.nt_xent(z0, z1), rtol=0, atol=0)


def test_misaligned_inputs():
    for values in (torch.randn(2 * 7 * 5 + 1), torch.randn(2 * 7 * 5 + 1, dtype=torch.float64)):
        z0, z1 = values[1:].view(2, 7, 5)
        torch.testing.assert_close(sslfast.nt_xent(z0, z1), reference.nt_xent(z0, z1))


def test_inputs_stay_untouched():
    inputs = views(5, 4)
    copies = [v.detach().clone() for v in inputs]
    gradients(sslfast.nt_xent, inputs)
    assert all(torch.equal(one, other) for one, other in zip(inputs, copies, strict=True))


def test_a_hundred_runs_are_bit_equal():
    first, first_grads = gradients(sslfast.nt_xent, views(67, 40))
    for _ in range(100):
        loss, grads = gradients(sslfast.nt_xent, views(67, 40))
        assert torch.equal(loss, first)
        assert all(torch.equal(one, other) for one, other in zip(grads, first_grads, strict=True))


def test_the_number_of_threads_changes_nothing():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first, first_grads = gradients(sslfast.nt_xent, views(150, 40))
        torch.set_num_threads(3)
        loss, grads = gradients(sslfast.nt_xent, views(150, 40))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(loss, first)
    assert all(torch.equal(one, other) for one, other in zip(grads, first_grads, strict=True))


def test_half_precision_gives_the_dtype_that_came():
    for dtype in (torch.float16, torch.bfloat16):
        loss, grads = gradients(sslfast.nt_xent, views(6, 5, dtype))
        assert loss.dtype == dtype
        assert all(grad.dtype == dtype for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_computes_in_float32_as_cross_entropy_does(dtype):
    z0, z1 = views(6, 5, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sslfast.nt_xent(z0, z1)
        mixed = sslfast.nt_xent(z0.to(torch.bfloat16), z1.float())
        assert torch.nn.functional.cross_entropy(z0, torch.arange(6) % 5).dtype == torch.float32
    assert loss.dtype == mixed.dtype == torch.float32
    torch.testing.assert_close(loss, reference.nt_xent(z0.float(), z1.float()))
    loss.backward()
    assert z0.grad.dtype == dtype


def test_second_derivatives():
    z0, z1 = views(4, 3, torch.float64)
    want = reference.nt_xent(z0, z1, 0.2)
    loss = sslfast.nt_xent(z0, z1, 0.2)

    def penalty(value):
        grads = torch.autograd.grad(value, [z0, z1], create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), [z0, z1], create_graph=True)

    for one, other in zip(penalty(loss), penalty(want), strict=True):
        torch.testing.assert_close(one, other)
    # The third, too: nothing on the way is treated as a constant.
    third = torch.autograd.grad(sum(one.pow(3).sum() for one in penalty(loss)), z0)[0]
    third_want = torch.autograd.grad(sum(one.pow(3).sum() for one in penalty(want)), z0)[0]
    torch.testing.assert_close(third, third_want)


def test_second_derivatives_in_several_steps(monkeypatch):
    monkeypatch.setattr(reference, "ROWS_PER_STEP", 3)
    assert torch.autograd.gradgradcheck(sslfast.nt_xent, views(4, 3, torch.float64))


def test_torch_func():
    z0, z1 = (v.detach() for v in views(4, 3, torch.float64))
    want = torch.func.grad(reference.nt_xent, argnums=(0, 1))(z0, z1)
    torch.testing.assert_close(torch.func.grad(sslfast.nt_xent, argnums=(0, 1))(z0, z1), want)
    many = torch.stack([z0, z0 + 1, z0 - 1]), torch.stack([z1, z1 * 2, z1 + 3])
    each = torch.stack([reference.nt_xent(a, b) for a, b in zip(*many, strict=True)])
    torch.testing.assert_close(torch.func.vmap(sslfast.nt_xent)(*many), each)
    per_problem = torch.func.vmap(torch.func.grad(sslfast.nt_xent))(*many)
    torch.testing.assert_close(per_problem, torch.func.vmap(torch.func.grad(reference.nt_xent))(*many))
    shared = torch.func.vmap(torch.func.grad(sslfast.nt_xent), in_dims=(0, None))(many[0], z1)
    torch.testing.assert_close(
        shared, torch.func.vmap(torch.func.grad(reference.nt_xent), in_dims=(0, None))(many[0], z1)
    )

    def summed(function, values):
        return torch.func.vmap(function)(values, many[1]).sum()

    torch.testing.assert_close(
        torch.func.grad(lambda values: summed(sslfast.nt_xent, values))(many[0]),
        torch.func.grad(lambda values: summed(reference.nt_xent, values))(many[0]),
    )
    twice = torch.func.jacrev(torch.func.jacrev(lambda a: sslfast.nt_xent(a, z1)))(z0)
    torch.testing.assert_close(twice, torch.func.jacrev(torch.func.jacrev(lambda a: reference.nt_xent(a, z1)))(z0))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own forward mode uses it
def test_forward_mode_is_refused_in_words():
    z0, z1 = (v.detach() for v in views(4, 3))
    with pytest.raises((RuntimeError, NotImplementedError), match="jvp|forward"):
        torch.autograd.forward_ad.enter_dual_level()
        try:
            dual = torch.autograd.forward_ad.make_dual(z0, z1)
            sslfast.nt_xent(dual, z1)
        finally:
            torch.autograd.forward_ad.exit_dual_level()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda a, b: ([1.0], b), TypeError, "z0 must be a tensor, got list"),
        (lambda a, b: (a.int(), b.int()), TypeError, "z0 must be float32, .* got torch.int32"),
        (lambda a, b: (a.to(torch.complex64), b), TypeError, "got torch.complex64"),
        (lambda a, b: (a.to_sparse(), b), TypeError, "dense"),
        (lambda a, b: (a, b.double()), TypeError, "z1 must have z0's dtype torch.float32, got torch.float64"),
        (lambda a, b: (a, b.to("meta")), ValueError, "z0 is on cpu, z1 is on meta"),
        (lambda a, b: (a[:2], b), ValueError, r"must both be \(N, D\), got \(2, 3\) and \(4, 3\)"),
        (lambda a, b: (a[0], b[0]), ValueError, r"got \(3,\)"),
        (lambda a, b: (a[None], b[None]), ValueError, r"got \(1, 4, 3\)"),
        (lambda a, b: (a[:0], b[:0]), ValueError, "must not be empty"),
        (lambda a, b: (a[:, :0], b[:, :0]), ValueError, "must not be empty"),
    ],
)
def test_bad_tensors_are_named(change, error, words):
    with pytest.raises(error, match=f"nt_xent: .*{words}"):
        sslfast.nt_xent(*change(*(v.detach() for v in views(4, 3))))


@pytest.mark.parametrize(
    ("temperature", "error"),
    [
        (0, ValueError),
        (-1.0, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("hot", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_bad_temperatures_are_named(temperature, error):
    with pytest.raises(error, match="nt_xent: temperature must be"):
        sslfast.nt_xent(*views(4, 3), temperature)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(3, 2), torch.zeros(2, 2), 0.5),
        (torch.zeros(0, 2), torch.zeros(0, 2), 0.5),
        (torch.zeros(4), torch.zeros(4), 0.5),
        (torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2, dtype=torch.int64), 0.5),
        (torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.float64), 0.5),
        (torch.zeros(4, 2), torch.zeros(4, 2), 0.0),
        (torch.zeros(4, 2), torch.zeros(4, 2), 0.02),
        (torch.zeros(4, 2), torch.zeros(4, 2), float("nan")),
    ],
)
def test_the_raw_operator_refuses_too(arguments):
    with pytest.raises(RuntimeError, match="nt_xent_fwd: "):
        torch.ops.sslfast.nt_xent_fwd(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(()), torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(7), 0.5),
        (torch.zeros(1), torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(8), 0.5),
        (torch.zeros(()), torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(8, dtype=torch.float64), 0.5),
        (torch.zeros((), dtype=torch.float64), torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(8), 0.5),
    ],
)
def test_the_raw_backward_refuses_too(arguments):
    with pytest.raises(RuntimeError, match="nt_xent_bwd: "):
        torch.ops.sslfast.nt_xent_bwd(*arguments)


def test_the_raw_operator_takes_rows_without_columns():
    views = torch.zeros(2, 0), torch.zeros(2, 0)
    loss, lse = torch.ops.sslfast.nt_xent_fwd(*views, 0.5)
    torch.testing.assert_close(loss, torch.tensor(3.0).log())
    assert [g.shape for g in torch.ops.sslfast.nt_xent_bwd(torch.ones(()), *views, lse, 0.5)] == [(2, 0), (2, 0)]


def test_other_devices_get_shapes_from_the_fake():
    z0, z1 = (v.detach().to("meta").requires_grad_() for v in views(4, 3))
    loss = sslfast.nt_xent(z0, z1)
    assert loss.shape == () and loss.device.type == "meta"
    assert torch.autograd.grad(loss, z0)[0].shape == (4, 3)


def test_a_changed_batch_size_compiles_too():
    compiled = torch.compile(sslfast.nt_xent, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 9, 17):
        torch.testing.assert_close(compiled(*views(n, 6)), sslfast.nt_xent(*views(n, 6)))


def test_the_module_is_the_function():
    inputs = views(5, 6)
    loss = sslfast.losses.NTXentLoss(temperature=0.2)
    assert torch.equal(loss(*inputs), sslfast.nt_xent(*inputs, 0.2))
    assert torch.equal(loss(out0=inputs[0], out1=inputs[1]), loss(*inputs))
    assert repr(loss).startswith("NTXentLoss(\n  temperature=0.2\n")
    assert sslfast.losses.NTXentLoss().temperature == 0.5
    with pytest.raises(ValueError, match="at least 1e-8, got 1e-09"):
        sslfast.losses.NTXentLoss(temperature=1e-9)
