"""``gather_distributed=True`` over 1, 2 and 3 processes: the whole batch's value, and its gradient after the mean."""

import gloo
import pytest
import torch
from torch import nn

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
