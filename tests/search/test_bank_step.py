"""The bank's step that a CUDA graph holds, run eagerly: against the definition, and that nothing in it waits."""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sslfast._head_bank.graph import multiply_half
from sslfast._head_bank.layout import HeadPlan, plans_of
from sslfast._head_bank.step import BankStep, train
from sslfast._reference import head_bank as reference
from sslfast.bench.head_bank import specs
from sslfast.models.head import HeadSpec
from sslfast.search.bank import HeadBank, Optimizer

SPECS = [
    HeadSpec((17,), 0.3, 0.01),
    HeadSpec((), 0.0, 0.02),
    HeadSpec((64, 130), 0.5, 0.02),
    HeadSpec((100, 33, 65), 0.0, 0.005),
    HeadSpec((16,), 0.4, 0.01),
]
OPTIMIZERS = [
    Optimizer("sgd", weight_decay=1e-3),
    Optimizer("adam", weight_decay=1e-2),
    Optimizer("adamw", weight_decay=1e-1),
    Optimizer("lars", weight_decay=1e-2, trust=0.02),
    Optimizer("sgd", momentum=0.0),
]


def rows(count, width, classes, dtype):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, width, generator=generator, dtype=torch.float64).to(dtype)
    return (
        features,
        torch.randint(classes, (count,), generator=generator),
        torch.randperm(count, generator=generator),
    )


def tables(bank, steps):
    """The operator's arguments for a bank: table, numbers, rates, states."""
    places = [bank._places[index] for index in bank.running]
    numbers = torch.tensor([place.optimizer.numbers() for place in places], dtype=torch.float64)
    rates = torch.tensor([[place.spec.learning_rate * (1 - t / 99) for t in range(steps)] for place in places])
    return bank._table(places), numbers, rates.double(), [place.state for place in places]


def eagerly(features, labels, order, heads, numbers, rates, states, batch, half):
    """What the CUDA implementation does, without graphs."""
    plans = plans_of(heads, numbers, features.shape[1])
    step = BankStep(plans, min(batch, len(order)), states[0].dtype, half)
    step.load(states)
    losses = train(step, features, labels, order, heads[:, 1], rates, step)
    step.store(states)
    return losses


