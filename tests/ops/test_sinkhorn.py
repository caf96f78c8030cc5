import functools
import math

import gloo
import pytest
import torch

import sslfast
from sslfast._reference import sinkhorn as reference
from sslfast.bench.cases.sinkhorn import cosines, dinov2_form
from sslfast.testing import poisoned


def log_domain(scores, iterations=3, epsilon=0.05):
    """The oracle: both scalings in float64, on logarithms, without any identity that the kernels use."""
    logs = scores.double() / epsilon
    logs = logs - torch.logsumexp(logs.flatten(), 0)
    for _ in range(iterations):
        logs = logs - logs.logsumexp(0)
        logs = logs - logs.logsumexp(1, keepdim=True) - math.log(len(scores))
    return (logs + math.log(len(scores))).exp()


def scores(b, k, dtype=torch.float32, size=1.0):
    return (cosines(b, k) * size).to(dtype)


def test_is_what_the_definition_says():
    # Two samples, two prototypes, one iteration, by hand: E = [[e, 1], [1, 1]], columns to 1, then rows to 1.
    e = math.e
    columns = [[e / (e + 1), 0.5], [1 / (e + 1), 0.5]]
    want = [[value / sum(row) for value in row] for row in columns]
    got = sslfast.sinkhorn(torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64), 1, 1.0)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))
    # No iteration: divided by the mean sum per row.
    none = sslfast.sinkhorn(torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64), 0, 1.0)
    torch.testing.assert_close(none, torch.tensor([[e, 1], [1, 1]], dtype=torch.float64) * 2 / (e + 3))


@pytest.mark.parametrize("iterations", [0, 1, 3, 10])
@pytest.mark.parametrize(("b", "k"), [(1, 1), (1, 9), (9, 1), (64, 300), (33, 1025), (200, 70)])
def test_equals_the_log_domain_oracle(b, k, iterations):
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-13)):
        x = scores(b, k, dtype)
        truth = log_domain(x, iterations)
        error = (sslfast.sinkhorn(x, iterations).double() - truth).abs().max()
        assert error <= tolerance * truth.max()


def test_huge_scores_stay_numbers():
    # scores / epsilon beyond 2^24: their products must be rounded in one way only.
    torch.testing.assert_close(sslfast.sinkhorn(torch.full((4, 3), 3e8)), torch.full((4, 3), 1 / 3))
    assert torch.equal(sslfast.sinkhorn(torch.tensor([[3e8, 1e8], [1e8, 3e8]])), torch.eye(2))
    for seed in range(50):
        drawn = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
        for scale in (3e7, 1e8, 1e10):
            assert sslfast.sinkhorn(drawn * scale).isfinite().all()


