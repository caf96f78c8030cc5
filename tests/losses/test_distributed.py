"""``gather_distributed=True`` over 1, 2 and 3 processes: the whole batch's value, and its gradient after the mean."""

import gloo
import pytest
import torch
from torch import nn

import sslfast
from sslfast import losses

DIM = 6
STEPS = 4


def module(name):
    torch.manual_seed(7)
    made = {
        "nt_xent": lambda: losses.NTXentLoss(0.2, gather_distributed=True),
        "bank": lambda: losses.NTXentLoss(0.2, memory_bank_size=(11, DIM), gather_distributed=True),
        "barlow_twins": lambda: losses.BarlowTwinsLoss(0.1, gather_distributed=True),
        "swav": lambda: losses.SwaVLoss(sinkhorn_gather_distributed=True),
        "self_classifier": lambda: losses.SelfClassifierLoss(gather_distributed=True),
    }
    return made[name]().double()


def call(name, loss, views):
    if name == "swav":
        return loss(views[:2], views[2:])
    if name == "self_classifier":
        return loss(views)
    return loss(*views[:2])


def parts(world, uneven):
    return [4 + (rank if uneven else 0) for rank in range(world)]


def inputs(world, uneven, step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(3, sum(parts(world, uneven)), DIM, generator=generator, dtype=torch.float64)


def train(name, rank, world, uneven, steps):
    """Return values, bank, and the gradient of a shared linear layer of every step: the mean over the ranks."""
    counts = parts(world, uneven)
    rows = slice(sum(counts[:rank]), sum(counts[: rank + 1])) if rank is not None else slice(None)
    loss, values, gradients = module(name), [], []
    for step in range(steps):
        torch.manual_seed(1)
        layer = nn.Linear(DIM, DIM, dtype=torch.float64)
        value = call(name, loss, list(layer(inputs(world, uneven, step)[:, rows])))
        value.sum().backward()
        if rank is not None:
            torch.distributed.all_reduce(layer.weight.grad)
            layer.weight.grad /= world
        values.append(value.detach())
        gradients.append(layer.weight.grad)
    return {"values": torch.stack(values), "gradients": torch.stack(gradients), "state": dict(loss.state_dict())}


NAMES = "nt_xent", "bank", "barlow_twins", "swav", "self_classifier"


def everything(rank, world, steps):
    """All losses in one start of the processes, which is what takes the time."""
    return {
        f"{name} {uneven}": train(name, rank, world, uneven, steps)
        for name in NAMES
        for uneven in ([False, True] if world > 1 else [False])
    }


@pytest.fixture(scope="module")
def results():
    done = {}

    def of(world):
        if world not in done:
            done[world] = gloo.run(__file__, "everything", world, STEPS)
        return done[world]

    return of


@pytest.mark.parametrize(("world", "uneven"), [(1, False), (2, False), (2, True), (3, False), (3, True)])
@pytest.mark.parametrize("name", NAMES)
def test_equals_one_process(results, name, world, uneven):
    expected = train(name, None, world, uneven, STEPS)
    for rank in results(world):
        result = rank[f"{name} {uneven}"]
        torch.testing.assert_close(result["values"], expected["values"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result["gradients"], expected["gradients"], rtol=1e-10, atol=1e-12)
        for key, state in expected["state"].items():
            torch.testing.assert_close(result["state"][key], state, rtol=0, atol=1e-15)


def apart(rank, world):
    """Losses that were not asked to gather, in an initialised group."""
    views = inputs(world, False, 0)[:, 4 * rank : 4 * rank + 4]
    made = losses.NTXentLoss(0.2), losses.BarlowTwinsLoss(0.1), losses.SwaVLoss(), losses.SelfClassifierLoss()
    return torch.stack(
        [
            made[0](*views[:2]),
            made[1](*views[:2]),
            made[2](list(views[:2]), list(views[2:]))[0],
            made[3](list(views)),
        ]
    )


def test_nothing_is_gathered_unasked():
    for rank, result in enumerate(gloo.run(__file__, "apart", 2)):
        assert torch.equal(result, apart(rank, 2))


def negative(rank, world):
    loss = losses.NTXentLoss(-0.5, gather_distributed=True)
    try:
        loss(torch.randn(2, 3), torch.randn(2, 3))
    except ValueError as error:
        return str(error)
    return ""


def test_a_negative_temperature_is_for_one_process():
    assert set(gloo.run(__file__, "negative", 2)) == {
        "NTXentLoss: a negative temperature is for one process, got a group of 2"
    }


def _outside(rank, world):
    """Use a group of the first process alone: the other one is told that it is no member."""
    group = torch.distributed.new_group([0])
    z = torch.randn(2, 4, 3)
    messages = []
    for call in (
        lambda: sslfast.nt_xent(*z, group=group),
        lambda: sslfast.barlow_twins(*z, group=group),
        lambda: sslfast.sinkhorn(z[0], group=group),
        lambda: sslfast.swav_loss(list(z), [], group=group),
        lambda: sslfast.self_classifier(list(z), group=group),
    ):
        try:
            call()
        except ValueError as error:
            messages.append(str(error).partition(": ")[2])
    return messages


def test_a_process_outside_the_group_is_told(gloo):
    inside, outside = gloo.run(__file__, "_outside", 2)
    assert inside == [] and outside == ["this process is not a member of group"] * 5


def _compiled(rank, world, name):
    """Value and gradients of a compiled loss next to those of the same loss without the compiler."""
    results = []
    for compiles in (False, True):
        loss, own = module(name), _own(rank, world)
        run = torch.compile(loss, backend="aot_eager") if compiles else loss
        value = call(name, run, own)
        results.append(
            [value.detach(), *torch.autograd.grad(value.sum(), own, allow_unused=True, materialize_grads=True)]
        )
    return results


def _own(rank, world):
    counts = parts(world, True)
    start = sum(counts[:rank])
    return [one[start : start + counts[rank]].clone().requires_grad_() for one in inputs(world, True, 0)]


@pytest.mark.parametrize("name", ["nt_xent", "barlow_twins", "swav", "self_classifier"])
def test_the_compiler_changes_nothing_without_fullgraph(gloo, name):
    for expected, got in gloo.run(__file__, "_compiled", 2, name):
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def _sinkhorn(rank, world):
    scores = _own(rank, world)[0]

    def loss(scores):
        return sslfast.sinkhorn(scores, group=torch.distributed.group.WORLD)

    return torch.compile(loss, backend="aot_eager")(scores), loss(scores)


def test_the_compiler_changes_no_assignment(gloo):
    for got, expected in gloo.run(__file__, "_sinkhorn", 2):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


SEPARABLE = {
    "negatives": lambda z, group: sslfast.nt_xent(z[0], z[1], negatives=inputs(1, False, 5)[0].T, group=group),
    "swav": lambda z, group: sslfast.swav_loss(z[:2], z[2:], group=group),
}
"""Losses whose second derivative stays within a row, so that a rank has all of its own."""


def _curvature(z, loss, group, factor=1.0, rows=slice(None)):
    gradient = torch.autograd.grad(SEPARABLE[loss](z, group), z[0], create_graph=True)[0]
    return torch.autograd.grad((factor * gradient)[rows].square().sum(), z[0])[0]


def _second(rank, world, loss):
    return _curvature(_own(rank, world), loss, torch.distributed.group.WORLD)


@pytest.mark.parametrize("loss", SEPARABLE)
def test_second_derivatives_over_a_group(gloo, loss):
    world, start = 2, 0
    for rank, got in enumerate(gloo.run(__file__, "_second", world, loss)):
        rows = slice(start, start + parts(world, True)[rank])
        whole = [one.requires_grad_() for one in inputs(world, True, 0)]
        torch.testing.assert_close(got, _curvature(whole, loss, None, world, rows)[rows], rtol=0, atol=1e-12)
        start = rows.stop
