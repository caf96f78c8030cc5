import math

import pytest
import torch

import sslfast
from sslfast._reference import self_classifier as reference
from sslfast.testing import poisoned


def views(count, rows, classes, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)  # drawn in float32: other dtypes draw other numbers
    drawn = [torch.randn(rows, classes, generator=generator) * scale for _ in range(count)]
    return [one.to(dtype).requires_grad_() for one in drawn]


def gradients(function, inputs, *arguments, **options):
    loss = function(inputs, *arguments, **options)
    return loss, torch.autograd.grad(loss, inputs)


def truth(inputs, *arguments, **options):
    exact = [x.detach().double().requires_grad_() for x in inputs]
    return gradients(reference.self_classifier, exact, *arguments, **options)


def assert_right(inputs, *arguments, epsilon=2e-6, **options):
    """Compare with float64; a gradient with its largest entry, or with |log eps| / (V B tau), which may cancel."""
    with poisoned():
        loss, grads = gradients(sslfast.self_classifier, inputs, *arguments, **options)
    want, want_grads = truth(inputs, *arguments, **options)
    assert abs(loss.detach().double() - want.detach()) <= epsilon * max(1.0, abs(float(want.detach())))
    scale = 18 / (len(inputs) * inputs[0].shape[0] * 0.05)
    for one, other in zip(grads, want_grads, strict=True):
        assert (one.double() - other).abs().max() <= epsilon * max(scale, float(other.abs().max()))