@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize(("b", "k"), [(1, 3), (5, 16), (18, 33), (40, 129), (65, 2100)])
def test_every_vector_width_is_right(bits, b, k):
    before = torch.ops.sslfast.cpu_vector_bits(0)
    widest = torch.ops.sslfast.cpu_vector_bits(512)
    if widest < bits:
        pytest.skip(f"this processor has {widest}-bit vectors")
    try:
        assert torch.ops.sslfast.cpu_vector_bits(bits) == bits
        with poisoned():
            near = sslfast.sinkhorn(scores(b, k))
            far = sslfast.sinkhorn(scores(b, k, size=50.0))
            none = sslfast.sinkhorn(scores(b, k), 0)
            double = sslfast.sinkhorn(scores(b, k, torch.float64))
    finally:
        torch.ops.sslfast.cpu_vector_bits(before)
    torch.testing.assert_close(near.double(), log_domain(scores(b, k)), rtol=5e-6, atol=1e-8)
    torch.testing.assert_close(far.double(), log_domain(scores(b, k, size=50.0)), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(none.double(), log_domain(scores(b, k), 0), rtol=5e-6, atol=1e-8)
    torch.testing.assert_close(double, log_domain(scores(b, k)), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_equals_lightly_and_the_swav_form(iterations):
    lightly = pytest.importorskip("lightly.loss.swav_loss")
    x = scores(48, 130, torch.float64)
    want = lightly.sinkhorn(x, iterations=iterations, epsilon=0.05)
    torch.testing.assert_close(sslfast.sinkhorn(x, iterations), want, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(dinov2_form(x.float(), iterations).double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_is_the_centring_of_dinov2(temperature):
    outputs = scores(24, 700, torch.float32, size=3.0)
    torch.testing.assert_close(
        sslfast.sinkhorn(outputs, 3, temperature), dinov2_form(outputs, 3, temperature), rtol=2e-5, atol=1e-7
    )


@pytest.mark.parametrize(("size", "tolerance"), [(1, 2e-6), (10, 3e-5), (50, 2e-4)])
def test_unnormalised_logits_neither_overflow_nor_vanish(size, tolerance):
    # Logits of +-size at 0.05: exponents of +-20 * size, where float32 ends at 88.
    drawn = torch.randn(40, 300, generator=torch.Generator().manual_seed(1)).clamp(-4, 4) * (size / 4)
    drawn[:, 7] -= size  # a prototype far below all others, and a sample likewise
    drawn[3] -= size
    got = sslfast.sinkhorn(drawn)
    truth = log_domain(drawn)
    assert got.isfinite().all()
    assert (got.double() - truth).abs().max() <= tolerance
    torch.testing.assert_close(got.sum(dim=1), torch.ones(40))


def test_sums_that_overflow_only_together():
    # Every block of 64 rows adds up to about 2e38, ten of them to more than float32 holds; the first rows do not tell.
    x = torch.full((640, 40), 84.0)
    x[:8] = 0
    x[:, 1] = torch.linspace(0, 84, 640)
    torch.testing.assert_close(sslfast.sinkhorn(x, 3, 1.0).double(), log_domain(x, 3, 1.0), rtol=1e-4, atol=1e-7)


def test_logits_of_ten_thousand_stay_finite():
    drawn = torch.randn(20, 40, generator=torch.Generator().manual_seed(2))
    x = drawn.sign() * 1e4 + drawn  # exponents of +-200,000
    got = sslfast.sinkhorn(x)
    assert got.isfinite().all()
    torch.testing.assert_close(got.sum(dim=1), torch.ones(20))
    double = sslfast.sinkhorn(x.double())
    torch.testing.assert_close(double, log_domain(x), rtol=1e-9, atol=1e-9)


def test_a_prototype_far_below_the_others_is_still_used():
    # Against the greatest score of all, every weight of the second prototype is 0 in float32, and 1 / 0 would follow.
    x = torch.tensor([[10.0, 0.0, 9.0], [10.0, 0.0, 9.0], [10.0, 0.01, 9.0]])
    assert not (((x - x.max()) / 0.05).exp().sum(0) > 0).all()
    torch.testing.assert_close(sslfast.sinkhorn(x).double(), log_domain(x), rtol=1e-4, atol=1e-6)


def test_a_maximum_per_sample_would_be_another_algorithm():
    x = scores(30, 50, size=5.0)
    x[4] += 3
    truth = log_domain(x)
    wrong = log_domain(x - x.max(dim=1, keepdim=True).values)
    assert (wrong - truth).abs().max() > 1e-3
    assert (sslfast.sinkhorn(x).double() - truth).abs().max() < 1e-5


def test_many_prototypes():
    x = scores(12, 131072)
    truth = log_domain(x)
    got = sslfast.sinkhorn(x)
    assert (got.double() - truth).abs().max() <= 5e-6 * truth.max()
    torch.testing.assert_close(got.sum(dim=1), torch.ones(12))


@pytest.mark.parametrize("valid", [0, 1, 5, 19, 40])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_only_valid_rows_count(valid, iterations):
    x = scores(40, 70, torch.float64)
    x[valid:] = 1e300  # were they looked at, everything would be infinite
    want = torch.zeros(40, 70, dtype=torch.float64)
    if valid:
        want[:valid] = log_domain(x[:valid], iterations)
    for given in (valid, torch.tensor(valid), torch.tensor([valid], dtype=torch.int32)):
        with poisoned():
            torch.testing.assert_close(sslfast.sinkhorn(x, iterations, valid_rows=given), want, rtol=1e-12, atol=1e-15)
    if valid:
        some = scores(40, 70, torch.float64)
        got = reference.sinkhorn(some, iterations, valid_rows=valid)
        torch.testing.assert_close(got[:valid], log_domain(some[:valid], iterations), rtol=1e-12, atol=1e-15)
        assert (got[valid:] == 0).all()


def test_valid_rows_of_a_tensor_are_limited():
    x = scores(6, 5)
    assert torch.equal(sslfast.sinkhorn(x, valid_rows=torch.tensor(9)), sslfast.sinkhorn(x))
    assert (sslfast.sinkhorn(x, valid_rows=torch.tensor(-2)) == 0).all()


def test_carries_no_gradient():
    x = scores(6, 5).requires_grad_()
    result = sslfast.sinkhorn(x)
    assert not result.requires_grad
    assert torch.autograd.grad((result * x).sum(), x)[0].equal(result)


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_come_out_as_nan(bad, iterations):
    x = scores(40, 70)
    x[21, 3] = bad
    got = sslfast.sinkhorn(x, iterations)
    # What is left of the plain form, entry by entry: with one iteration a NaN stays in the rows and its column.
    assert got[21].isnan().all() if iterations else got.isnan().any()
    assert got.isnan().all() or iterations <= 1


def test_minus_infinity_is_a_prototype_that_a_sample_may_not_have():
    x = scores(20, 30, torch.float64)
    x[3, 4] = x[0, 0] = -math.inf
    for dtype in (torch.float32, torch.float64):
        got = sslfast.sinkhorn(x.to(dtype))
        assert got[3, 4] == got[0, 0] == 0
        torch.testing.assert_close(got.double(), log_domain(x), rtol=1e-5, atol=1e-7)
    x[:, 9] = -math.inf  # a prototype for nobody: 0 / 0, as in the plain form
    assert sslfast.sinkhorn(x).isnan().all()


def test_non_contiguous_misaligned_and_expanded_inputs():
    x = scores(17, 33)
    want = sslfast.sinkhorn(x)
    assert torch.equal(sslfast.sinkhorn(x.T.contiguous().T), want)
    assert torch.equal(sslfast.sinkhorn(torch.stack([x, x], dim=2)[:, :, 1]), want)
    apart = torch.empty(17 * 33 + 1)
    apart[1:] = x.flatten()
    assert torch.equal(sslfast.sinkhorn(apart[1:].view(17, 33)), want)
    row = x[:1].expand(6, 33)
    torch.testing.assert_close(sslfast.sinkhorn(row), sslfast.sinkhorn(row.contiguous()), rtol=0, atol=0)


def test_inputs_stay_untouched_and_the_result_is_contiguous():
    x = scores(9, 20)
    copy = x.clone()
    assert sslfast.sinkhorn(x).is_contiguous()
    assert torch.equal(x, copy)


def test_runs_and_numbers_of_threads_are_bit_equal():
    x = scores(300, 700)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = sslfast.sinkhorn(x)
        torch.set_num_threads(3)
        assert all(torch.equal(sslfast.sinkhorn(x), first) for _ in range(20))
    finally:
        torch.set_num_threads(threads)


def test_half_precision_gives_the_dtype_that_came():
    for dtype in (torch.float16, torch.bfloat16):
        x = scores(6, 50, dtype)
        got = sslfast.sinkhorn(x)
        assert got.dtype == dtype
        assert torch.equal(got, sslfast.sinkhorn(x.float()).to(dtype))


def test_autocast_computes_in_float32():
    x = scores(6, 50, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = sslfast.sinkhorn(x)
    assert torch.equal(got, sslfast.sinkhorn(x.float()))


def test_torch_func():
    x = torch.stack([scores(6, 20, torch.float64) * factor for factor in (1, 2, 3)])
    want = torch.stack([sslfast.sinkhorn(one) for one in x])
    assert torch.equal(torch.func.vmap(sslfast.sinkhorn)(x), want)
    assert torch.equal(torch.func.vmap(sslfast.sinkhorn, in_dims=2)(x.movedim(0, 2)), want)
    valid = torch.tensor([6, 2, 4])
    got = torch.func.vmap(lambda one, count: sslfast.sinkhorn(one, valid_rows=count))(x, valid)
    assert torch.equal(
        got, torch.stack([sslfast.sinkhorn(a, valid_rows=int(b)) for a, b in zip(x, valid, strict=True)])
    )
    grad = torch.func.grad(lambda one: (sslfast.sinkhorn(one) * one).sum())(x[0])
    assert torch.equal(grad, want[0])  # a constant, as after detach()


def test_compiles_with_changing_shapes_and_valid_rows():
    compiled = torch.compile(sslfast.sinkhorn, fullgraph=True, backend="aot_eager", dynamic=True)
    for b in (4, 9):
        x = scores(b, 11)
        assert torch.equal(compiled(x), sslfast.sinkhorn(x))
        assert torch.equal(compiled(x, valid_rows=torch.tensor(3)), sslfast.sinkhorn(x, valid_rows=3))
        assert torch.equal(compiled(x, valid_rows=3), sslfast.sinkhorn(x, valid_rows=3))


def test_memory_is_the_result_and_little_more():
    x = scores(1024, 600)
    with torch.profiler.profile(profile_memory=True) as profile:
        sslfast.sinkhorn(x)
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    result = x.numel() * 4
    assert sorted(sizes)[-1] == result
    assert sum(size for size in sizes if size > 0) <= 1.1 * result


def test_the_fallback_is_the_same_algorithm():
    x = scores(14, 40, torch.float64)
    for valid in (None, torch.tensor(9)):
        for iterations in (0, 1, 4):
            torch.testing.assert_close(
                reference.sinkhorn_fwd(x, valid, iterations, 0.05),
                torch.ops.sslfast.sinkhorn_fwd(x, valid, iterations, 0.05),
                rtol=1e-12,
                atol=1e-15,
            )
        sums = torch.ops.sslfast.sinkhorn_log_sums(x, valid, 0.05)
        torch.testing.assert_close(sums, reference.sinkhorn_log_sums(x, valid, 0.05))
        torch.testing.assert_close(
            torch.ops.sslfast.sinkhorn_probability_sums(x, sums, valid, 0.05),
            reference.sinkhorn_probability_sums(x, sums, valid, 0.05),
        )
        for normalised in (True, False):
            torch.testing.assert_close(
                torch.ops.sslfast.sinkhorn_assign(x, sums, valid, 0.05, normalised),
                reference.sinkhorn_assign(x, sums, valid, 0.05, normalised),
            )


ROWS = (7, 2, 30)
SHARED = [(0, 1), (3, 1), (3, 200)]


def of_rank(rank, world):
    x = cosines(sum(ROWS[:world]), 45)
    first = sum(ROWS[:rank])
    return x, slice(first, first + ROWS[rank])


def assign_shares(rank, world):
    """What one rank gets, and how many numbers it exchanged; every case in one start of the processes."""
    from sslfast.ops import sinkhorn as module

    exchanged = []

    def counted(primitive):
        def call(tensor, group):
            exchanged.append(tensor.numel())
            return primitive(tensor, group)

        return call

    module.sum_over_ranks = counted(module.sum_over_ranks)
    module.largest_over_ranks = counted(module.largest_over_ranks)
    results = {}
    for case in SHARED:
        exchanged.clear()
        results[case] = *assign_a_share(rank, world, *case), list(exchanged)
    return results


def assign_a_share(rank, world, iterations, size):
    x, own = of_rank(rank, world)
    group = torch.distributed.group.WORLD
    result = sslfast.sinkhorn(x[own] * size, iterations, group=group)
    # Two valid rows on rank 0, none on rank 1, five on rank 2.
    counts = sslfast.sinkhorn(x[own] * size, iterations, valid_rows=(2, 0, 5)[rank], group=group)
    half = sslfast.sinkhorn((x[own] * size).bfloat16(), iterations, group=group)
    return result, counts, half.dtype == torch.bfloat16


@functools.cache
def of_ranks(world):
    return gloo.run(__file__, "assign_shares", world)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("iterations", "size"), SHARED)
def test_several_ranks_share_one_batch(world, iterations, size):
    results = [one[iterations, size] for one in of_ranks(world)]
    x, _ = of_rank(0, world)
    torch.testing.assert_close(torch.cat([one[0] for one in results]), log_domain(x * size, iterations))
    valid = [slice(sum(ROWS[:rank]), sum(ROWS[:rank]) + (2, 0, 5)[rank]) for rank in range(world)]
    want = torch.zeros_like(x)
    together = log_domain(torch.cat([x[rows] for rows in valid]) * size, iterations)
    for rows, part in zip(valid, together.split([rows.stop - rows.start for rows in valid]), strict=True):
        want[rows] = part
    torch.testing.assert_close(torch.cat([one[1] for one in results]), want)
    assert all(one[2] for one in results)
    # One maximum and one sum per iteration, K numbers each; a count where nothing is iterated.
    once = [] if world == 1 else [45] * (1 + max(iterations, 1)) + [1] * (iterations == 0)
    assert all(one[3] == once * 3 for one in results)
