import itertools

import pytest
import torch
from torch.nn import functional

import sslfast
from sslfast._reference import mixed_edge as reference
from sslfast._reference.mixed_edge import norm_count, weight_shapes
from sslfast._reference.primitives import PRIMITIVES
from sslfast.bench.cases.mixed_edge import PublishedEdge
from sslfast.testing import poisoned

WITHOUT_SKIP = tuple(name for name in PRIMITIVES if name != "skip_connect")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def draw(shape, stride=1, k=4, primitives=PRIMITIVES, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator)

    codes = [PRIMITIVES.index(name) for name in primitives]
    c = shape[1] // k
    x = normal(*shape).to(dtype).requires_grad_()
    alpha = normal(len(codes)).softmax(0).to(dtype).requires_grad_()
    weights = [(normal(*size) / 2).to(dtype).requires_grad_() for size in weight_shapes(codes, c, stride)]
    running = [
        (normal(c) if i % 2 == 0 else 0.5 + normal(c).abs()).to(dtype) for i in range(2 * norm_count(codes, stride))
    ]
    return x, alpha, weights, running


def doubled(tensor):
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def run(edge, x, alpha, weights, running, **options):
    """Return the output, every gradient, and the running statistics afterwards."""
    running = None if running is None else [one.clone() for one in running]
    output = edge(x, alpha, weights, running, **options)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return [output.detach(), *torch.autograd.grad(output, [x, alpha, *weights], cotangent), *(running or ())]


def check(x, alpha, weights, running, tolerance=None, **options):
    with poisoned():
        got = run(sslfast.mixed_edge, x, alpha, weights, running, **options)
    truth = run(
        reference.mixed_edge,
        doubled(x),
        doubled(alpha),
        [doubled(one) for one in weights],
        running and [one.double() for one in running],
        **options,
    )
    tolerance = tolerance or TOLERANCE[x.dtype]
    for one, true in zip(got, truth, strict=True):
        assert one.dtype == x.dtype
        error = (one.double() - true).abs().max()
        assert error <= tolerance * max(float(true.abs().max()), 1e-2), error


def modes():
    return [("training", True, True), ("evaluation", False, True), ("without running statistics", False, False)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_primitive_alone(name, stride, dtype):
    drawn = draw((19, 8, 6, 4), stride, 2, (name,), dtype)
    for _, training, tracked in modes():
        check(*drawn[:3], drawn[3] if tracked else None, stride=stride, k=2, primitives=(name,), training=training)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(9, 16, 8, 8), (17, 16, 6, 10), (2, 16, 2, 2)])
def test_all_primitives_at_every_k(shape, stride, k):
    drawn = draw(shape, stride, k)
    for _, training, tracked in modes():
        check(*drawn[:3], drawn[3] if tracked else None, stride=stride, k=k, training=training)


@pytest.mark.parametrize("shape", [(5, 3, 7, 5), (3, 4, 1, 3), (2, 5, 9, 13), (33, 6, 11, 3)])
def test_odd_sizes(shape):
    for _, training, tracked in modes():
        drawn = draw(shape, 1, 1)
        check(*drawn[:3], drawn[3] if tracked else None, stride=1, k=1, training=training)
        drawn = draw(shape, 2, 1, WITHOUT_SKIP)
        check(*drawn[:3], drawn[3] if tracked else None, stride=2, k=1, primitives=WITHOUT_SKIP, training=training)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(17, 16, 32, 32), (16, 32, 16, 16), (18, 64, 8, 8)])
def test_the_sizes_of_a_supernet(shape, stride):
    check(*draw(shape, stride, 4, dtype=torch.float32), stride=stride, training=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_subsets_in_any_order(stride):
    generator = torch.Generator().manual_seed(0)
    for size in (2, 3, 5, 7):
        chosen = [PRIMITIVES[i] for i in torch.randperm(8, generator=generator)[:size]]
        drawn = draw((5, 8, 6, 6), stride, 2, chosen)
        for training in (True, False):
            check(*drawn, stride=stride, k=2, primitives=chosen, training=training)


@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_vector_width_is_right(bits, stride):
    before = torch.ops.sslfast.cpu_vector_bits(0)
    widest = torch.ops.sslfast.cpu_vector_bits(512)
    if widest < bits:
        pytest.skip(f"this processor has {widest}-bit vectors")
    try:
        assert torch.ops.sslfast.cpu_vector_bits(bits) == bits
        for dtype, shape in itertools.product(TOLERANCE, [(19, 12, 14, 10), (5, 20, 8, 6)]):
            primitives = PRIMITIVES if stride == 1 else WITHOUT_SKIP
            check(*draw(shape, stride, 4, primitives, dtype), stride=stride, primitives=primitives, training=True)
        check(*draw((9, 8, 6, 6), stride, 2), stride=stride, k=2, training=True)
    finally:
        torch.ops.sslfast.cpu_vector_bits(before)


@pytest.mark.parametrize("stride", [1, 2])
def test_any_number_of_threads_gives_the_same_bits(stride):
    drawn = draw((70, 16, 12, 12), stride, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(run(sslfast.mixed_edge, *drawn, stride=stride, training=True))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


def test_means_far_from_zero_do_not_cancel_the_variances():
    x, alpha, weights, running = draw((18, 16, 8, 8), dtype=torch.float32)
    check((x.detach() + 30).requires_grad_(), alpha, weights, running, tolerance=1e-4, stride=1, training=True)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 4])
