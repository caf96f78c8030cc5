"""NT-Xent with a memory bank, with positives by index, and across ranks."""

import functools
import math
import subprocess
import sys
from pathlib import Path

import gloo
import numpy
import pytest
import torch
import torch.distributed as distributed

import sslfast
from sslfast._reference import nt_xent as reference
from sslfast._reference import score_lse as score_reference
from sslfast.ops.score_lse import score_lse
from sslfast.testing import poisoned


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def test_negatives_are_what_the_definition_says():
    z0, z1, negatives = (normal(2, 3, seed=seed).detach() for seed in range(3))
    total = 0.0
    for a, b in zip(z0, z1, strict=True):
        a, b = a / a.norm(), b / b.norm()
        positive = math.exp(float(a @ b) / 0.3)
        total -= math.log(positive / (positive + sum(math.exp(float(a @ one) / 0.3) for one in negatives)))
    assert float(sslfast.nt_xent(z0, z1, 0.3, negatives=negatives.T)) == pytest.approx(total / 2, rel=1e-12)


def test_indexed_is_what_the_definition_says():
    z = normal(5, 3).detach()
    index = [7, -1, 7, -1, 7]
    u = [row / row.norm() for row in z]
    total = 0.0
    for i in range(5):
        terms = {j: math.exp(float(u[i] @ u[j]) / 0.3) for j in range(5) if j != i}
        total -= math.log(sum(terms[j] for j in terms if index[j] == index[i]) / sum(terms.values()))
    assert float(sslfast.nt_xent_indexed(z, torch.tensor(index), 0.3)) == pytest.approx(total / 5, rel=1e-12)


def test_two_indexed_views_are_nt_xent():
    z0, z1 = normal(30, 8), normal(30, 8, seed=1)
    index = torch.arange(30).repeat(2)
    for tau in (0.5, 0.05, 0.01):
        want = sslfast.nt_xent(z0, z1, tau)
        loss = sslfast.nt_xent_indexed(torch.cat([z0, z1]), index, tau)
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(torch.autograd.grad(loss, [z0, z1]), torch.autograd.grad(want, [z0, z1]))


def test_class_labels_as_indexes():
    z = normal(300, 16, dtype=torch.float32)
    label = torch.randint(10, (300,), generator=torch.Generator().manual_seed(1))
    loss = sslfast.nt_xent_indexed(z, label, 0.2)
    want = reference.nt_xent_indexed(z.double(), label, 0.2)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-6)
    (grad,), (true,) = torch.autograd.grad(loss, z), torch.autograd.grad(want, z)
    torch.testing.assert_close(grad, true, rtol=1e-4, atol=1e-8)
    for narrow in (torch.uint8, torch.int32):
        assert torch.equal(sslfast.nt_xent_indexed(z, label.to(narrow), 0.2), loss)


def test_huge_indexes_are_told_apart():
    # Equal in their lower 32 bits and as float64.
    index = torch.tensor([2**62, 2**62 + 1, 2**62, 2**62 + 1, 5, 5 + 2**32, 5, 5 + 2**32])
    small = torch.tensor([0, 1, 0, 1, 2, 3, 2, 3])
    z = normal(8, 4)
    assert torch.equal(sslfast.nt_xent_indexed(z, index), sslfast.nt_xent_indexed(z, small))


def test_a_row_without_a_positive_makes_the_loss_infinite():
    z = normal(5, 4, dtype=torch.float32)
    assert sslfast.nt_xent_indexed(z, torch.tensor([0, 0, 1, 1, 2])) == math.inf