def test_is_what_the_definition_says():
    x = [v.detach() for v in views(3, 2, 3, torch.float64)]
    row, column, eps, total, terms = 0.3, 0.2, 1e-3, 0.0, 0
    for i in range(3):
        for j in range(3):
            if i == j or (i >= 2 and j >= 2):
                continue
            t = [[math.exp(float(x[i][b, k]) / column) for k in range(3)] for b in range(2)]
            t = [[t[b][k] / (t[0][k] + t[1][k]) for k in range(3)] for b in range(2)]
            t = [[t[b][k] / max(sum(t[b]), eps) for k in range(3)] for b in range(2)]
            q = [[math.exp(float(x[j][b, k]) / row) for k in range(3)] for b in range(2)]
            q = [[q[b][k] / sum(q[b]) for k in range(3)] for b in range(2)]
            p = [[q[b][k] / max(q[0][k] + q[1][k], eps) for k in range(3)] for b in range(2)]
            total -= sum(t[b][k] * math.log(2 / 3 * p[b][k] + eps) for b in range(2) for k in range(3)) / 2
            terms += 1
    assert float(sslfast.self_classifier(x, row, column, eps=eps)) == pytest.approx(total / terms, rel=1e-12)
    assert float(reference.self_classifier(x, row, column, eps=eps)) == pytest.approx(total / terms, rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("global_views", [1, 2, 3, 20])
def test_pairs_of_local_views_are_left_out(count, global_views):
    inputs = views(count, 9, 11, torch.float64)
    loss, grads = gradients(sslfast.self_classifier, inputs, global_views=global_views)
    want, want_grads = truth(inputs, global_views=global_views)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(grads, want_grads)
    ordered = [(i, j) for i in range(count) for j in range(count) if i != j and min(i, j) < global_views]
    assert reference.pairs(count, global_views) == len(ordered)


def test_heads_are_averaged():
    first, second = views(3, 7, 5, torch.float64), views(3, 7, 9, torch.float64, seed=1)
    loss = sslfast.self_classifier([first, second])
    alone = sslfast.self_classifier(first), sslfast.self_classifier(second)
    torch.testing.assert_close(loss, (alone[0] + alone[1]) / 2)
    torch.testing.assert_close(loss, reference.self_classifier([first, second]))
    want = torch.autograd.grad(reference.self_classifier([first, second]), [*first, *second])
    torch.testing.assert_close(torch.autograd.grad(loss, [*first, *second]), want)
    assert torch.equal(sslfast.self_classifier([first]), alone[0])


def test_targets_are_not_constants():
    inputs = views(2, 6, 4, torch.float64)
    target = torch.nn.functional.normalize((inputs[0] / 0.05).softmax(dim=0), p=1, dim=1).detach()
    prediction = torch.nn.functional.normalize((inputs[1] / 0.1).softmax(dim=1), p=1, dim=0)
    one_way = -(target * torch.log(6 / 4 * prediction + 1e-8)).sum(dim=1).mean()
    detached = torch.autograd.grad(one_way / 2, inputs[1])[0]
    grad = torch.autograd.grad(sslfast.self_classifier(inputs), inputs[1])[0]
    assert (grad - detached).abs().max() > 0.01


@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize(
    ("count", "rows", "classes"), [(2, 1, 3), (2, 4, 16), (3, 13, 33), (8, 65, 10), (2, 2100, 5), (4, 67, 129)]
)
def test_every_vector_width_is_right(bits, count, rows, classes):
    before = torch.ops.sslfast.cpu_vector_bits(0)
    widest = torch.ops.sslfast.cpu_vector_bits(512)
    if widest < bits:
        pytest.skip(f"this processor has {widest}-bit vectors")
    try:
        assert torch.ops.sslfast.cpu_vector_bits(bits) == bits
        assert_right(views(count, rows, classes))
        assert_right(views(count, rows, classes, torch.float64), epsilon=1e-12)
    finally:
        torch.ops.sslfast.cpu_vector_bits(before)


def test_one_row_and_one_class():
    # One class: P = 1 / B and T = 1, so that L = -log(B/K 1/B + eps). One row: P = 1, T = 1/K: -log(1/K + eps).
    loss, grads = gradients(sslfast.self_classifier, views(2, 4, 1, torch.float64, scale=0.1))
    assert float(loss.detach()) == pytest.approx(-math.log(1 + 1e-8), abs=1e-14)
    assert all(grad.abs().max() < 1e-12 for grad in grads)
    loss, grads = gradients(sslfast.self_classifier, views(2, 1, 4, torch.float64, scale=0.1))
    assert float(loss.detach()) == pytest.approx(-math.log(1 / 4 + 1e-8), rel=1e-14)
    assert all(grad.abs().max() < 1e-12 for grad in grads)
    for shape in ((1, 1), (1, 9), (9, 1)):
        assert_right(views(2, *shape))


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_logits_are_exact(size):
    assert_right(views(3, 20, 30, scale=size))
    # All logits far from zero and close together: their differences count, in steps of one unit in the last place.
    near = [(size + x.detach() * 0.1).requires_grad_() for x in views(3, 20, 30)]
    assert_right(near)
    assert_right([(x.detach() - 2 * size).requires_grad_() for x in near])


def test_rows_and_columns_that_are_too_small_are_divided_by_eps():
    x = [v.detach().double() for v in views(2, 6, 5)]
    x[0][2] -= 5.0  # row 2 is far below the others in every column: its sum of t underflows eps
    x[1][:, 3] -= 5.0  # class 3 is hardly predicted
    inputs = [v.requires_grad_() for v in x]
    loss, grads = gradients(sslfast.self_classifier, inputs)
    want, want_grads = truth(inputs)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(grads, want_grads, rtol=1e-9, atol=1e-12)
    column_softmax = (x[0] / 0.05).softmax(dim=0)
    assert column_softmax.sum(dim=1)[2] < 1e-8 and (x[1] / 0.1).softmax(dim=1).sum(dim=0)[3] < 1e-8
    unclamped = gradients(sslfast.self_classifier, inputs, eps=1e-30)
    assert (unclamped[1][0] - grads[0]).abs().max() > 1e-3
    assert_right([v.float().detach().requires_grad_() for v in x])


@pytest.mark.parametrize("eps", [1e-30, 1e-12, 1e-4, 0.5])
def test_every_eps(eps):
    assert_right(views(3, 12, 7), eps=eps, epsilon=1e-5)


@pytest.mark.parametrize(("row", "column"), [(0.1, 0.1), (0.5, 1.0), (0.03, 0.007), (5.0, 0.05)])
def test_every_temperature(row, column):
    assert_right(views(3, 24, 17), row, column, epsilon=2e-6 * max(1, 0.05 / min(row, column)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_come_out_as_nan(bad):
    inputs = views(3, 30, 21)
    with torch.no_grad():
        inputs[1][3, 20] = bad
    loss, grads = gradients(sslfast.self_classifier, inputs)
    assert loss.isnan()
    assert grads[1].isnan().any()


def test_minus_infinity_masks_a_logit():
    inputs = views(2, 40, 21, torch.float64)
    with torch.no_grad():
        inputs[0][:33, 4] = -torch.inf  # a whole block of rows, but not the whole column
        inputs[1][5, 1:] = -torch.inf
    loss, grads = gradients(sslfast.self_classifier, inputs)
    want, want_grads = truth(inputs)
    assert want.isfinite()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(grads, want_grads)
    with torch.no_grad():
        inputs[0][:, 4] = -torch.inf
    assert sslfast.self_classifier(inputs).isnan() and reference.self_classifier(inputs).isnan()


def test_strides():
    plain = views(2, 9, 10)
    loss, grads = gradients(sslfast.self_classifier, plain)
    wide = torch.cat(plain, dim=1).detach().requires_grad_()
    tall = torch.cat(plain, dim=0).detach().requires_grad_()
    turned = torch.stack([x.detach().T for x in plain]).requires_grad_()
    for leaf, parts in ((wide, wide.split(10, dim=1)), (tall, tall.split(9)), (turned, [x.T for x in turned])):
        got = sslfast.self_classifier(parts)
        assert torch.equal(got, loss)
        grad = torch.autograd.grad(got, parts)
        assert all(torch.equal(one, other) for one, other in zip(grad, grads, strict=True))
        sslfast.self_classifier(parts).sum().backward(retain_graph=True)
        assert leaf.grad.isfinite().all()
    repeated = [x[:1].expand(9, 10) for x in plain]
    torch.testing.assert_close(
        sslfast.self_classifier(repeated), reference.self_classifier([x.double() for x in repeated]).float()
    )
    one = [x[:, :1].expand(9, 10) for x in plain]
    torch.testing.assert_close(
        sslfast.self_classifier(one), reference.self_classifier([x.double() for x in one]).float()
    )


def test_misaligned_inputs():
    for values in (torch.randn(2 * 7 * 5 + 1), torch.randn(2 * 7 * 5 + 1, dtype=torch.float64)):
        x = list(values[1:].view(2, 7, 5))
        torch.testing.assert_close(sslfast.self_classifier(x), reference.self_classifier(x))


def test_inputs_stay_untouched():
    inputs = views(3, 5, 4)
    copies = [v.detach().clone() for v in inputs]
    gradients(sslfast.self_classifier, inputs)
    assert all(torch.equal(one, other) for one, other in zip(inputs, copies, strict=True))


def test_only_some_views_need_a_gradient():
    inputs = views(3, 6, 5, torch.float64)
    want = torch.autograd.grad(reference.self_classifier(inputs), inputs[1])[0]
    mixed = [inputs[0].detach(), inputs[1], inputs[2].detach()]
    torch.testing.assert_close(torch.autograd.grad(sslfast.self_classifier(mixed), inputs[1])[0], want)
    assert not sslfast.self_classifier([x.detach() for x in inputs]).requires_grad
    same = [inputs[0], inputs[0]]
    torch.testing.assert_close(
        torch.autograd.grad(sslfast.self_classifier(same), inputs[0]),
        torch.autograd.grad(reference.self_classifier(same), inputs[0]),
    )


def test_many_runs_are_bit_equal():
    first, first_grads = gradients(sslfast.self_classifier, views(3, 67, 40))
    for _ in range(50):
        loss, grads = gradients(sslfast.self_classifier, views(3, 67, 40))
        assert torch.equal(loss, first)
        assert all(torch.equal(one, other) for one, other in zip(grads, first_grads, strict=True))


def test_the_number_of_threads_changes_nothing():
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(sslfast.self_classifier, views(3, 301, 200)))
    finally:
        torch.set_num_threads(threads)
    for loss, grads in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert all(torch.equal(one, other) for one, other in zip(grads, results[0][1], strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_dtype_that_came(dtype):
    inputs = views(3, 6, 5, dtype)
    loss, grads = gradients(sslfast.self_classifier, inputs)
    want, want_grads = gradients(sslfast.self_classifier, [x.detach().float().requires_grad_() for x in inputs])
    assert loss.dtype == dtype and torch.equal(loss, want.to(dtype))
    assert all(torch.equal(one, other.to(dtype)) for one, other in zip(grads, want_grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_computes_in_float32(dtype):
    inputs = views(2, 6, 5, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sslfast.self_classifier(inputs)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference.self_classifier([x.float() for x in inputs]), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert inputs[0].grad.dtype == dtype


def test_no_large_temporaries():
    inputs = views(4, 1024, 500)
    size = 4 * 1024 * 500 * 4
    gradients(sslfast.self_classifier, inputs)

    def peak(function):
        with torch.profiler.profile(profile_memory=True) as profile:
            function()
        alive = highest = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                alive += event.nbytes()
                highest = max(highest, alive)
        return highest

    assert peak(lambda: sslfast.self_classifier(inputs)) < 0.2 * size
    assert peak(lambda: gradients(sslfast.self_classifier, inputs)) < 1.2 * size
    assert peak(lambda: gradients(reference.self_classifier, inputs)) > 3 * size


def test_second_derivatives():
    inputs = views(3, 4, 3, torch.float64, scale=0.2)
    want = reference.self_classifier(inputs)
    loss = sslfast.self_classifier(inputs)

    def penalty(value):
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs, create_graph=True)

    for one, other in zip(penalty(loss), penalty(want), strict=True):
        torch.testing.assert_close(one, other)
    # The third, too: nothing on the way is treated as a constant.
    third = torch.autograd.grad(sum(one.pow(3).sum() for one in penalty(loss)), inputs[0])[0]
    third_want = torch.autograd.grad(sum(one.pow(3).sum() for one in penalty(want)), inputs[0])[0]
    torch.testing.assert_close(third, third_want)


def test_torch_func():
    x, y = (v.detach() for v in views(2, 4, 3, torch.float64, scale=0.2))

    def ours(a, b):
        return sslfast.self_classifier([a, b])

    def plain(a, b):
        return reference.self_classifier([a, b])

    def grad(function):
        return torch.func.grad(function, argnums=(0, 1))

    torch.testing.assert_close(grad(ours)(x, y), grad(plain)(x, y))
    many = torch.stack([x, x + 1, x * 2]), torch.stack([y, y * 2, y + 3])
    each = torch.stack([plain(a, b) for a, b in zip(*many, strict=True)])
    torch.testing.assert_close(torch.func.vmap(ours)(*many), each)
    torch.testing.assert_close(torch.func.vmap(grad(ours))(*many), torch.func.vmap(grad(plain))(*many))
    shared = torch.func.vmap(grad(ours), in_dims=(0, None))(many[0], y)
    torch.testing.assert_close(shared, torch.func.vmap(grad(plain), in_dims=(0, None))(many[0], y))

    def summed(function, values):
        return torch.func.vmap(function)(values, many[1]).sum()

    torch.testing.assert_close(
        torch.func.grad(lambda values: summed(ours, values))(many[0]),
        torch.func.grad(lambda values: summed(plain, values))(many[0]),
    )
    twice = torch.func.jacrev(torch.func.jacrev(lambda a: ours(a, y)))(x)
    torch.testing.assert_close(twice, torch.func.jacrev(torch.func.jacrev(lambda a: plain(a, y)))(x))
    # Several cotangents at once reach the backward operator itself with a mapped dimension.
    leaf = x.clone().requires_grad_()
    batched = torch.autograd.grad(ours(leaf, y), leaf, torch.tensor([1.0, 2.0], dtype=x.dtype), is_grads_batched=True)
    once = torch.autograd.grad(plain(leaf, y), leaf)[0]
    torch.testing.assert_close(batched[0], torch.stack([once, 2 * once]))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own forward mode uses it
def test_forward_mode_is_refused_in_words():
    x, y = (v.detach() for v in views(2, 4, 3))
    with pytest.raises((RuntimeError, NotImplementedError), match="jvp|forward"):
        torch.autograd.forward_ad.enter_dual_level()
        try:
            dual = torch.autograd.forward_ad.make_dual(x, y)
            sslfast.self_classifier([dual, y])
        finally:
            torch.autograd.forward_ad.exit_dual_level()


def test_the_plain_forms_are_the_operators():
    x = [v.detach() for v in views(4, 12, 7, torch.float64)]
    options = (0.1, 0.05, 2, 1e-8, 12)
    columns, rows = torch.ops.sslfast.self_classifier_columns(x, *options[:2])
    torch.testing.assert_close((columns, rows), reference.self_classifier_columns(x, *options[:2]))
    found = torch.ops.sslfast.self_classifier_terms(x, columns, rows, *options)
    torch.testing.assert_close(tuple(found), reference.self_classifier_terms(x, columns, rows, *options))
    whole = torch.ops.sslfast.self_classifier_fwd(x, *options[:4])
    torch.testing.assert_close(tuple(whole), reference.self_classifier_fwd(x, *options[:4]))
    assert all(torch.equal(one, other) for one, other in zip(whole, found, strict=True))
    grad = torch.tensor(1.3, dtype=torch.float64)
    torch.testing.assert_close(
        torch.ops.sslfast.self_classifier_bwd(grad, x, *found[1:], *options),
        reference.self_classifier_bwd(grad, x, *found[1:], *options),
    )


def test_a_changed_batch_size_compiles_too():
    compiled = torch.compile(sslfast.self_classifier, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 9, 17):
        inputs = views(2, rows, 6)
        loss, grads = gradients(compiled, inputs)
        want, want_grads = gradients(sslfast.self_classifier, inputs)
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(grads, want_grads)


def test_mixed_precision_under_autocast():
    a = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one = sslfast.self_classifier([a, a.bfloat16()])
        several = sslfast.self_classifier([[a, a], [a.bfloat16(), a]])
    assert one.dtype == several.dtype == torch.float32
