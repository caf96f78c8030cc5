import importlib.util
import math

import pytest
import torch

import sslfast
from sslfast._reference import swav_loss as reference
from sslfast.bench.cases.sinkhorn import cosines
from sslfast.testing import poisoned


def views(b, k, count, dtype=torch.float32, size=1.0):
    return [(cosines(b, k, seed=v) * size).to(dtype).requires_grad_() for v in range(count)]


def doubled(tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def run(function, high, low, queue=None, **options):
    loss = function(high, low, queue, **options)
    return loss, torch.autograd.grad(loss, [*high, *low], allow_unused=True)


def check(high, low, queue=None, rtol=1e-5, atol=1e-7, **options):
    with poisoned():
        loss, grads = run(sslfast.swav_loss, high, low, queue, **options)
    double_queue = None if queue is None else doubled(queue)
    want, want_grads = run(reference.swav_loss, doubled(high), doubled(low), double_queue, **options)
    torch.testing.assert_close(loss.double(), want, rtol=rtol, atol=atol)
    largest = max(float(one.abs().max()) for one in want_grads if one is not None)
    for one, other in zip(grads, want_grads, strict=True):
        truth = torch.zeros_like(one.double()) if other is None else other
        torch.testing.assert_close(one.double(), truth, rtol=rtol, atol=rtol * largest)


def test_is_what_the_definition_says():
    # Two views of two samples, two prototypes, no iteration, by hand.
    first, second = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]
    total = 0.0
    for codes_of, scores in ((first, second), (second, first)):
        weights = [[math.exp(value / 2.0) for value in row] for row in codes_of]
        mean = sum(map(sum, weights)) / 2
        for row, own in zip(weights, scores, strict=True):
            normaliser = math.log(sum(math.exp(value / 0.5) for value in own))
            total -= sum(w / mean * (value / 0.5 - normaliser) for w, value in zip(row, own, strict=True)) / 2
    tensors = [torch.tensor(one, dtype=torch.float64) for one in (first, second)]
    got = sslfast.swav_loss(tensors, [], temperature=0.5, iterations=0, epsilon=2.0)
    assert float(got) == pytest.approx(total / 2, rel=1e-12)


@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize(("b", "k"), [(1, 3), (5, 16), (18, 33), (7, 1029), (9, 2100)])
def test_every_vector_width_is_right(bits, b, k):
    before = torch.ops.sslfast.cpu_vector_bits(0)
    widest = torch.ops.sslfast.cpu_vector_bits(512)
    if widest < bits:
        pytest.skip(f"this processor has {widest}-bit vectors")
    try:
        assert torch.ops.sslfast.cpu_vector_bits(bits) == bits
        check(views(b, k, 2), views(b, k, 5)[2:])
        check(views(b, k, 2), views(b, k, 3)[2:], iterations=0)
        check(views(b, k, 2, torch.float64), [], rtol=1e-11, atol=1e-13)
    finally:
        torch.ops.sslfast.cpu_vector_bits(before)


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize(("high", "low"), [(1, 1), (1, 4), (2, 0), (2, 6), (3, 0), (5, 2)])
@pytest.mark.parametrize("queue", [None, 0, 1, 70])
def test_any_number_of_views_and_a_queue(high, low, queue, iterations):
    all_views = views(9, 40, high + low, torch.float64)
    queues = None if queue is None else [cosines(queue, 40, seed=50 + i) for i in range(high)]
    check(all_views[:high], all_views[high:], queues, rtol=1e-10, atol=1e-12, iterations=iterations, temperature=0.2)


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize(("high", "low", "queue"), [(2, 0, 0), (2, 6, 0), (2, 3, 30), (3, 1, 5), (1, 2, 8)])
def test_equals_lightly(high, low, queue, iterations):
    lightly = pytest.importorskip("lightly.loss")
    all_views = views(12, 50, high + low, torch.float64)
    queues = [cosines(queue, 50, seed=50 + i) for i in range(high)] if queue else None
    module = lightly.SwaVLoss(temperature=0.2, sinkhorn_iterations=iterations, sinkhorn_epsilon=0.1)
    want = module(all_views[:high], all_views[high:], queues)
    want_grads = torch.autograd.grad(want, all_views, allow_unused=True)
    loss, grads = run(
        sslfast.swav_loss,
        all_views[:high],
        all_views[high:],
        queues,
        temperature=0.2,
        iterations=iterations,
        epsilon=0.1,
    )
    assert want.shape == (1,) and loss.shape == ()
    torch.testing.assert_close(loss, want[0], rtol=1e-12, atol=1e-14)
    for one, other in zip(grads, want_grads, strict=True):
        truth = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, truth, rtol=1e-10, atol=1e-15)


