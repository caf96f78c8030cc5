import pytest
import torch

import sslfast
from sslfast._reference import barlow_twins as reference
from sslfast.testing import poisoned

ROUTES = ("direct", "dual")
EPS = 1e-5


def views(n, d, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)  # drawn in float32: other dtypes draw other numbers
    first, second = (torch.randn(n, d, generator=generator) for _ in range(2))
    return [z.to(dtype).requires_grad_() for z in (first, first + 0.5 * second)]


def gradients(function, inputs, *options, **named):
    loss = function(*inputs, *options, **named)
    return loss, torch.autograd.grad(loss, inputs)


def by_route(route, z0, z1, lambda_param=5e-3, eps=EPS):
    """Loss and gradients by one route, whichever the size would choose."""
    z0, z1 = z0.detach(), z1.detach()
    grad = torch.ones((), dtype=z0.dtype if z0.dtype == torch.float64 else torch.float32)
    ops = torch.ops.sslfast
    if route == "direct":
        loss, *kept = ops.barlow_twins_direct_fwd(z0, z1, lambda_param, eps)
        return loss, ops.barlow_twins_direct_bwd(grad, z0, z1, *kept, z0.shape[0], lambda_param, eps)
    loss, *kept = ops.barlow_twins_dual_fwd(z0, z1, 0, z0.shape[0], lambda_param, eps)
    return loss, ops.barlow_twins_dual_bwd(grad, z0, z1, *kept, 0, lambda_param, eps)[:2]


def truth(z0, z1, *options, **named):
    wide = [z.detach().double().requires_grad_() for z in (z0, z1)]
    return gradients(reference.barlow_twins, wide, *options, **named)


def assert_as_exact(got, inputs, *options):
    """At most twice the error of plain PyTorch in the same dtype, plus a little of the largest entry."""
    plain, want = gradients(reference.barlow_twins, inputs, *options), truth(*inputs, *options)
    epsilon = 2e-6 if inputs[0].dtype == torch.float32 else 1e-13
    for one, other, true in zip((got[0], *got[1]), (plain[0], *plain[1]), (want[0], *want[1]), strict=True):
        allowed = 2 * (other.double() - true).abs().max() + epsilon * true.abs().max()
        assert (one.double() - true).abs().max() <= allowed


def assert_near(got, want, rtol):
    """Errors relative to the largest entry: gradients are sums whose terms cancel."""
    for one, other in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        assert (one.double() - other).abs().max() <= rtol * other.abs().max()


@pytest.fixture
def widest():
    before = torch.ops.sslfast.cpu_vector_bits(0)
    yield torch.ops.sslfast.cpu_vector_bits(512)
    torch.ops.sslfast.cpu_vector_bits(before)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_is_what_the_definition_says(shape):
    z0, z1 = (z.detach() for z in views(*shape, torch.float64))
    count, columns = shape
    scaled = []
    for z in (z0, z1):
        rows = z.tolist()
        means = [sum(row[i] for row in rows) / count for i in range(columns)]
        variances = [sum((row[i] - means[i]) ** 2 for row in rows) / count for i in range(columns)]
        scaled.append([[(row[i] - means[i]) / (variances[i] + EPS) ** 0.5 for i in range(columns)] for row in rows])
    total = 0.0
    for i in range(columns):
        for j in range(columns):
            c = sum(a[i] * b[j] for a, b in zip(*scaled, strict=True)) / count
            total += (c - 1) ** 2 if i == j else 0.03 * c**2
    assert float(sslfast.barlow_twins(z0, z1, 0.03)) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(4, 3), (3, 5), (12, 8), (13, 33), (40, 129), (129, 40), (97, 96)])
def test_every_vector_width_and_route_is_right(bits, route, dtype, n, d, widest):
    if widest < bits:
        pytest.skip(f"this processor has {widest}-bit vectors")
    assert torch.ops.sslfast.cpu_vector_bits(bits) == bits
    inputs = views(n, d, dtype)
    with poisoned():
        got = by_route(route, *inputs, 0.1)
    assert_as_exact(got, inputs, 0.1)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("n", "d"), [(300, 2500), (2500, 300), (4200, 70), (70, 4500)])
def test_several_blocks(route, n, d):
    # More rows than one worker packs, more columns than one chunk holds, more depth than one step of a product.
    inputs = views(n, d)
    assert_as_exact(by_route(route, *inputs, 0.1), inputs, 0.1)


