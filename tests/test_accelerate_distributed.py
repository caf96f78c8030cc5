"""accelerate() in a group of processes: gradients after the mean are those of the whole batch."""

import sys
import types
import warnings

import gloo
import pytest
import torch
from torch import nn

import sslfast

ROWS, DIM = 4, 6


@pytest.fixture(scope="module")
def results():
    pytest.importorskip("lightly.loss")
    return {world: gloo.run(__file__, "everything", world) for world in (2, 3)}


def lightly_losses(gather):
    from lightly.loss import BarlowTwinsLoss, NTXentLoss, SwaVLoss

    torch.manual_seed(7)
    bank = NTXentLoss(0.2, memory_bank_size=(11, DIM), gather_distributed=gather).double()
    return {
        "nt_xent": (NTXentLoss(0.2, gather_distributed=gather), lambda loss, z: loss(*z[:2])),
        "bank": (bank, lambda loss, z: loss(*z[:2])),
        "barlow_twins": (BarlowTwinsLoss(0.1, gather_distributed=gather), lambda loss, z: loss(*z[:2])),
        "swav": (SwaVLoss(sinkhorn_gather_distributed=gather), lambda loss, z: loss(z[:2], z[2:])),
    }


def inputs(world):
    return torch.randn(3, ROWS * world, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def layer():
    torch.manual_seed(1)
    return nn.Linear(DIM, DIM, dtype=torch.float64)


def steps(loss, run, views, world=None):
    """Values and gradients of a shared layer, mean over the ranks, of two steps; and the bank after them."""
    found = []
    for _ in range(2):
        network = layer()
        value = run(loss, list(network(views)))
        value.sum().backward()
        if world:
            torch.distributed.all_reduce(network.weight.grad)
            network.weight.grad /= world
        found += [value.detach().sum(), network.weight.grad]
    bank = getattr(loss, "memory_bank", None)
    return [*found, *(bank.buffers() if bank is not None and bank.size[0] else ())]


def everything(rank, world):
    views = inputs(world)[:, ROWS * rank : ROWS * (rank + 1)]
    found = {}
    with warnings.catch_warnings(record=True) as given, sslfast.accelerate("lightly"):
        warnings.simplefilter("always")
        for gather in (True, False):
            for name, (loss, run) in lightly_losses(gather).items():
                found[f"{name} {gather}"] = steps(loss, run, views, world)
    found["lightly's warnings"] = [str(one.message) for one in given if str(one.message).startswith("accelerate: ")]
    with torch.random.fork_rng():
        for name, (loss, run) in lightly_losses(True).items():
            found[f"original {name}"] = steps(loss, run, views, world)
    found["solo"] = solo(rank, world, views)
    return found


def solo(rank, world, views):
    """The restated functions, accelerated; and what they warn of."""
    for name in ("solo", "solo.losses", "solo.utils"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    for name, attribute, value in (
        ("solo.losses.simclr", "simclr_loss_func", simclr_loss_func),
        ("solo.losses.barlow", "barlow_loss_func", barlow_loss_func),
        ("solo.utils.sinkhorn_knopp", "SinkhornKnopp", SinkhornKnopp),
    ):
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], attribute, value)
    indexes = torch.arange(ROWS) + ROWS * rank
    found = {}
    with warnings.catch_warnings(record=True) as given, sslfast.accelerate("solo"):
        warnings.simplefilter("always")
        found["simclr"] = steps(None, lambda _, z: simclr_loss_func(torch.cat(z), indexes.repeat(3)), views, world)
        found["barlow"] = barlow_loss_func(views[0], views[1])
        found["sinkhorn"] = SinkhornKnopp(world)(views[0])
    found["warnings"] = [str(one.message) for one in given if str(one.message).startswith("accelerate: ")]
    return found


def simclr_loss_func(z, indexes, temperature=0.1):
    """The form of solo-learn's repository, for one process."""
    z = nn.functional.normalize(z, dim=-1)
    similarity = torch.exp(z @ z.T / temperature)
    equal = indexes[:, None] == indexes[None, :]
    positive = (similarity * (equal & ~torch.eye(len(z), dtype=torch.bool))).sum(dim=1)
    return -torch.log(positive / (positive + (similarity * ~equal).sum(dim=1))).mean()


def barlow_loss_func(z1, z2, lamb=5e-3, scale_loss=0.025):
    """Stands for the original: says that it ran."""
    return "the original ran"


class SinkhornKnopp(nn.Module):
    """solo-learn's, for one process."""

    def __init__(self, world_size=1):
        super().__init__()
        self.num_iters, self.epsilon, self.world_size = 3, 0.5, world_size

    @torch.no_grad()
    def forward(self, Q):
        Q = torch.exp(Q / self.epsilon).t()
        for _ in range(self.num_iters):
            Q = Q / Q.sum(dim=1, keepdim=True)
            Q = Q / Q.sum(dim=0, keepdim=True)
        return Q.t()


def assert_same(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", ["nt_xent", "bank", "barlow_twins", "swav"])
def test_gathering_gives_the_gradient_of_the_whole_batch(results, world, name):
    loss, run = lightly_losses(False)[name]
    expected = steps(loss, run, inputs(world))
    for found in results[world]:
        assert_same(found[f"{name} True"], expected)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", ["nt_xent", "bank", "swav"])
def test_gradients_and_bank_are_lightlys_own(results, world, name):
    values = []
    for found in results[world]:
        ours, theirs = found[f"{name} True"], found[f"original {name}"]
        assert_same(ours[1::2], theirs[1::2])
        if name == "bank":
            assert all(torch.equal(our, their) for our, their in zip(ours[4:], theirs[4:], strict=True))
        values.append(theirs[0])
    # lightly's value is that of the own rows: ours is the mean of all ranks'.
    torch.testing.assert_close(sum(values) / world, results[world][0][f"{name} True"][0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", ["nt_xent", "bank", "barlow_twins", "swav"])
def test_without_gathering_each_process_is_alone(results, world, name):
    for rank, found in enumerate(results[world]):
        loss, run = lightly_losses(False)[name]
        expected = steps(loss, run, inputs(world)[:, ROWS * rank : ROWS * (rank + 1)])
        torch.testing.assert_close(found[f"{name} False"][0], expected[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("world", [2, 3])
def test_what_differs_is_said_once(results, world):
    for found in results[world]:
        (message,) = found["lightly's warnings"]
        assert "BarlowTwinsLoss.forward takes mean and variance over the rows of all processes" in message


@pytest.mark.parametrize("world", [2, 3])
def test_solo_learn(results, world):
    indexes = torch.arange(ROWS * world).repeat(3)
    expected = steps(None, lambda _, z: simclr_loss_func(torch.cat(z), indexes), inputs(world))
    assigned = SinkhornKnopp()(inputs(world)[0])
    for rank, found in enumerate(results[world]):
        assert_same(found["solo"]["simclr"], expected)
        own = assigned[ROWS * rank : ROWS * (rank + 1)]
        torch.testing.assert_close(found["solo"]["sinkhorn"], own, rtol=1e-10, atol=0)
        assert found["solo"]["barlow"] == "the original ran"
        (message,) = found["solo"]["warnings"]
        assert "solo.losses.barlow.barlow_loss_func runs solo's own code: with several processes" in message