def test_equals_solo_learn():
    from sslfast.bench.registry import CASES

    if importlib.util.find_spec("solo") is None:
        pytest.skip("solo-learn is not installed")
    both = views(12, 50, 2, torch.float64)
    want = CASES["swav_loss"].peers["solo-learn"]()(*both)
    torch.testing.assert_close(sslfast.swav_loss(both, []), want, rtol=1e-12, atol=1e-14)


def test_the_queue_stands_behind_the_batch():
    both = views(6, 20, 2, torch.float64)
    queues = [cosines(11, 20, seed=70 + i) for i in range(2)]
    codes = [sslfast.sinkhorn(torch.cat([view, one]))[:6] for view, one in zip(both, queues, strict=True)]
    logs = [torch.log_softmax(view / 0.1, dim=1) for view in both]
    want = -((codes[0] * logs[1]).sum() + (codes[1] * logs[0]).sum()) / 12
    torch.testing.assert_close(sslfast.swav_loss(both, [], queues), want)
    # No gradient goes into the queue.
    leaves = [one.requires_grad_() for one in queues]
    grads = torch.autograd.grad(sslfast.swav_loss(both, [], leaves), leaves, allow_unused=True)
    assert grads == (None, None)


@pytest.mark.parametrize("size", [10.0, 50.0, 1e4])
def test_large_logits_neither_overflow_nor_vanish(size):
    all_views = views(20, 70, 3, size=size)
    loss, grads = run(sslfast.swav_loss, all_views[:2], all_views[2:])
    assert loss.isfinite() and all(grad.isfinite().all() for grad in grads)
    # The oracle: the fallback in float64, on logarithms (the plain form overflows).
    high, low = doubled(all_views[:2]), doubled(all_views[2:])
    potential = reference.swav_potentials(high, [], 3, 0.05)
    want = reference.swav_loss_fwd(high, low, potential, True, 0.1, 0.05)[0]
    torch.testing.assert_close(loss.double(), want, rtol=1e-5 * max(1, size / 50), atol=1e-6)


def test_a_row_whose_largest_scores_come_late():
    # The range of a row is guessed from its first columns; here it is far off, in some rows only.
    all_views = [view.detach().clone() for view in views(8, 700, 3)]
    for view in all_views:
        view[3, 500:] += 20
        view[5, :400] -= 30
    check([view.requires_grad_() for view in all_views[:2]], [all_views[2].requires_grad_()])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 2])
def test_nan_and_infinity_come_out_as_nan(bad, where):
    all_views = [view.detach() for view in views(8, 30, 3)]
    all_views[where][4, 5] = bad
    assert sslfast.swav_loss(all_views[:2], all_views[2:]).isnan()


def test_non_contiguous_misaligned_and_expanded_inputs():
    all_views = views(7, 33, 3)
    want = run(sslfast.swav_loss, all_views[:2], all_views[2:])
    others = [view.detach().T.contiguous().T.requires_grad_() for view in all_views[:2]]
    apart = torch.empty(7 * 33 + 1)
    apart[1:] = all_views[2].detach().flatten()
    got = run(sslfast.swav_loss, others, [apart[1:].view(7, 33).requires_grad_()])
    assert torch.equal(got[0], want[0])
    assert all(torch.equal(one, other) for one, other in zip(got[1], want[1], strict=True))
    row = torch.randn(1, 20).expand(5, 20)
    torch.testing.assert_close(sslfast.swav_loss([row, row], []), reference.swav_loss([row, row], []))


def test_inputs_stay_untouched():
    all_views = views(5, 12, 3)
    queue = [cosines(4, 12).float(), cosines(4, 12).float()]
    copies = [one.detach().clone() for one in (*all_views, *queue)]
    run(sslfast.swav_loss, all_views[:2], all_views[2:], queue)
    assert all(torch.equal(one, other) for one, other in zip((*all_views, *queue), copies, strict=True))