def test_the_smaller_matrix_is_chosen(monkeypatch):
    def names(n, d):
        inputs = views(n, d)
        with torch.profiler.profile() as profile:
            gradients(sslfast.barlow_twins, inputs)
        return {event.key for event in profile.key_averages() if "barlow_twins_d" in event.key}

    assert {"sslfast::barlow_twins_dual_fwd", "sslfast::barlow_twins_dual_bwd"} <= names(4, 5)
    assert not any("direct" in name for name in names(4, 5))
    assert {"sslfast::barlow_twins_direct_fwd", "sslfast::barlow_twins_direct_bwd"} <= names(5, 5)


@pytest.mark.parametrize(("n", "d"), [(3, 1), (70, 1), (70, 2)])
def test_few_columns(n, d):
    inputs = views(n, d)
    with poisoned():
        assert_as_exact(gradients(sslfast.barlow_twins, inputs, 0.1), inputs, 0.1)


def peak_memory(function):
    """Numbers in float32 that are allocated at a time, at most."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 4


@pytest.mark.parametrize(("n", "d"), [(256, 8192), (64, 8192), (2048, 1024)])
def test_memory(n, d):
    inputs = views(n, d)
    gradients(sslfast.barlow_twins, inputs)
    peak = peak_memory(lambda: gradients(sslfast.barlow_twins, inputs))
    # Besides the two gradients. Dual: two layouts of a part of the columns, and the Gram matrices. Direct: one matrix
    # D x D, the rows of one view, and a few panels per thread.
    allowed = 2 * n * d + 6 * n * n if n < d else d * d + 1.75 * n * d
    assert peak <= 2 * n * d + allowed
    plain = peak_memory(lambda: gradients(reference.barlow_twins, inputs))
    assert plain >= 2 * d * d  # what is measured is what we think it is


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_means_do_not_cancel(route, dtype):
    inputs = [(z.detach() + 1e3 * (1 + torch.arange(z.shape[1]) % 3)).requires_grad_() for z in views(60, 50, dtype)]
    assert_as_exact(by_route(route, *inputs, 0.1), inputs, 0.1)


@pytest.mark.parametrize("route", ROUTES)
def test_columns_without_variance_stay_finite(route):
    inputs = [z.detach().clone() for z in views(20, 15, torch.float64)]
    inputs[0][:, 3] = 7.25
    inputs[1][:, 3] = 0
    inputs[1][:, 14] = -1e3
    got = by_route(route, *inputs)
    assert got[0].isfinite() and all(grad.isfinite().all() for grad in got[1])
    assert_near(got, truth(*inputs), 1e-12)
    single = [z.float() for z in inputs]
    assert_near(by_route(route, *single), truth(*single), 1e-5)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e15, 1e25])
def test_tiny_and_huge_values(route, scale):
    # 1e25 squared is infinite in float32; 1e-30 squared is nothing against eps.
    inputs = [z.detach() * scale for z in views(40, 30)]
    want = truth(*inputs)
    got = by_route(route, *inputs)
    assert got[0].item() == pytest.approx(want[0].item(), rel=1e-5)
    for one, other in zip(got[1], want[1], strict=True):
        assert one.isfinite().all()
        assert (one.double() - other).abs().max() <= 2e-5 * other.abs().max()


@pytest.mark.parametrize("shape", [(30, 7), (7, 30)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_come_out_as_nan(bad, shape):
    z0, z1 = views(*shape)
    with torch.no_grad():
        z0[3, 2] = bad
    loss, grads = gradients(sslfast.barlow_twins, [z0, z1])
    assert loss.isnan()
    assert all(grad.isnan().any() for grad in grads)


@pytest.mark.parametrize("shape", [(9, 10), (10, 9)])
def test_non_contiguous_inputs(shape):
    z0, z1 = (z.detach() for z in views(*shape))
    want = gradients(sslfast.barlow_twins, [z0.requires_grad_(), z1.requires_grad_()])
    wide = torch.cat([z0, z1], dim=1).detach().requires_grad_()
    loss = sslfast.barlow_twins(wide[:, : shape[1]], wide[:, shape[1] :])
    assert torch.equal(loss, want[0])
    assert torch.equal(torch.autograd.grad(loss, wide)[0], torch.cat(want[1], dim=1))
    tall = torch.stack([z0.detach().T, z1.detach().T])
    assert torch.equal(sslfast.barlow_twins(tall[0].T, tall[1].T), want[0])
    flat = torch.ones(1, 1).expand(shape)
    assert torch.equal(sslfast.barlow_twins(flat, z1), sslfast.barlow_twins(flat.contiguous(), z1))


def test_misaligned_inputs():
    for n, d in ((7, 5), (5, 7), (40, 35)):
        values = torch.randn(2 * n * d + 1, generator=torch.Generator().manual_seed(0))
        z0, z1 = values[1:].view(2, n, d)
        torch.testing.assert_close(sslfast.barlow_twins(z0, z1), reference.barlow_twins(z0, z1))


@pytest.mark.parametrize("shape", [(5, 4), (4, 5)])
def test_inputs_stay_untouched(shape):
    inputs = views(*shape)
    copies = [v.detach().clone() for v in inputs]
    gradients(sslfast.barlow_twins, inputs)
    assert all(torch.equal(one, other) for one, other in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("shape", [(67, 140), (140, 67)])
def test_a_hundred_runs_are_bit_equal(shape):
    first, first_grads = gradients(sslfast.barlow_twins, views(*shape))
    for _ in range(100):
        loss, grads = gradients(sslfast.barlow_twins, views(*shape))
        assert torch.equal(loss, first)
        assert all(torch.equal(one, other) for one, other in zip(grads, first_grads, strict=True))


@pytest.mark.parametrize("shape", [(150, 900), (900, 250)])
def test_the_number_of_threads_changes_nothing(shape):
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(gradients(sslfast.barlow_twins, views(*shape)))
    finally:
        torch.set_num_threads(threads)
    for loss, grads in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert all(torch.equal(one, other) for one, other in zip(grads, results[0][1], strict=True))


@pytest.mark.parametrize("shape", [(6, 5), (5, 6)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_dtype_that_came(dtype, shape):
    inputs = views(*shape, dtype)
    loss, grads = gradients(sslfast.barlow_twins, inputs)
    assert loss.dtype == dtype
    assert all(grad.dtype == dtype for grad in grads)
    # Computed in float32: rounded once.
    single = gradients(sslfast.barlow_twins, [z.detach().float().requires_grad_() for z in inputs])
    assert torch.equal(loss, single[0].to(dtype))
    assert all(torch.equal(one, other.to(dtype)) for one, other in zip(grads, single[1], strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_computes_in_float32(dtype):
    z0, z1 = views(6, 5, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sslfast.barlow_twins(z0, z1)
        mixed = sslfast.barlow_twins(z0.to(torch.bfloat16), z1.float())
    assert loss.dtype == mixed.dtype == torch.float32
    torch.testing.assert_close(loss, reference.barlow_twins(z0.float(), z1.float()))
    loss.backward()
    assert z0.grad.dtype == dtype


@pytest.mark.parametrize("shape", [(4, 3), (4, 6)])
def test_second_and_third_derivatives(shape):
    z0, z1 = views(*shape, torch.float64)
    # PyTorch's batch normalisation has no third derivative.
    a, b = ((z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + EPS).sqrt() for z in (z0, z1))
    want = reference.correlation_loss(a.T @ b / shape[0], 0.2)
    loss = sslfast.barlow_twins(z0, z1, 0.2)

    def penalty(value):
        grads = torch.autograd.grad(value, [z0, z1], create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), [z0, z1], create_graph=True)

    for one, other in zip(penalty(loss), penalty(want), strict=True):
        torch.testing.assert_close(one, other)
    third = torch.autograd.grad(sum(one.pow(3).sum() for one in penalty(loss)), z0)[0]
    third_want = torch.autograd.grad(sum(one.pow(3).sum() for one in penalty(want)), z0)[0]
    torch.testing.assert_close(third, third_want)


@pytest.mark.parametrize("shape", [(4, 3), (4, 6)])
def test_torch_func(shape):
    z0, z1 = (v.detach() for v in views(*shape, torch.float64))
    want = torch.func.grad(reference.barlow_twins, argnums=(0, 1))(z0, z1)
    torch.testing.assert_close(torch.func.grad(sslfast.barlow_twins, argnums=(0, 1))(z0, z1), want)
    many = torch.stack([z0, z0 + z1, z0 - 1]), torch.stack([z1, z1 * 2, z1 + 3 * z0])
    each = torch.stack([reference.barlow_twins(a, b) for a, b in zip(*many, strict=True)])
    torch.testing.assert_close(torch.func.vmap(sslfast.barlow_twins)(*many), each)
    alone = [torch.func.grad(reference.barlow_twins)(a, b) for a, b in zip(*many, strict=True)]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(sslfast.barlow_twins))(*many), torch.stack(alone))
    shared = torch.func.vmap(torch.func.grad(sslfast.barlow_twins), in_dims=(0, None))(many[0], z1)
    alone = [torch.func.grad(reference.barlow_twins)(a, z1) for a in many[0]]
    torch.testing.assert_close(shared, torch.stack(alone))
    summed = torch.func.grad(lambda values: torch.func.vmap(sslfast.barlow_twins)(values, many[1]).sum())(many[0])
    alone = [torch.func.grad(reference.barlow_twins)(a, b) for a, b in zip(*many, strict=True)]
    torch.testing.assert_close(summed, torch.stack(alone))
    twice = torch.func.jacrev(torch.func.jacrev(lambda a: sslfast.barlow_twins(a, z1)))(z0)
    torch.testing.assert_close(twice, torch.func.jacrev(torch.func.jacrev(lambda a: reference.barlow_twins(a, z1)))(z0))


@pytest.mark.parametrize("shape", [(4, 3), (4, 6)])
def test_batched_cotangents(shape):
    z0, z1 = views(*shape, torch.float64)
    loss, grads = gradients(sslfast.barlow_twins, [z0, z1])
    loss = sslfast.barlow_twins(z0, z1)
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for one, other in zip(torch.autograd.grad(loss, [z0, z1], factors, is_grads_batched=True), grads, strict=True):
        torch.testing.assert_close(one, factors[:, None, None] * other)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own forward mode uses it
def test_forward_mode_is_refused_in_words():
    z0, z1 = (v.detach() for v in views(4, 3))
    with pytest.raises((RuntimeError, NotImplementedError), match="jvp|forward"):
        torch.autograd.forward_ad.enter_dual_level()
        try:
            dual = torch.autograd.forward_ad.make_dual(z0, z1)
            sslfast.barlow_twins(dual, z1)
        finally:
            torch.autograd.forward_ad.exit_dual_level()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("first", "rows"), [(0, 5), (5, 1), (6, 41), (0, 47)])
def test_parts_of_the_rows_add_up(first, rows, dtype):
    z0, z1 = (z.detach() for z in views(47, 70, dtype))
    options = 0.3, EPS
    whole = torch.ops.sslfast.barlow_twins_dual_fwd(z0, z1, 0, 47, *options)
    part = torch.ops.sslfast.barlow_twins_dual_fwd(z0, z1, first, rows, *options)
    rest = [
        torch.ops.sslfast.barlow_twins_dual_fwd(z0, z1, begin, count, *options)[0]
        for begin, count in ((0, first), (first + rows, 47 - first - rows))
        if count
    ]
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(part[0] + sum(rest), whole[0], rtol=rtol, atol=0)
    torch.testing.assert_close(
        part[3], whole[3][:, first : first + rows], rtol=rtol, atol=1e-4 if rtol > 1e-6 else 1e-12
    )
    assert torch.equal(part[1], whole[1]) and torch.equal(part[2], whole[2])
    grad = torch.tensor(1.5, dtype=dtype)
    got = torch.ops.sslfast.barlow_twins_dual_bwd(grad, z0, z1, *part[1:], first, *options)
    want = reference.barlow_twins_dual_bwd(
        grad.double(), z0.double(), z1.double(), *(t.double() for t in part[1:]), first, *options
    )
    for one, other in zip(got, want, strict=True):
        assert (one.double() - other).abs().max() <= rtol * other.abs().max()


@pytest.mark.parametrize("shape", [(64, 64), (65, 17), (33, 300), (2, 3)])
@pytest.mark.parametrize("lambda_param", [5e-3, 1.0])
def test_is_lightlys_loss(shape, lambda_param):
    lightly = pytest.importorskip("lightly.loss")
    inputs = views(*shape, torch.float64)
    want = gradients(lightly.BarlowTwinsLoss(lambda_param=lambda_param), inputs)
    assert_near(gradients(sslfast.barlow_twins, inputs, lambda_param), want, 1e-11)


def test_the_number_of_threads_changes_nothing_in_float64():
    # Many panels of columns in the direct route: what one task adds up depends on the number of threads.
    x = torch.randn(300, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x + 0.3 * torch.randn(300, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            found.append(float(sslfast.barlow_twins(x, y)))
    finally:
        torch.set_num_threads(threads)
    assert len(set(found)) == 1
