"""Captured steps: when they are captured, kept and forgotten (on any machine), and what they compute on a GPU."""

import math
import time

import pytest
import torch
from stores import clusters, write_store

from sslfast._head_bank import graph
from sslfast._head_bank.layout import plans_of
from sslfast._head_bank.step import BankStep, Serial, multiply_widened, train
from sslfast._reference import head_bank as reference
from sslfast.models.head import HeadSpec
from sslfast.search.bank import HeadBank, Optimizer
from sslfast.search.sources import open_rows
from sslfast.search.train import Recipe, train_heads

SPECS = [
    HeadSpec((17,), 0.3, 0.01),
    HeadSpec((), 0.0, 0.02),
    HeadSpec((64, 130), 0.5, 0.02),
    HeadSpec((100, 33, 65), 0.0, 0.005),
]
OPTIMIZERS = [
    Optimizer("sgd", weight_decay=1e-3),
    Optimizer("adam", weight_decay=1e-2),
    Optimizer("adamw", weight_decay=1e-1),
    Optimizer("lars", weight_decay=1e-2, trust=0.02),
]


class Here(Serial):
    """An engine without a device: what was captured is called again."""

    half_product = staticmethod(multiply_widened)

    def __init__(self):
        self.branches, self.captures = self, 0

    def capture(self, work):
        self.captures += 1
        work()
        return work


@pytest.fixture
def here():
    graph._captured.clear()
    yield Here()
    graph._captured.clear()