def test_one_view_used_twice_gets_both_gradients():
    first, second = views(5, 12, 2, torch.float64)
    loss = sslfast.swav_loss([first, first], [second])
    want = reference.swav_loss([first, first], [second])
    for one, other in zip(
        torch.autograd.grad(loss, [first, second]), torch.autograd.grad(want, [first, second]), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_only_what_needs_a_gradient_gets_one():
    first, second, third = views(5, 12, 3, torch.float64)
    loss = sslfast.swav_loss([first, second.detach()], [third.detach()])
    (grad,) = torch.autograd.grad(loss, [first])
    want = torch.autograd.grad(reference.swav_loss([first, second], [third]), [first])[0]
    torch.testing.assert_close(grad, want)
    assert not sslfast.swav_loss([first.detach(), second.detach()], []).requires_grad


def test_runs_and_numbers_of_threads_are_bit_equal():
    all_views = views(150, 400, 4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first, first_grads = run(sslfast.swav_loss, all_views[:2], all_views[2:])
        torch.set_num_threads(3)
        for _ in range(10):
            loss, grads = run(sslfast.swav_loss, all_views[:2], all_views[2:])
            assert torch.equal(loss, first)
            assert all(torch.equal(one, other) for one, other in zip(grads, first_grads, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_half_precision_gives_the_dtype_that_came():
    for dtype in (torch.float16, torch.bfloat16):
        all_views = views(6, 15, 3, dtype)
        loss, grads = run(sslfast.swav_loss, all_views[:2], all_views[2:])
        assert loss.dtype == dtype and all(grad.dtype == dtype for grad in grads)
        full = sslfast.swav_loss([view.float() for view in all_views[:2]], [all_views[2].float()])
        assert torch.equal(loss, full.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_computes_in_float32(dtype):
    all_views = views(6, 15, 3, dtype)
    queue = [cosines(4, 15).float(), cosines(4, 15).float()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sslfast.swav_loss(all_views[:2], all_views[2:], queue)
    assert loss.dtype == torch.float32
    full = [view.float() for view in all_views]
    torch.testing.assert_close(loss, reference.swav_loss(full[:2], full[2:], queue))
    loss.backward()
    assert all_views[0].grad.dtype == dtype


@pytest.mark.parametrize("iterations", [0, 3])
def test_second_and_third_derivatives_with_constant_codes(iterations):
    all_views = views(4, 6, 3, torch.float64)
    results = []
    for function in (sslfast.swav_loss, reference.swav_loss):
        loss = function(all_views[:2], all_views[2:], iterations=iterations, temperature=0.5)
        grads = torch.autograd.grad(loss * loss, all_views, create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in grads), all_views, create_graph=True)
        third = torch.autograd.grad(sum(one.pow(3).sum() for one in second), all_views)
        results.append([*grads, *second, *third])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_second_derivative_of_the_raw_operator():
    all_views = views(4, 6, 3, torch.float64)
    potential = reference.swav_potentials([view.detach() for view in all_views[:2]], [], 3, 0.05)
    results = []
    for function in (torch.ops.sslfast.swav_loss_fwd, reference.swav_loss_fwd):
        loss = function(all_views[:2], all_views[2:], potential, True, 0.5, 0.05)[0]
        grads = torch.autograd.grad(loss, all_views, create_graph=True)
        results.append([*grads, *torch.autograd.grad(sum(grad.square().sum() for grad in grads), all_views)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_torch_func():
    high = torch.stack([view.detach() for view in views(4, 9, 2, torch.float64)])
    low = views(4, 9, 3, torch.float64)[2].detach()

    def ours(a, b):
        return sslfast.swav_loss([a[0], a[1]], [b], temperature=0.3)

    def plain(a, b):
        return reference.swav_loss([a[0], a[1]], [b], temperature=0.3)

    want = torch.func.grad(plain, argnums=(0, 1))(high, low)
    torch.testing.assert_close(torch.func.grad(ours, argnums=(0, 1))(high, low), want)
    many = torch.stack([high, high * 2, high - 1]), torch.stack([low, low / 2, low + 0.1])
    each = torch.stack([plain(a, b) for a, b in zip(*many, strict=True)])
    torch.testing.assert_close(torch.func.vmap(ours)(*many), each)
    for dims in ((0, 0), (0, None)):
        given = many if dims[1] == 0 else (many[0], low)
        got = torch.func.vmap(torch.func.grad(ours), in_dims=dims)(*given)
        each = [torch.func.grad(plain)(a, many[1][i] if dims[1] == 0 else low) for i, a in enumerate(many[0])]
        torch.testing.assert_close(got, torch.stack(each))
    torch.testing.assert_close(
        torch.func.jacrev(torch.func.jacrev(lambda b: ours(high, b)))(low),
        torch.func.jacrev(torch.func.jacrev(lambda b: plain(high, b)))(low),
    )


def test_batched_gradients_are_refused_in_words():
    first, second = views(4, 9, 2, torch.float64)
    loss = sslfast.swav_loss([first, second], [])
    with pytest.raises(RuntimeError, match="Batching rule not implemented for sslfast::swav_loss_bwd"):
        torch.autograd.grad(loss, [first, second], torch.ones(3, dtype=torch.float64), is_grads_batched=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own forward mode uses it
def test_forward_mode_is_refused_in_words():
    first, second = (view.detach() for view in views(4, 3, 2))
    with pytest.raises((RuntimeError, NotImplementedError), match="jvp|forward"):
        torch.autograd.forward_ad.enter_dual_level()
        try:
            sslfast.swav_loss([torch.autograd.forward_ad.make_dual(first, second), second], [])
        finally:
            torch.autograd.forward_ad.exit_dual_level()


def test_compiles_with_lists_a_queue_and_changing_shapes():
    compiled = torch.compile(sslfast.swav_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for b in (4, 9):
        all_views = views(b, 11, 4)
        queue = [cosines(b + 3, 11).float(), cosines(b + 3, 11).float()]
        got = run(compiled, all_views[:2], all_views[2:], queue)
        want = run(sslfast.swav_loss, all_views[:2], all_views[2:], queue)
        assert torch.equal(got[0], want[0])
        assert all(torch.equal(one, other) for one, other in zip(got[1], want[1], strict=True))
        got = run(compiled, all_views[:2], [])
        assert torch.equal(got[0], sslfast.swav_loss(all_views[:2], []))


def test_memory_is_the_gradient_and_little_more():
    all_views = views(256, 600, 8)
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = sslfast.swav_loss(all_views[:2], all_views[2:])
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    one_view = 256 * 600 * 4
    assert sum(size for size in sizes if size > 0) < 0.5 * one_view
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.autograd.grad(loss, all_views)
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert sum(size for size in sizes if size > 0) < 8.1 * one_view


def test_the_fallback_is_the_same_algorithm():
    all_views = [view.detach() for view in views(7, 20, 4, torch.float64)]
    queue = [cosines(5, 20), cosines(3, 20)]
    for iterations, queued in ((0, []), (3, queue)):
        potential = torch.ops.sslfast.swav_potentials(all_views[:2], queued, iterations, 0.05)
        torch.testing.assert_close(potential, reference.swav_potentials(all_views[:2], queued, iterations, 0.05))
        arguments = (all_views[:2], all_views[2:], potential, iterations > 0, 0.1, 0.05)
        outputs = torch.ops.sslfast.swav_loss_fwd(*arguments)
        expected = reference.swav_loss_fwd(*arguments)
        torch.testing.assert_close(outputs[0], expected[0])
        torch.testing.assert_close(outputs[2], expected[2])
        # The second output is each implementation's own: the kernel keeps it relative to the row.
        before = torch.tensor(0.7, dtype=torch.float64), all_views[:2], all_views[2:], potential
        gradients = [
            bwd(*before, *kept[1:], iterations > 0, 0.1, 0.05)
            for bwd, kept in (
                (torch.ops.sslfast.swav_loss_bwd, outputs),
                (reference.swav_loss_bwd, expected),
            )
        ]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-15)


def test_what_all_scores_of_a_row_share_cancels():
    base = [view.detach() for view in views(64, 100, 3, torch.float32)]
    # 1,000 at 0.05 is an exponent of 28,850 bits, which float32 rounds by 2^-10: 7e-4 of a code, twice where two meet.
    for offset, allowed in ((100.0, 1e-4), (1000.0, 2e-3)):
        moved = [(view + offset).requires_grad_() for view in base]
        truth = [view.detach().double().requires_grad_() for view in moved]
        loss = sslfast.swav_loss(moved[:2], moved[2:])
        want = sslfast.swav_loss(truth[:2], truth[2:])
        torch.testing.assert_close(loss.double(), want, rtol=0, atol=allowed)
        found, expected = torch.autograd.grad(loss, moved), torch.autograd.grad(want, truth)
        for one, other in zip(found, expected, strict=True):
            assert (one - other).abs().max() <= allowed * other.abs().max()
