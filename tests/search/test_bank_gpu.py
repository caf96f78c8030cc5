"""HeadBank on a GPU: what is captured and replayed computes what the CPU and the definition do."""

import time

import pytest
import torch
from banks import OPTIMIZERS, SPECS, cosine, in_plain, rows, same, tables

from sslfast._head_bank import graph
from sslfast._head_bank.layout import plans_of
from sslfast._head_bank.step import BankStep, train
from sslfast._reference import head_bank as reference
from sslfast.models.head import HeadSpec
from sslfast.search.bank import HeadBank

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: one.name)
@pytest.mark.parametrize(("width", "classes", "batch"), [(37, 10, 16), (64, 100, 64), (5, 2, 7)])
def test_heads_end_as_on_the_cpu(optimizer, width, classes, batch):
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


@pytest.mark.parametrize("half", [False, True])
def test_float32_and_bfloat16_follow_the_definition(half):
    features, labels, order = rows(320, 128, 10, torch.float32)
    bank = HeadBank(SPECS, 128, 10, optimizers=OPTIMIZERS, half=half, device="cuda")
    _, heads, numbers = tables(bank)
    rates = cosine(SPECS, 5)
    states = [place.state for place in bank._places]
    expected = [state.double().cpu() for state in states]
    wanted = reference.head_bank_train(features.double(), labels, order, heads, numbers, rates, expected, 64, half)
    losses = bank.train(features.cuda(), labels.cuda(), order.cuda(), rates, 64)
    # One ReLU that flips is seen by all that follows, and Adam moves a weight as far for the smallest gradient.
    tolerance = 2e-2 if half else 5e-3
    torch.testing.assert_close(losses, wanted, rtol=tolerance, atol=0)
    for ours, theirs in zip(states, expected, strict=True):
        assert (ours.cpu() - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("half", [False, True])
def test_what_is_replayed_is_what_runs_eagerly_bit_by_bit(half):
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


def test_steps_do_not_wait_for_the_device():
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


def test_heads_are_stopped_and_replaced_between_calls_and_memory_comes_back():
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


def test_a_later_epoch_captures_nothing():
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


@pytest.mark.parametrize("memory", ["load", "stream"])
def test_training_from_a_store_ends_as_on_the_cpu(tmp_path, memory):
    pytest.importorskip("sslfast._store", reason="the feature store's engine was not built")
    from stores import clusters, write_store

    from sslfast.search.sources import open_rows
    from sslfast.search.train import Recipe, train_heads

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