def rows(count, width=20, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, width, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(classes, (count,), generator=generator)
    return features, labels, torch.randperm(count, generator=generator)


def cosine(specs, steps):
    at = torch.arange(steps, dtype=torch.float64)
    rates = torch.tensor([spec.learning_rate for spec in specs], dtype=torch.float64)
    return rates[:, None] * 0.5 * (1 + torch.cos(math.pi * at / steps))


def tables(bank):
    places = [bank._places[index] for index in bank.running]
    numbers = torch.tensor([place.optimizer.numbers() for place in places], dtype=torch.float64)
    return places, bank._table(places), numbers


def go_on(engine, bank, features, labels, order, batch):
    """HeadBank.train by an engine."""
    places, heads, numbers = tables(bank)
    rates = cosine([place.spec for place in places], -(-len(order) // batch))
    states = [place.state for place in places]
    losses = graph.train_with(engine, features, labels, order, heads, numbers, rates, states, batch, False)
    for place in places:
        place.steps += rates.shape[1]
    return losses


def in_plain(bank, features, labels, order, batch):
    """HeadBank.train by whatever serves the CPU."""
    specs = [bank._places[index].spec for index in bank.running]
    return bank.train(features, labels, order, cosine(specs, -(-len(order) // batch)), batch)


def same(one, other, rtol=1e-9, atol=1e-11):
    assert one.running == other.running
    for index in one.running:
        for ours, theirs in zip(one.weights(index), other.weights(index), strict=True):
            torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=rtol, atol=atol, check_dtype=False)


def test_epochs_with_heads_stopped_and_replaced_between_are_the_banks(here):
    features, labels, order = rows(150)
    one, other = (HeadBank(SPECS, 20, 4, optimizers=OPTIMIZERS, dtype=torch.float64) for _ in range(2))
    captures = []
    for epoch in range(6):
        if epoch == 2:
            one.stop(1), other.stop(1)
        if epoch == 4:
            one.replace(1, HeadSpec((48,), 0.2, 0.01), 9), other.replace(1, HeadSpec((48,), 0.2, 0.01), 9)
        losses = go_on(here, one, features, labels, order, 32)
        torch.testing.assert_close(losses, in_plain(other, features, labels, order, 32), rtol=1e-9, atol=1e-11)
        same(one, other)
        captures.append(here.captures)
    # load, store, a minibatch and the last one; again for every other set of heads, never for another epoch
    assert captures == [4, 4, 8, 8, 12, 12]


def test_what_was_done_to_the_weights_between_calls_is_seen(here):
    features, labels, order = rows(64)
    one, other = (HeadBank(SPECS, 20, 4, dtype=torch.float64) for _ in range(2))
    for bank, run in ((one, lambda: go_on(here, one, features, labels, order, 32)), (other, None)):
        for _ in range(2):
            run() if run else in_plain(bank, features, labels, order, 32)
            for place in bank._places:
                place.state.mul_(0.5)
    same(one, other)
    start = one.weights(0)
    one.load(2, other.weights(2))
    other.load(2, other.weights(2))
    go_on(here, one, features, labels, order, 32)
    in_plain(other, features, labels, order, 32)
    same(one, other)
    assert not torch.equal(start[0], one.weights(0)[0])


def test_other_features_and_orders_need_no_other_capture(here):
    features, labels, order = rows(128)
    one, other = (HeadBank(SPECS, 20, 4, dtype=torch.float64) for _ in range(2))
    for part in (slice(0, 64), slice(64, 128), slice(0, 48), slice(0, 20)):
        x = features[part].clone()
        where = torch.randperm(len(x))
        go_on(here, one, x, labels[part].clone(), where, 32)
        in_plain(other, x, labels[part].clone(), where, 32)
    same(one, other)
    assert here.captures == 2 + 3  # minibatches of 32, 16 and 20 rows


def test_minibatches_of_other_sizes(here):
    features, labels, order = rows(100)
    one, other = (HeadBank(SPECS[:2], 20, 4, dtype=torch.float64) for _ in range(2))
    for batch, count in ((64, 10), (64, 100), (100, 50), (32, 100), (1 << 40, 70), (7, 100)):
        go_on(here, one, features, labels, order[:count], batch)
        in_plain(other, features, labels, order[:count], batch)
        same(one, other)


def test_more_sizes_of_last_batches_than_are_captured(here):
    features, labels, order = rows(100)
    one, other = (HeadBank(SPECS[:2], 20, 4, dtype=torch.float64) for _ in range(2))
    for count in range(90, 99):
        go_on(here, one, features, labels, order[:count], 32)
        in_plain(other, features, labels, order[:count], 32)
    same(one, other)
    assert here.captures == 2 + graph.KEPT_COUNTS


def test_a_captured_bank_goes_with_its_heads(here):
    features, labels, order = rows(64)
    bank = HeadBank(SPECS, 20, 4, dtype=torch.float64)
    go_on(here, bank, features, labels, order, 32)
    assert len(graph._captured) == 1
    bank.stop(0)
    assert not graph._captured
    go_on(here, bank, features, labels, order, 32)
    assert len(graph._captured) == 1
    del bank
    assert not graph._captured


def test_the_dispatcher_hands_on_the_tensors_themselves():
    """A captured bank hears of the end of a state only if the operator sees the object that the bank holds."""
    seen = []
    library = torch.library.Library("sslfast_test_graph", "DEF")
    library.define("states(Tensor(a!)[] states) -> ()")
    library.impl("states", lambda states: seen.extend(map(id, states)), "CPU")
    states = [torch.zeros(3) for _ in range(2)]
    torch.ops.sslfast_test_graph.states(states)
    assert seen == list(map(id, states))


def test_only_so_many_banks_are_kept(here):
    features, labels, order = rows(64)
    banks = [HeadBank(SPECS[:1], 20, 4, dtype=torch.float64) for _ in range(graph.KEPT_BANKS + 2)]
    for bank in banks:
        go_on(here, bank, features, labels, order, 32)
    assert len(graph._captured) == graph.KEPT_BANKS
    before = here.captures
    go_on(here, banks[-1], features, labels, order, 32)
    assert here.captures == before
    go_on(here, banks[0], features, labels, order, 32)
    assert here.captures > before and len(graph._captured) == graph.KEPT_BANKS


def test_another_precision_of_products_is_another_capture(here):
    features, labels, order = rows(64)
    bank = HeadBank(SPECS, 20, 4, dtype=torch.float64)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, captures in (("ieee", 3), ("tf32", 6), ("tf32", 6), ("ieee", 6)):
            torch.backends.cuda.matmul.fp32_precision = precision
            go_on(here, bank, features, labels, order, 32)
            assert here.captures == captures
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_rates_of_another_shape_are_refused(here):
    features, labels, order = rows(64)
    places, heads, numbers = tables(HeadBank(SPECS, 20, 4, dtype=torch.float64))
    states = [place.state for place in places]
    with pytest.raises(ValueError, match=r"rates must be \(4, 2\), got \(4, 3\)"):
        graph.train_with(here, features, labels, order, heads, numbers, cosine(SPECS, 3), states, 32, False)


def test_a_bank_without_heads(here):
    features, labels, order = rows(64)
    heads, none = torch.zeros(0, reference.FIRST_WIDTH + 1, dtype=torch.int64), torch.empty(0, 2, dtype=torch.float64)
    found = graph.train_with(here, features, labels, order, heads, none[:, :0], none, [], 32, False)
    assert found.shape == (0, 2) and not here.captures


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: one.name)
@pytest.mark.parametrize(("width", "classes", "batch"), [(37, 10, 16), (64, 100, 64), (5, 2, 7)])
def test_on_a_gpu_heads_end_as_on_the_cpu(optimizer, width, classes, batch):
    features, labels, order = rows(150, width, classes)
    here, there = (
        HeadBank(SPECS, width, classes, optimizers=optimizer, dtype=torch.float64, device=device)
        for device in ("cpu", "cuda")
    )
    for epoch in range(3):
        order = order[torch.randperm(150, generator=torch.Generator().manual_seed(epoch))]
        losses = in_plain(there, features.cuda(), labels.cuda(), order.cuda(), batch)
        wanted = in_plain(here, features, labels, order, batch)
        assert losses.device == wanted.device
        torch.testing.assert_close(losses, wanted, rtol=1e-8, atol=1e-10)
        same(there, here, 1e-8, 1e-10)
    found, wanted = there.evaluate(features.cuda(), labels.cuda()), here.evaluate(features, labels)
    assert torch.equal(found[0].cpu(), wanted[0])


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("half", [False, True])
def test_on_a_gpu_float32_and_bfloat16_follow_the_definition(half):
    features, labels, order = rows(320, 128, 10, torch.float32)
    bank = HeadBank(SPECS, 128, 10, optimizers=OPTIMIZERS, half=half, device="cuda")
    _, heads, numbers = tables(bank)
    rates = cosine(SPECS, 5)
    states = [place.state for place in bank._places]
    expected = [state.double().cpu() for state in states]
    wanted = reference.head_bank_train(features.double(), labels, order, heads, numbers, rates, expected, 64, half)
    losses = bank.train(features.cuda(), labels.cuda(), order.cuda(), rates, 64)
    # bfloat16: a rounding on the other side of a ReLU is seen by all that follows.
    tolerance = 2e-2 if half else 2e-4
    torch.testing.assert_close(losses, wanted, rtol=tolerance, atol=0)
    for ours, theirs in zip(states, expected, strict=True):
        assert (ours.cpu() - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("half", [False, True])
def test_on_a_gpu_what_is_replayed_is_what_runs_eagerly_bit_by_bit(half):
    features, labels, order = (one.cuda() for one in rows(300, 64, 10, torch.float32))
    bank = HeadBank(SPECS, 64, 10, optimizers=OPTIMIZERS, half=half, device="cuda")
    places, heads, numbers = tables(bank)
    rates = cosine(SPECS, 5)
    captured, eager, again = ([place.state.clone() for place in places] for _ in range(3))
    arguments = features, labels, order, heads, numbers, rates
    losses = torch.ops.sslfast.head_bank_train(*arguments, captured, 64, half)
    assert torch.equal(torch.ops.sslfast.head_bank_train(*arguments, again, 64, half), losses)
    step = BankStep(plans_of(heads, numbers, 64), 64, torch.float32, half, "cuda", None, graph.multiply_half)
    step.load(eager)
    wanted = train(step, features, labels, order, heads[:, 1], rates, step)
    step.store(eager)
    assert torch.equal(losses, wanted.cpu())
    assert all(map(torch.equal, captured, eager)) and all(map(torch.equal, captured, again))


@pytest.mark.gpu
@gpu
def test_on_a_gpu_steps_do_not_wait_for_the_device():
    features, labels, order = (one.cuda() for one in rows(300, 64, 10, torch.float32))
    bank = HeadBank(SPECS, 64, 10, optimizers=OPTIMIZERS, device="cuda")
    _, heads, numbers = tables(bank)
    step = BankStep(plans_of(heads, numbers, 64), 64, torch.float32, False, "cuda")
    step(64)  # what is made at the first use may wait
    step.turn.zero_()
    rates, hashes = torch.zeros(3, 4, 4, device="cuda"), torch.zeros_like(step.hashes[:3])
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step.fill(features, labels, order[:150], hashes, rates)
        for count in (64, 64, 22):
            step(count)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@gpu
def test_on_a_gpu_heads_are_stopped_and_replaced_between_calls_and_memory_comes_back():
    features, labels, order = rows(150)
    torch.cuda.synchronize()
    here = HeadBank(SPECS, 20, 4, dtype=torch.float64)
    there = HeadBank(SPECS, 20, 4, dtype=torch.float64, device="cuda")
    on_device = features.cuda(), labels.cuda(), order.cuda()
    for epoch in range(6):
        for bank in (here, there):
            if epoch == 2:
                bank.stop(1)
            if epoch == 4:
                bank.replace(1, HeadSpec((48,), 0.2, 0.01), 9)
        in_plain(here, features, labels, order, 32)
        in_plain(there, *on_device, 32)
        same(there, here, 1e-8, 1e-10)
    assert len(graph._captured) >= 1
    del there, bank
    assert not any(key[0] is graph.cuda(on_device[0].device) for key in graph._captured)


@pytest.mark.gpu
@gpu
def test_on_a_gpu_a_later_epoch_captures_nothing():
    features, labels, order = (one.cuda() for one in rows(4000, 256, 10, torch.float32))
    bank = HeadBank([HeadSpec((256, 256), 0.3, 0.01)] * 8, 256, 10, device="cuda")
    seconds = []
    for _ in range(4):
        begin = time.monotonic()
        in_plain(bank, features, labels, order, 64)
        seconds.append(time.monotonic() - begin)
    (only,) = [one for key, one in graph._captured.items() if key[0] is graph.cuda(features.device)]
    assert sorted(only._steps) == [32, 64]
    assert min(seconds[1:]) < seconds[0]


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("memory", ["load", "stream"])
def test_on_a_gpu_training_from_a_store_ends_as_on_the_cpu(tmp_path, memory):
    features, labels = clusters(3000, 37, views=2)
    store = write_store(tmp_path / "store", features, labels, ("identity", "flip"), shard_rows=700)
    jobs = [(0, HeadSpec((70,), 0.3, 0.02)), (1, HeadSpec((64, 130), 0.5, 0.01)), (2, HeadSpec((), 0.0, 0.05))]
    recipe = Recipe(epochs=3)
    wanted = train_heads(jobs, open_rows(store, 0.1, 0, memory="load"), recipe)
    there = open_rows(store, 0.1, 0, memory=memory, device="cuda")
    found = train_heads(jobs, there, recipe, lambda number, epoch, accuracy: number != 1 or epoch < 1)
    assert [len(found[number].accuracies) for number in range(3)] == [3, 2, 3]
    for number in (0, 2):
        for ours, theirs in zip(found[number].accuracies, wanted[number].accuracies, strict=True):
            assert abs(ours - theirs) <= 0.02
