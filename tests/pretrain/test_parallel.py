"""Two processes train like one: gradients, batch statistics, queues; joined by gloo on the CPU."""

import sys
from pathlib import Path

import gloo
import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # for the processes that gloo.py starts

from quick import QUICK, SIZE, config, digits  # noqa: E402

from sslfast.pretrain.feed import Feed  # noqa: E402
from sslfast.pretrain.parallel import GroupBatchNorm, Ranks, joined  # noqa: E402
from sslfast.pretrain.training import Training  # noqa: E402

STEPS = 6
CHANGES = {"optimizer": "sgd", "learning_rate": 0.05, "batch_size": 43}
"""SGD: Adam makes large steps of gradients that are rounding alone. A batch that two processes cannot halve."""


def train(method, **changes):
    """Do some steps in float64; return the losses and every weight, statistic and queue.

    In float32 the two ways' rounding differs by enough for a ReLU to be on in one and off in the other.
    """
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        return _train(method, **changes)
    finally:
        torch.set_default_dtype(torch.float32)


def _train(method, **changes):
    options = config(method, **{**CHANGES, **changes})
    if method == "autoencoder":
        options = config(method, dropout=0.0, **{**CHANGES, **changes})  # what is dropped depends on the process
    training = Training(digits(210), options, SIZE, torch.device("cpu"), joined())
    steps = training.feed.steps(0, STEPS)
    losses = [float(training.step(step, parts)) for step, parts in enumerate(steps)]
    state = {key: value.clone() for key, value in training.state.state_dict().items()}
    return losses, state


def train_all(rank, world):
    found = {method: train(method) for method in QUICK}
    found["accumulated"] = train("swav", accumulate=2)
    return found


def normalise(rank, world):
    x, weight = samples()
    part = x.tensor_split(world)[rank].clone().requires_grad_()
    norm = GroupBatchNorm.of(trained_norm())
    y = norm(part)
    # The whole batch's gradient times the number of processes, as the losses have it.
    (y * weight.tensor_split(world)[rank]).sum().mul(world).backward()
    norm.eval()
    return {
        "y": y.detach(), "x": part.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
        "mean": norm.running_mean, "var": norm.running_var, "eval": norm(part).detach(),
    }  # fmt: skip


def samples():
    torch.manual_seed(1)
    return torch.randn(7, 3, 4, 5) * 3 + 100, torch.randn(7, 3, 4, 5)


def trained_norm():
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    return norm


@pytest.mark.slow
def test_batch_statistics_are_those_of_all_processes():
    ranks = gloo.run(__file__, "normalise", 2)
    x, weight = samples()
    x.requires_grad_()
    norm = trained_norm()
    y = norm(x)
    (y * weight).sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-4}  # a mean of 100 leaves four digits
    assert torch.allclose(torch.cat([one["y"] for one in ranks]), y, **close)
    assert torch.allclose(torch.cat([one["x"] for one in ranks]) / 2, x.grad, **close)
    for name, parameter in (("weight", norm.weight), ("bias", norm.bias)):
        # DistributedDataParallel takes the mean.
        assert torch.allclose((ranks[0][name] + ranks[1][name]) / 2, parameter.grad, **close)
    for one in ranks:
        assert torch.allclose(one["mean"], norm.running_mean) and torch.allclose(one["var"], norm.running_var)
    norm.eval()
    assert torch.allclose(torch.cat([one["eval"] for one in ranks]), norm(x), **close)


@pytest.mark.slow
def test_two_processes_train_like_one():
    alone = train_all(0, 1)
    first, second = gloo.run(__file__, "train_all", 2)
    for name, (losses, state) in alone.items():
        for ranks_losses, ranks_state in (first[name], second[name]):
            assert ranks_losses == pytest.approx(losses, rel=1e-5), name
            assert ranks_state.keys() == state.keys()
            for key, value in state.items():
                if value.is_floating_point():
                    error = (ranks_state[key] - value).norm() / (value.norm() + 1e-3)
                    assert error < 1e-5, f"{name}: {key} is off by {error:.1e}"
                else:
                    assert torch.equal(ranks_state[key], value), f"{name}: {key}"


def test_a_process_alone_is_left_as_it_is():
    assert joined().group is None
    training = Training(digits(64), config("simclr"), SIZE, torch.device("cpu"))
    assert not any(isinstance(module, GroupBatchNorm) for module in training.method.modules())


def test_rows_are_shared_out_part_by_part():
    seen = [Ranks(rank, 3, object()).rows(11, 2) for rank in range(3)]
    parts = [[int(row) for ranks in seen for row in ranks[part]] for part in range(2)]
    assert parts == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]


@pytest.mark.parametrize("policy", ["self-classifier-cifar", "autoencoder"])
def test_processes_render_together_what_one_does(policy):
    """Part by part: the same views of the same images, none twice."""
    given = {"size": SIZE, "batch_size": 43, "seed": 0, "device": torch.device("cpu"), "parts": 2}
    alone = Feed(digits(130), policy, **given)
    shared = [Feed(digits(130), policy, **given, ranks=Ranks(rank, 2, object()), labelled=True) for rank in range(2)]
    for whole, *ranks in zip(alone.steps(1, 4), *(feed.steps(1, 4) for feed in shared), strict=True):
        for part, *shares in zip(whole, *ranks, strict=True):
            assert [one.share for one in shares] == [part.share] * 2
            assert np.array_equal(np.concatenate([one.indices for one in shares]), part.indices)
            for group, *of_ranks in zip(part.views, *(one.views for one in shares), strict=True):
                images = [len(one.indices) for one in shares]
                rows = [one.view(-1, count, *one.shape[1:]) for one, count in zip(of_ranks, images, strict=True)]
                assert torch.equal(torch.cat(rows, dim=1).flatten(0, 1), group)
            labels = torch.from_numpy(np.asarray(digits(130).labels)[part.indices])
            assert torch.equal(torch.cat([one.labels for one in shares]), labels)