@pytest.mark.parametrize("bits", [128, 256, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m", "d", "diagonal"), [(1, 1, 1, 1), (3, 5, 7, 2), (50, 130, 33, -7), (30, 300, 8, 4)])
def test_every_vector_width_of_score_lse(bits, n, m, d, diagonal, dtype):
    before = torch.ops.sslfast.cpu_vector_bits(0)
    if torch.ops.sslfast.cpu_vector_bits(512) < bits:
        pytest.skip(f"this processor has no {bits}-bit vectors")
    rows, columns = normal(n, d, dtype=dtype).detach(), normal(m, d, seed=1, dtype=dtype).detach()
    labels = torch.arange(n) % 3, torch.arange(m) // 7 % 4
    arguments = (*labels, diagonal, 0.8)
    sides = [
        torch.stack(
            [normal(count, seed=seed, dtype=dtype).detach() + more for seed, more in ((2, 0), (3, 0), (4, 9), (5, 9))]
        )
        for count in (n, m)
    ]
    try:
        torch.ops.sslfast.cpu_vector_bits(bits)
        with poisoned():
            found = torch.ops.sslfast.score_lse_fwd(rows, columns, *arguments)
            result = torch.ops.sslfast.score_lse_bwd(rows, columns, *arguments, *sides)
    finally:
        torch.ops.sslfast.cpu_vector_bits(before)
    truth = score_reference.score_lse_fwd(rows.double(), columns.double(), *arguments)
    true = score_reference.score_lse_bwd(
        rows.double(), columns.double(), *arguments, *(side.double() for side in sides)
    )
    epsilon = 2e-5 if dtype == torch.float32 else 1e-13
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=epsilon, atol=epsilon)
    torch.testing.assert_close(result.double(), true, rtol=10 * epsilon, atol=epsilon * float(true.abs().max()))


def test_score_lse_without_columns_or_labels():
    rows = normal(3, 4)
    every, equal = score_lse(rows, normal(0, 4), temperature=1.0)
    assert torch.equal(every, torch.full((3,), -math.inf).double()) and torch.equal(equal, every)
    assert (score_lse(rows, normal(2, 4), temperature=1.0)[1] == -math.inf).all()


def test_score_lse_of_far_away_scores():
    rows, columns = torch.full((2, 1), 300.0), torch.tensor([[300.0], [-300.0]])
    every, _ = score_lse(rows, columns, temperature=0.5)
    torch.testing.assert_close(every, torch.full((2,), 180000.0))
    every, _ = score_lse(rows, -rows, temperature=0.5)
    torch.testing.assert_close(every, torch.full((2,), -180000.0 + math.log(2)))


def test_derivatives_of_every_order():
    z0, z1, negatives = normal(3, 2), normal(3, 2, seed=1), normal(2, 4, seed=2)
    index = torch.tensor([0, 1, 0])

    def against(*inputs):
        return sslfast.nt_xent(*inputs[:2], 0.4, negatives=inputs[2])

    assert torch.autograd.gradgradcheck(against, (z0, z1, negatives))

    def third(function, z):
        gradient = torch.autograd.grad(function(z), z, create_graph=True)[0]
        gradient = torch.autograd.grad(gradient.square().sum(), z, create_graph=True)[0]
        return torch.autograd.grad(gradient.pow(3).sum(), z)[0]

    z = normal(3, 2, seed=4)
    index = torch.tensor([0, 0, 0])
    torch.testing.assert_close(
        third(lambda rows: sslfast.nt_xent_indexed(rows, index, 0.4), z),
        third(lambda rows: reference.nt_xent_indexed(rows, index, 0.4), z),
    )


def test_torch_func():
    z, other, negatives = normal(3, 4, 2).detach(), normal(3, 4, 2, seed=1).detach(), normal(2, 5, seed=2).detach()
    index = torch.tensor([0, 1, 0, 1])

    def of(op):
        return lambda a, b: op.nt_xent(a, b, 0.3, negatives=negatives) + op.nt_xent_indexed(a, index, 0.3)

    mapped = torch.func.vmap(torch.func.grad(of(sslfast)))(z, other)
    torch.testing.assert_close(mapped, torch.func.vmap(torch.func.grad(of(reference)))(z, other))
    jacobian = torch.func.jacrev(torch.func.jacrev(of(sslfast)))(z[0], other[0])
    torch.testing.assert_close(jacobian, torch.func.jacrev(torch.func.jacrev(of(reference)))(z[0], other[0]))


def test_bank_of_another_dtype_and_without_gradient():
    z0, z1 = normal(4, 3, dtype=torch.bfloat16), normal(4, 3, seed=1, dtype=torch.bfloat16)
    bank = torch.nn.functional.normalize(normal(7, 3, seed=2, dtype=torch.float32), dim=1).T.detach()
    loss = sslfast.nt_xent(z0, z1, negatives=bank)
    assert loss.dtype == torch.bfloat16
    want = reference.nt_xent(z0.float(), z1.float(), 0.5, bank)
    torch.testing.assert_close(loss.float(), want, rtol=8e-3, atol=8e-3)
    loss.backward()
    assert z0.grad.dtype == torch.bfloat16 and z1.grad is not None


def test_lightly_agrees_on_a_memory_bank():
    lightly = pytest.importorskip("lightly.loss")
    z0, z1 = normal(9, 6, dtype=torch.float32), normal(9, 6, seed=1, dtype=torch.float32)
    module = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(20, 6))
    bank = module.memory_bank.bank.clone().T
    want = module(z0, z1)
    loss = sslfast.nt_xent(z0, z1, 0.2, negatives=bank)
    torch.testing.assert_close(loss, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, [z0, z1]), torch.autograd.grad(want, [z0, z1]))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"z": [1.0]}, TypeError, "z must be a tensor, got list"),
        ({"z": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "z must be float32"),
        ({"z": torch.zeros(4)}, ValueError, r"z must be \(M, D\), got \(4,\)"),
        ({"z": torch.zeros(0, 3)}, ValueError, "must not be empty"),
        ({"indexes": [0, 1, 0, 1]}, TypeError, "indexes must be a tensor, got list"),
        ({"indexes": torch.zeros(4)}, TypeError, "indexes must be integers, got torch.float32"),
        ({"indexes": torch.zeros(3, dtype=torch.int64)}, ValueError, r"indexes must be \(M,\) with M = 4"),
        ({"indexes": torch.zeros(4, dtype=torch.int64, device="meta")}, ValueError, "z is on cpu, indexes is on meta"),
        ({"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
        ({"group": "everybody"}, TypeError, "group must be None or a torch.distributed process group, got str"),
    ],
)
def test_bad_arguments_of_indexed_are_named(change, error, words):
    given = {"z": torch.ones(4, 3), "indexes": torch.tensor([0, 1, 0, 1]), "temperature": 0.5, **change}
    with pytest.raises(error, match=f"nt_xent_indexed: .*{words}"):
        sslfast.nt_xent_indexed(**given)


@pytest.mark.parametrize(
    ("negatives", "error", "words"),
    [
        ("many", TypeError, "negatives must be a tensor, got str"),
        (torch.zeros(3, 5, dtype=torch.int64), TypeError, "negatives must be float32"),
        (torch.zeros(5, 3), ValueError, r"negatives must be \(D, M\) with D = 3 and M > 0, got \(5, 3\)"),
        (torch.zeros(3, 0), ValueError, r"got \(3, 0\)"),
        (torch.zeros(3, 2, device="meta"), ValueError, "z0 is on cpu, negatives is on meta"),
    ],
)
def test_bad_negatives_are_named(negatives, error, words):
    with pytest.raises(error, match=f"nt_xent: .*{words}"):
        sslfast.nt_xent(torch.ones(4, 3), torch.ones(4, 3), negatives=negatives)


@pytest.mark.parametrize(
    "change",
    [
        {"columns": torch.zeros(4, 2)},
        {"columns": torch.zeros(4, 3).double()},
        {"row_label": None},
        {"row_label": torch.zeros(2)},
        {"column_label": torch.zeros(3, dtype=torch.int64)},
        {"temperature": -1.0},
    ],
)
def test_the_raw_operator_refuses_too(change):
    label = torch.zeros(2, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    given = {"rows": torch.zeros(2, 3), "columns": torch.zeros(4, 3), "row_label": label[0], "column_label": label[1]}
    given |= {"diagonal": 0, "temperature": 1.0, **change}
    with pytest.raises(RuntimeError, match="score_lse_fwd: "):
        torch.ops.sslfast.score_lse_fwd(**given)
    with pytest.raises(RuntimeError, match="score_lse_bwd: "):
        torch.ops.sslfast.score_lse_bwd(**given, row_side=None, column_side=None)


def test_the_raw_backward_refuses_wrong_sides():
    for sides in ((torch.zeros(3, 2), None), (None, torch.zeros(4, 3)), (torch.zeros(4, 2).double(), None)):
        with pytest.raises(RuntimeError, match="score_lse_bwd: (row|column)_side must be"):
            torch.ops.sslfast.score_lse_bwd(torch.zeros(2, 3), torch.zeros(4, 3), None, None, 0, 1.0, *sides)


GROWTH = """
import torch, sslfast
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
z0, z1 = torch.randn(32768, 128).requires_grad_(), torch.randn(32768, 128).requires_grad_()
sslfast.nt_xent(z0[:64], z1[:64]).backward()
before = peak()
sslfast.nt_xent(z0, z1).backward()
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of the process")
def test_a_batch_of_32768_adds_less_than_a_gibibyte():
    run = subprocess.run([sys.executable, "-P", "-c", GROWTH], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    # One matrix of scores would be 16 GiB.
    assert int(run.stdout) < 2**20


@pytest.mark.parametrize("temperature", [1e-39, 1e300, 10**400, float("nan")])
def test_temperatures_beyond_float32_are_named(temperature):
    with pytest.raises(ValueError, match="nt_xent: temperature must be"):
        sslfast.nt_xent(torch.ones(4, 3), torch.ones(4, 3), temperature)


@pytest.mark.parametrize("temperature", [1e-8, 1e-12, 1e-30])
@pytest.mark.parametrize("form", ["views", "indexed", "negatives", "few negatives"])
def test_gradients_at_the_lowest_temperatures_are_bounded(form, temperature):
    # A score of 1e8 is rounded by 8, and e^8 would be a weight of thousands where weights sum to 1.
    z0, z1 = (normal(64, 32, seed=seed, dtype=torch.float32).detach().requires_grad_() for seed in (0, 1))
    bank = normal(32, 1024 if form == "negatives" else 32, seed=2, dtype=torch.float32).detach()
    bank = bank / bank.norm(dim=0)
    if form == "indexed":
        loss = sslfast.nt_xent_indexed(torch.cat([z0, z1]), torch.arange(64).repeat(2), temperature)
    else:
        loss = sslfast.nt_xent(z0, z1, temperature, negatives=None if form == "views" else bank)
    for grad in torch.autograd.grad(loss, (z0, z1)):
        assert (grad.double() * temperature).abs().max() <= 0.1


def test_numbers_of_numpy_are_numbers():
    z = normal(4, 3, dtype=torch.float32)
    assert torch.equal(sslfast.nt_xent(z, z, numpy.float32(0.5)), sslfast.nt_xent(z, z, 0.5))
    for dtype in (torch.uint16, torch.uint64):
        index = torch.tensor([0, 1, 0, 1]).to(dtype)
        assert torch.equal(sslfast.nt_xent_indexed(z, index), sslfast.nt_xent_indexed(z, index.long()))


# Across ranks -------------------------------------------------------------------------------------------------------


FORMS = "views", "cold", "negatives", "indexed"


def batch():
    return normal(11, 5).detach(), normal(11, 5, seed=1).detach(), normal(5, 6, seed=2).detach()


def counts(world):
    return {1: [11], 2: [8, 3], 3: [5, 1, 5]}[world]


def loss_of(form, z0, z1, negatives, images, group=None):
    if form == "negatives":
        return sslfast.nt_xent(z0, z1, 0.3, negatives=negatives, group=group)
    if form == "indexed":
        return sslfast.nt_xent_indexed(torch.cat([z0, z1]), images.repeat(2) // 2, 0.3, group=group)
    return sslfast.nt_xent(z0, z1, 0.02 if form == "cold" else 0.3, group=group)


def every_form(rank, world):
    """All forms in one start of the processes, which is what takes the time."""
    sent = []
    for name in ("all_gather", "all_reduce"):
        original = getattr(distributed, name)

        def counted(*arguments, original=original, **options):
            sent.append(max(one.numel() for one in arguments if isinstance(one, torch.Tensor)))
            return original(*arguments, **options)

        setattr(distributed, name, counted)
    results = {}
    for form in FORMS:
        sent.clear()
        results[form] = *one_form(form, rank, world), list(sent)
    return results


def one_form(form, rank, world):
    z0, z1, negatives = batch()
    start = sum(counts(world)[:rank])
    own = slice(start, start + counts(world)[rank])
    linear = torch.eye(5, dtype=torch.float64).requires_grad_()
    images = torch.arange(11)[own]
    loss = loss_of(form, z0[own] @ linear, z1[own] @ linear, negatives, images, distributed.group.WORLD)
    (gradient,) = torch.autograd.grad(loss, linear)
    distributed.all_reduce(gradient)
    return loss.detach(), gradient / world


@functools.cache
def of_ranks(world):
    return gloo.run(__file__, "every_form", world)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_ranks_together_give_the_gradient_of_the_whole_batch(form, world):
    z0, z1, negatives = batch()
    linear = torch.eye(5, dtype=torch.float64).requires_grad_()
    want = loss_of(form, z0 @ linear, z1 @ linear, negatives, torch.arange(11))
    (truth,) = torch.autograd.grad(want, linear)
    for loss, gradient, sent in (results[form] for results in of_ranks(world)):
        torch.testing.assert_close(loss, want.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, truth, rtol=1e-11, atol=1e-12)
        most = max(counts(world))
        # Row counts, (indexes,) rows, two sums per row; with negatives one pair of numbers. The last is the test's own.
        expected = {"negatives": [2], "indexed": [1, 2 * most, 10 * most, 4 * most]}.get(form, [1, 10 * most, 4 * most])
        assert sent[:-1] == ([] if world == 1 else expected)


def second_derivative(rank, world):
    z0, z1, _ = batch()
    own = slice(0, 5) if rank == 0 else slice(5, 11)
    leaf = z0[own].clone().requires_grad_()
    try:
        gradient = torch.autograd.grad(
            sslfast.nt_xent(leaf, z1[own], 0.3, group=distributed.group.WORLD), leaf, create_graph=True
        )[0]
        return float(torch.autograd.grad(gradient.square().sum(), leaf)[0].sum())
    except RuntimeError as error:
        return str(error)


def test_ranks_refuse_second_derivatives():
    for said in gloo.run(Path(__file__), "second_derivative", 2):
        assert said == "nt_xent: there are no second derivatives over a group"
