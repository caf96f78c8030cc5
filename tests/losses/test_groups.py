"""Process groups at the edges: a process outside, torch.compile, second derivatives, what is for one process only."""

import gloo
import pytest
import torch
from torch import nn

import sslfast
from sslfast import losses

ROWS = 4, 5
"""Of the two processes."""
DIM = 6


def inputs():
    return torch.randn(3, sum(ROWS), DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def own_rows(rank):
    return slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))


def leaves(rank):
    return [one[own_rows(rank)].clone().requires_grad_() for one in inputs()]


LOSSES = {
    "nt_xent": lambda z: losses.NTXentLoss(gather_distributed=True)(*z[:2]),
    "barlow_twins": lambda z: losses.BarlowTwinsLoss(gather_distributed=True)(*z[:2]),
    "swav": lambda z: losses.SwaVLoss(sinkhorn_gather_distributed=True)(z[:2], z[2:]),
    "self_classifier": lambda z: losses.SelfClassifierLoss(gather_distributed=True)(z),
    "sinkhorn": lambda z: (z[0] * sslfast.sinkhorn(z[0], group=torch.distributed.group.WORLD)).sum(),
}
NEGATIVES = torch.randn(DIM, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SEPARABLE = {
    "negatives": lambda z, group: sslfast.nt_xent(z[0], z[1], negatives=NEGATIVES, group=group),
    "swav": lambda z, group: sslfast.swav_loss(z[:2], z[2:], group=group),
}
"""Losses whose second derivative stays within a row, so that a rank has all of its own."""


def everything(rank, world):
    """All in one start of the processes, which is what takes the time."""
    group = torch.distributed.group.WORLD
    results = {name: value_and_gradients(loss, rank) for name, loss in LOSSES.items()}
    for name, loss in LOSSES.items():
        results[f"{name} compiled"] = value_and_gradients(torch.compile(loss, backend="aot_eager"), rank)
    results |= {f"{name} curvature": curvature(loss, leaves(rank), group) for name, loss in SEPARABLE.items()}
    return results | {"outside": outside(), "entropy": own_entropy()}


def value_and_gradients(loss, rank):
    z = leaves(rank)
    value = loss(z)
    return value.detach(), *torch.autograd.grad(value.sum(), z, allow_unused=True, materialize_grads=True)


def curvature(loss, z, group, factor=1.0, rows=slice(None)):
    gradient = torch.autograd.grad(loss(z, group), z[0], create_graph=True)[0]
    return torch.autograd.grad((factor * gradient)[rows].square().sum(), z[0])[0]


def outside():
    """Use a group of the first process alone."""
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


def own_entropy():
    loss = losses.NTXentLoss(gather_distributed=True)
    loss.cross_entropy = nn.CrossEntropyLoss(reduction="sum")
    try:
        loss(*torch.randn(2, 4, 3))
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def results():
    return gloo.run(__file__, "everything", len(ROWS))


@pytest.mark.parametrize("name", LOSSES)
def test_the_compiler_changes_nothing_without_fullgraph(results, name):
    for rank in results:
        for got, expected in zip(rank[f"{name} compiled"], rank[name], strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SEPARABLE)
def test_second_derivatives_over_a_group(results, name):
    for rank, result in enumerate(results):
        whole = [one.requires_grad_() for one in inputs()]
        expected = curvature(SEPARABLE[name], whole, None, len(ROWS), own_rows(rank))[own_rows(rank)]
        torch.testing.assert_close(result[f"{name} curvature"], expected, rtol=0, atol=1e-12)


def test_a_process_outside_the_group_is_told(results):
    inside, outsider = (rank["outside"] for rank in results)
    assert inside == [] and outsider == ["this process is not a member of group"] * 5


def test_a_cross_entropy_of_ones_own_is_for_one_process(results):
    words = "NTXentLoss: a cross_entropy of your own is for one process, got a group"
    assert {rank["entropy"] for rank in results} == {words}
