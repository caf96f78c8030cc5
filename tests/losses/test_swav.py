import copy
import pickle

import numpy as np
import pytest
import torch

import sslfast
from sslfast.losses import SwaVLoss

lightly = pytest.importorskip("lightly.loss")


def scores(views, rows, prototypes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.rand(views, rows, prototypes, generator=generator, dtype=torch.float64) * 2 - 1)


@pytest.mark.parametrize(("high", "low"), [(1, 1), (2, 0), (2, 3), (3, 1)])
@pytest.mark.parametrize(("rows", "prototypes"), [(1, 5), (7, 1), (16, 33), (9, 70)])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.3, "sinkhorn_iterations": 0, "sinkhorn_epsilon": 0.2}])
@pytest.mark.parametrize("queue", [None, 5])
def test_matches_lightly(same, high, low, rows, prototypes, options, queue):
    ours, theirs = (kind(**options, sinkhorn_gather_distributed=True) for kind in (SwaVLoss, lightly.SwaVLoss))
    held = None if queue is None else scores(high, queue, prototypes, seed=1)
    views = [scores(high, rows, prototypes), scores(low, rows, prototypes, seed=2)]
    if not low:
        views.pop()
    same(
        lambda one, other=(): ours(one, list(other), held),
        lambda one, other=(): theirs(one, list(other), held),
        *views,
        atol=1e-11,
    )
    assert ours(*views, *([] if low else [[]]), held).shape == (1,)


def test_no_gradient_reaches_the_queue():
    held = [one.requires_grad_() for one in scores(2, 4, 6, seed=1)]
    views = [one.requires_grad_() for one in scores(2, 3, 6)]
    SwaVLoss()(views, [], held).backward()
    assert all(one.grad is None for one in held) and all(one.grad is not None for one in views)


def test_subloss_matches_lightly(same):
    q = torch.softmax(scores(1, 6, 9)[0], dim=1)
    ours, theirs = SwaVLoss(temperature=0.2), lightly.SwaVLoss(temperature=0.2)
    same(lambda z: ours.subloss(z[0], q), lambda z: theirs.subloss(z[0], q), scores(1, 6, 9, seed=4))


def test_a_subclass_with_its_own_subloss_is_heard(same):
    def subloss(self, z, q):
        return ((torch.softmax(z / self.temperature, dim=1) - q) ** 2).sum(dim=1).mean()

    ours, theirs = (type("Own", (kind,), {"subloss": subloss})() for kind in (SwaVLoss, lightly.SwaVLoss))
    held = scores(2, 4, 9, seed=1)
    same(
        lambda high, low: ours(high, low, held),
        lambda high, low: theirs(high, low, held),
        scores(2, 6, 9),
        scores(2, 6, 9, seed=2),
    )


def test_gathering_needs_torch_distributed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    SwaVLoss()
    with pytest.raises(ValueError, match="SwaVLoss: sinkhorn_gather_distributed=True"):
        SwaVLoss(sinkhorn_gather_distributed=True)


def test_attributes_copies_and_pickles():
    loss, theirs = (kind(0.2, 2, 0.1) for kind in (SwaVLoss, lightly.SwaVLoss))
    names = ("temperature", "sinkhorn_iterations", "sinkhorn_epsilon", "sinkhorn_gather_distributed")
    assert [getattr(loss, name) for name in names] == [getattr(theirs, name) for name in names]
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(scores(2, 4, 5), []), loss(scores(2, 4, 5), []))


def test_an_instance_with_its_own_subloss_is_heard(same):
    losses = SwaVLoss(), lightly.SwaVLoss()
    for loss in losses:
        loss.subloss = lambda z, q: ((z - q) ** 2).mean()
    same(
        lambda high, low: losses[0](high, low),
        lambda high, low: losses[1](high, low),
        scores(2, 6, 9),
        scores(2, 6, 9, seed=2),
    )


@pytest.mark.parametrize("own", [False, True])
def test_stacked_views_and_queues(same, own):
    losses = SwaVLoss(), lightly.SwaVLoss()
    if own:
        for loss in losses:
            loss.subloss = lambda z, q: -(q * z).sum(dim=1).mean()
    held = torch.stack(scores(2, 4, 9, seed=1))
    same(
        lambda high, low: losses[0](torch.stack(high), torch.stack(low), held),
        lambda high, low: losses[1](torch.stack(high), torch.stack(low), held),
        scores(2, 6, 9),
        scores(3, 6, 9, seed=2),
    )


def test_a_queue_may_hold_more_and_be_less_precise(same):
    ours, theirs = SwaVLoss(), lightly.SwaVLoss()
    held = [one.float() for one in scores(3, 4, 9, seed=1)]
    same(lambda z: ours(z, [], held), lambda z: theirs(z, [], held), scores(2, 6, 9))


def test_what_is_no_view_is_named_as_before():
    for high, low, queue, words in (
        (torch.ones(4, 3), [], None, "high_resolution must be a list of tensors, got Tensor"),
        (scores(2, 4, 3), torch.ones(4, 3), None, "low_resolution must be a list of tensors, got Tensor"),
        (scores(2, 4, 3), [], torch.ones(4, 3), "queue must be a list of tensors, got Tensor"),
        (scores(2, 4, 3), [], [torch.ones(4, 3)], "queue must have one tensor per high-resolution view"),
        ([one.float() for one in scores(2, 4, 3)], [], scores(2, 4, 3), "dtype"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            SwaVLoss()(high, low, queue)


def test_numbers_in_other_wrappings():
    views = scores(2, 6, 9)
    loss = SwaVLoss(torch.tensor(0.25), torch.tensor(2), np.float64(0.1))
    assert torch.equal(loss(views, []), SwaVLoss(0.25, 2, 0.1)(views, []))


@pytest.mark.parametrize("kind", ["spread", "extremes", "equal"])
@pytest.mark.parametrize("quotient", [1e6, 1e20, 1e38])
def test_large_scores_stay_finite_as_far_as_is_said(kind, quotient):
    views = [one.float() for one in scores(2, 70, 45)]
    if kind == "extremes":
        views = [one.sign() for one in views]
    elif kind == "equal":
        views = [torch.ones_like(one) for one in views]
    views = [(one * (quotient * 0.05)).requires_grad_() for one in views]
    codes = sslfast.sinkhorn(views[0])
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(70), rtol=1e-5, atol=0)
    loss = SwaVLoss(temperature=0.05)(views, [])
    assert loss.isfinite()
    loss.backward()
    # A difference of two shares of each of two codes' sums, over H (V - 1) B temperature.
    assert all((one.grad * (2 * 70 * 0.05)).abs().max() <= 1 + 1e-6 for one in views)


def test_a_subloss_patched_in_the_class_is_heard(same, monkeypatch):
    def subloss(self, z, q):
        return ((z - q) ** 2).mean()

    for kind in (SwaVLoss, lightly.SwaVLoss):
        monkeypatch.setattr(kind, "subloss", subloss)
    same(lambda z: SwaVLoss()(z, []), lambda z: lightly.SwaVLoss()(z, []), scores(2, 6, 9))