def test_equals_a_module_per_operation(stride, k):
    x, alpha, weights, running = draw((6, 16, 8, 8), stride, k)
    module = PublishedEdge(16 // k, stride, k).double()
    norms = [one for one in module.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    for norm, mean, variance in zip(norms, running[::2], running[1::2], strict=True):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    cotangent = torch.randn(6, 16, 8 // stride, 8 // stride, dtype=torch.float64)
    for training in (True, False, True):
        module.train(training)
        want = module(x, alpha, *weights)
        got = sslfast.mixed_edge(x, alpha, weights, running, stride=stride, k=k, training=training)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        leaves = [x, alpha, *weights]
        for one, other in zip(
            torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(want, leaves, cotangent), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9 * float(other.abs().max()) + 1e-12)
        for norm, mean, variance in zip(norms, running[::2], running[1::2], strict=True):
            torch.testing.assert_close(mean, norm.running_mean, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(variance, norm.running_var, rtol=1e-12, atol=1e-12)


def test_the_channels_are_shuffled_by_hand():
    x = torch.arange(2 * 8 * 4, dtype=torch.float64).view(2, 8, 2, 2)
    out = sslfast.mixed_edge(x, torch.ones(1).double(), [], None, stride=1, primitives=("skip_connect",), training=True)
    # c = 2, K = 4: channel 2 g + j of x becomes channel 4 j + g.
    assert torch.equal(out, x[:, [0, 2, 4, 6, 1, 3, 5, 7]])
    none = sslfast.mixed_edge(x, torch.ones(1).double(), [], None, stride=2, primitives=("none",), training=True)
    assert torch.equal(none[:, [0, 4]], torch.zeros(2, 2, 1, 1).double())
    assert torch.equal(none[:, [1, 2, 3, 5, 6, 7]], x[:, [2, 4, 6, 3, 5, 7]].amax((2, 3), keepdim=True))


def test_dropout_of_the_skip():
    x, alpha, weights, running = draw((6, 8, 5, 4), 1, 2)
    options = {"stride": 1, "k": 2, "training": True}
    mask = (torch.rand(6, 4, 5, 4) < 0.6).double() / 0.6
    check(x, alpha, weights, running, skip_mask=mask, **options)
    torch.manual_seed(3)
    drawn = run(sslfast.mixed_edge, x, alpha, weights, running, skip_dropout=0.4, **options)
    torch.manual_seed(3)
    want = functional.dropout(x[:, :4].detach(), 0.4)
    torch.manual_seed(3)
    mask = functional.dropout(torch.ones(6, 4, 5, 4).double(), 0.4)
    torch.testing.assert_close(x[:, :4] * mask, want)
    given = run(sslfast.mixed_edge, x, alpha, weights, running, skip_mask=mask, **options)
    assert all(torch.equal(one, other) for one, other in zip(drawn, given, strict=True))
    # Neither in evaluation nor where a factorised reduce stands.
    plain = sslfast.mixed_edge(x, alpha, weights, running, stride=1, k=2, training=False)
    same = sslfast.mixed_edge(x, alpha, weights, running, stride=1, k=2, training=False, skip_dropout=0.9)
    assert torch.equal(plain, same)


def test_ties_go_to_the_first_of_the_largest():
    x = torch.randint(0, 3, (4, 8, 6, 6), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    for stride in (1, 2):
        _, alpha, weights, running = draw((4, 8, 6, 6), stride, 2, ("max_pool_3x3",))
        check(x, alpha, weights, running, stride=stride, k=2, primitives=("max_pool_3x3",), training=False)


@pytest.mark.parametrize("name", [name for name in PRIMITIVES if name != "none"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_do_not_vanish(name, bad):
    for stride in (1, 2):
        x, alpha, weights, running = draw((3, 4, 6, 6), stride, 2, (name,))
        with torch.no_grad():
            x[1, 0, 2, 3], x[1, 0, 4, 4], x[1, 0, 3, 3] = bad, bad, bad
        options = {"stride": stride, "k": 2, "primitives": (name,)}
        got = sslfast.mixed_edge(x, alpha, weights, running, training=False, **options)
        want = reference.mixed_edge(x, alpha, weights, running, training=False, **options)
        assert torch.equal(got.isfinite(), want.isfinite())
        in_training = sslfast.mixed_edge(x, alpha, weights, running, training=True, **options)
        assert not in_training.isfinite().all()


def test_non_contiguous_and_misaligned_inputs():
    x, alpha, weights, running = draw((5, 8, 6, 4), 1, 2, dtype=torch.float32)
    want = run(sslfast.mixed_edge, x, alpha, weights, running, stride=1, k=2, training=True)
    apart = torch.empty(x.numel() + 1)
    apart[1:] = x.detach().flatten()
    for other in (
        apart[1:].view(x.shape).requires_grad_(),
        x.detach().to(memory_format=torch.channels_last).requires_grad_(),
    ):
        transposed = [one.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for one in weights]
        got = run(sslfast.mixed_edge, other, alpha, transposed, running, stride=1, k=2, training=True)
        assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))


def test_second_derivatives():
    for stride, training in itertools.product((1, 2), (True, False)):
        x, alpha, weights, running = draw((2, 4, 4, 4), stride, 2)

        def edge(x, alpha, *weights, running=running, stride=stride, training=training):
            return sslfast.mixed_edge(
                x, alpha, weights, None if training else running, stride=stride, k=2, training=training
            )

        leaves = [x, alpha, *weights]
        assert torch.autograd.gradcheck(edge, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(edge, leaves, fast_mode=True, rtol=1e-3, atol=1e-5)


def test_torch_func():
    x, alpha, weights, running = draw((3, 4, 4, 4), 1, 2)

    def loss(x, alpha, weights, edge=sslfast.mixed_edge):
        return edge(x, alpha, weights, None, stride=1, k=2, training=True).square().sum()

    arguments = x.detach(), alpha.detach(), [one.detach() for one in weights]
    got = torch.func.grad(loss, argnums=(0, 1, 2))(*arguments)
    want = torch.func.grad(lambda *a: loss(*a, edge=reference.mixed_edge), argnums=(0, 1, 2))(*arguments)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    batch = torch.stack([arguments[0], arguments[0].flip(0) + 1])
    each = torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims=(0, None, None))(batch, *arguments[1:])
    for one, alone in zip(each, batch, strict=True):
        torch.testing.assert_close(one, torch.func.grad(loss, argnums=1)(alone, *arguments[1:]))


def test_vmap_does_not_update_running_statistics():
    x, alpha, weights, running = draw((3, 4, 4, 4), 1, 2)
    before = [one.clone() for one in running]
    batch = torch.stack([x.detach(), x.detach() + 1])

    def edge(x, training):
        return sslfast.mixed_edge(x, alpha, weights, running, stride=1, k=2, training=training)

    with pytest.raises(RuntimeError, match="mixed_edge: vmap cannot update running statistics"):
        torch.func.vmap(lambda x: edge(x, True))(batch)
    assert all(torch.equal(one, other) for one, other in zip(running, before, strict=True))
    each = torch.func.vmap(lambda x: edge(x, False))(batch)
    for one, alone in zip(each, batch, strict=True):
        torch.testing.assert_close(one, edge(alone, False))


def test_inference_keeps_no_graph_and_equals_training():
    drawn = draw((5, 8, 6, 6), 1, 2)
    want = sslfast.mixed_edge(*drawn, stride=1, k=2, training=False)
    with torch.inference_mode():
        assert torch.equal(sslfast.mixed_edge(*drawn, stride=1, k=2, training=False), want)


def test_autocast_computes_in_float32():
    x, alpha, weights, running = draw((5, 8, 6, 6), 1, 2, dtype=torch.float32)
    half = x.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = sslfast.mixed_edge(half, alpha, weights, running, stride=1, k=2, training=False)
    want = sslfast.mixed_edge(half.float(), alpha, weights, running, stride=1, k=2, training=False)
    assert got.dtype == torch.float32 and torch.equal(got, want)