def both(bank, features, labels, order, batch, half=False, oracle=torch.float64):
    """Train by the definition and by the step; gives losses and states of both."""
    heads, numbers, rates, states = tables(bank, -(-len(order) // batch))
    expected = [state.to(oracle) for state in states]
    found = [state.clone() for state in states]
    wanted = reference.head_bank_train(features.to(oracle), labels, order, heads, numbers, rates, expected, batch, half)
    losses = eagerly(features, labels, order, heads, numbers, rates, found, batch, half)
    return losses, wanted, found, expected


@pytest.mark.parametrize(("width", "classes", "batch"), [(37, 10, 16), (64, 100, 64), (5, 2, 7), (130, 16, 75)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: f"{one.name}-{one.momentum}")
def test_heads_end_as_the_definition_ends_them(optimizer, width, classes, batch):
    features, labels, order = rows(150, width, classes, torch.float64)
    bank = HeadBank(SPECS, width, classes, optimizers=optimizer, dtype=torch.float64)
    losses, wanted, found, expected = both(bank, features, labels, order, batch)
    torch.testing.assert_close(losses, wanted, rtol=1e-9, atol=1e-11)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_heads_of_unlike_optimizers_side_by_side():
    features, labels, order = rows(150, 37, 10, torch.float64)
    bank = HeadBank(SPECS, 37, 10, optimizers=OPTIMIZERS, dtype=torch.float64)
    losses, wanted, found, expected = both(bank, features, labels, order, 16)
    torch.testing.assert_close(losses, wanted, rtol=1e-9, atol=1e-11)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("specs", [SPECS[1:2], SPECS[:1], [SPECS[1]] * 3, SPECS[2:4]])
def test_banks_with_and_without_hidden_layers(specs):
    features, labels, order = rows(70, 20, 3, torch.float64)
    bank = HeadBank(specs, 20, 3, dtype=torch.float64)
    losses, wanted, found, expected = both(bank, features, labels, order, 32)
    torch.testing.assert_close(losses, wanted, rtol=1e-9, atol=1e-11)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_float32_by_the_fused_optimizers_follows_float64():
    features, labels, order = rows(160, 64, 10, torch.float32)
    bank = HeadBank(SPECS, 64, 10, optimizers=OPTIMIZERS)
    losses, wanted, found, expected = both(bank, features, labels, order, 16)
    torch.testing.assert_close(losses, wanted, rtol=2e-4, atol=0)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 2e-4 * theirs.norm()


def test_bfloat16_products_are_those_of_rounded_numbers():
    features, labels, order = rows(64, 70, 10, torch.float32)
    bank = HeadBank(SPECS, 70, 10)  # half asks the processor; the operator does not
    losses, wanted, found, expected = both(bank, features, labels, order, 64, half=True)
    exact = both(bank, features, labels, order, 64)[3]
    torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=0)
    for ours, theirs, start, full in zip(found, expected, tables(bank, 1)[3], exact, strict=True):
        moved, should, unrounded = ours - start, theirs - start, full - start
        assert (moved - should).norm() <= 2e-3 * should.norm()
        assert (moved - unrounded).norm() > 2e-4 * unrounded.norm()  # rounding was there


def test_calls_in_pieces_and_several_runs_are_one_call():
    features, labels, order = rows(300, 20, 4, torch.float64)
    bank = HeadBank(SPECS, 20, 4, optimizers=OPTIMIZERS, dtype=torch.float64)
    heads, numbers, rates, states = tables(bank, 75)
    once, twice = ([state.clone() for state in states] for _ in range(2))
    losses = eagerly(features, labels, order, heads, numbers, rates, once, 4, False)  # a run has 64 steps
    later = heads.clone()
    later[:, 1] += 70
    first = eagerly(features, labels, order[:280], heads, numbers, rates[:, :70], twice, 4, False)
    second = eagerly(features, labels, order[280:], later, numbers, rates[:, 70:], twice, 4, False)
    assert torch.equal(losses, torch.cat([first, second], 1))
    assert all(map(torch.equal, once, twice))
    expected = [state.clone() for state in states]
    reference.head_bank_train(features, labels, order, heads, numbers, rates, expected, 4, False)
    for ours, theirs in zip(once, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_a_step_goes_on_from_steps_long_done():
    features, labels, order = rows(48, 20, 4, torch.float64)
    bank = HeadBank(SPECS, 20, 4, optimizers=OPTIMIZERS, dtype=torch.float64)
    for place, done in zip(bank._places, (0, 3, 1 << 31, (1 << 62) + 12345, 7), strict=True):
        place.steps = done
    losses, wanted, found, expected = both(bank, features, labels, order, 16)
    torch.testing.assert_close(losses, wanted, rtol=1e-9, atol=1e-11)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_views_are_rows_of_their_own_with_the_labels_of_the_first():
    features, labels, _ = rows(60, 20, 4, torch.float64)
    views = torch.cat([features, features.flip(1)])
    order = torch.randperm(120, generator=torch.Generator().manual_seed(3))
    bank = HeadBank(SPECS, 20, 4, dtype=torch.float64)
    losses, wanted, _, _ = both(bank, views, labels, order, 32)
    torch.testing.assert_close(losses, wanted, rtol=1e-9, atol=1e-11)


def test_a_row_that_is_not_finite_shows_in_every_head_from_its_step_on():
    features, labels, order = rows(64, 20, 4, torch.float32)
    features[order[40], 3] = torch.nan
    bank = HeadBank(SPECS, 20, 4, optimizers=OPTIMIZERS)
    losses = both(bank, features, labels, order, 16)[0]
    assert losses[:, :2].isfinite().all()
    assert not losses[:, 2:].isfinite().any()


def test_a_head_that_diverges_leaves_its_neighbours_alone():
    features, labels, order = rows(64, 20, 4, torch.float32)
    bank = HeadBank(SPECS, 20, 4)
    heads, numbers, rates, states = tables(bank, 4)
    spoilt, clean = ([state.clone() for state in states] for _ in range(2))
    eagerly(features, labels, order, heads, numbers, rates, clean, 16, False)
    rates[2] = 1e30
    losses = eagerly(features, labels, order, heads, numbers, rates, spoilt, 16, False)
    assert not losses[2].isfinite().all() and losses[[0, 1, 3, 4]].isfinite().all()
    assert [torch.equal(ours, theirs) for ours, theirs in zip(spoilt, clean, strict=True)] == [
        index != 2 for index in range(5)
    ]


@pytest.mark.parametrize("count", [7, 8])
def test_the_noise_of_the_bank_is_the_definitions(count):
    bank = HeadBank(SPECS, 20, 4)
    heads, numbers, _, _ = tables(bank, 1)
    plans = plans_of(heads, numbers, 20)
    step = BankStep(plans, 8, torch.float32, False)
    done = torch.tensor([0, 5, 1 << 40, 2, (1 << 62) + 9])
    step.hashes[:3] = step.noise.hashes(done, 3)
    step.turn.fill_(2)
    step.noise.draw(step.hashes, step.turn)
    scale = step.noise.scale.flatten(0, 1)[:count]
    for index, plan in enumerate(plans):
        for layer, own in enumerate(step.columns.hidden[index]):
            units = plan.widths[layer + 1]
            bits = reference.noise(plan.key, int(done[index]) + 2, layer, count, units)
            factor = torch.tensor(65536 / (65536 - plan.dropped))
            assert torch.equal(scale[:, own][:, :units], (bits >= plan.dropped) * factor)


class Captureless(TorchDispatchMode):
    """Refuses what a capture would, and lists what else was called."""

    REFUSED = (
        "aten::_local_scalar_dense",
        "aten::item",
        "aten::nonzero",
        "aten::masked_select",
        "aten::_unique2",
        "aten::is_nonzero",
        "aten::equal",
        "aten::repeat_interleave",
        "aten::bincount",
    )

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        assert name not in self.REFUSED, f"a step calls {name}"
        tensors = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if not name.startswith("aten::"):  # a stand-in's own affairs
            return func(*args, **(kwargs or {}))
        assert len({one.device for one in tensors}) < 2, f"{name} takes tensors of two devices"
        if not any(argument.alias_info and not argument.alias_info.is_write for argument in func._schema.arguments):
            self.calls.append(name)  # not a view
        if name.startswith("aten::_fused_"):  # they have no stand-in and change their arguments only
            return None
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and tensors:
            assert found.device == tensors[0].device, f"{name} moves numbers from device to device"
        return found


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_on_a_gpu_would_ask_for_nothing(dtype, half):
    """Shapes and devices only: PyTorch's stand-ins for tensors on a GPU, which have no numbers to be asked for."""
    if half and dtype == torch.float64:
        pytest.skip("bfloat16 products have float32 sums")
    bank = HeadBank(SPECS, 20, 4, optimizers=OPTIMIZERS)
    heads, numbers, _, _ = tables(bank, 1)
    plans = plans_of(heads, numbers, 20)
    with FakeTensorMode():
        step = BankStep(plans, 16, dtype, half, "cuda", half_product=multiply_half)
        with Captureless() as seen:
            step(16)
            whole, seen.calls = seen.calls, []
            step(5)
    assert (
        whole.count("aten::mm") + whole.count("aten::addmm") == 2 + 3 * 7
    )  # the first layers' two, later layers' three
    assert seen.calls == whole  # no shape decides what is called


class Chain(Captureless):
    """Counts the kernels that wait for one another, where branches overlap."""

    def __init__(self):
        super().__init__()
        self.here, self.ends = None, {None: 0}

    @contextmanager
    def branch(self, number):
        self.here = number % 16 if number >= 0 else 16
        self.ends.setdefault(self.here, self.ends[None])
        yield
        self.here = None

    def join(self):
        self.ends = {None: max(self.ends.values())}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = len(self.calls)
        found = super().__torch_dispatch__(func, types, args, kwargs)
        self.ends[self.here] += len(self.calls) - before
        return found


@pytest.mark.parametrize(("heads", "half", "chain", "kernels"), [(10, False, 44, 174), (50, True, 82, 835)])
def test_the_page_counts_right(heads, half, chain, kernels):
    drawn = specs((2048, 100, 1024, 64, 64), heads)
    plans = [
        HeadPlan("sgd", 26214, index, (2048, *spec.units, 100), tuple(Optimizer().numbers()))
        for index, spec in enumerate(drawn)
    ]
    with FakeTensorMode():
        seen = Chain()
        step = BankStep(plans, 64, torch.float32, half, "cuda", seen, multiply_half)
        with seen:
            step(64)
    assert (seen.ends[None], len(seen.calls)) == (chain, kernels)


def test_a_bank_knows_which_gpu_it_is_on():
    with FakeTensorMode():
        assert HeadBank([], 20, 4, device="cuda").device == torch.empty(1, device="cuda").device
    assert HeadBank([], 20, 4).device == torch.device("cpu")


def test_the_refusals_refuse():
    with Captureless(), pytest.raises(AssertionError, match="a step calls aten::_local_scalar_dense"):
        torch.ones(1).item()
    with Captureless(), pytest.raises(AssertionError, match="a step calls aten::nonzero"):
        torch.ones(1).nonzero()
    with FakeTensorMode():
        there = torch.ones(1, device="cuda")
        with Captureless(), pytest.raises(AssertionError, match="from device to device"):
            there.cpu()


def test_states_of_another_size_are_refused():
    bank = HeadBank(SPECS, 20, 4)
    heads, numbers, _, states = tables(bank, 1)
    step = BankStep(plans_of(heads, numbers, 20), 16, torch.float32, False)
    with pytest.raises(ValueError, match=r"state 2 must be \(\d+,\), got \(\d+,\)"):
        step.load([*states[:2], states[2][:-1], *states[3:]])


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:2], ids=lambda one: one.name)
def test_states_come_back_as_they_were(optimizer):
    bank = HeadBank(SPECS, 37, 10, optimizers=optimizer)
    heads, numbers, _, states = tables(bank, 1)
    step = BankStep(plans_of(heads, numbers, 37), 16, torch.float32, False)
    moments = [torch.rand(reference.parameter_count(plan.widths)) for plan in step.plans]
    for state, moment in zip(states, moments, strict=True):
        state[-len(moment) :] = moment
    step.load(states)
    for index, layers in enumerate(step.values.layers):
        wanted = iter(bank.weights(index))
        for weight, bias in layers:
            theirs = next(wanted)
            assert torch.equal(weight[: theirs.shape[0], : theirs.shape[1]], theirs)
            assert torch.equal(bias[: theirs.shape[0]], next(wanted))
    stored = [torch.full_like(state, torch.nan) for state in states]
    step.store(stored)
    assert all(map(torch.equal, stored, states))
