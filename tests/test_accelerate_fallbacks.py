"""Where lightly's own code has to run, and what torch.compile makes of both."""

import warnings

import pytest
import torch
from outcomes import assert_same, counting, outcome, views
from torch import nn

import sslfast
from sslfast import _peers
from sslfast._peers import lightly as lightly_peer

pytest.importorskip("lightly.loss")
from lightly.loss import BarlowTwinsLoss, NTXentLoss, SwaVLoss  # noqa: E402


@pytest.fixture(autouse=True)
def no_warning_was_given(monkeypatch):
    monkeypatch.setattr(_peers, "_warned", set())


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of our contrastive losses from the swapped functions."""
    counted = {}
    for name in ("nt_xent", "against_bank"):
        monkeypatch.setattr(lightly_peer, name, counting(counted, name, getattr(lightly_peer, name)))
    return counted


def test_nothing_is_stored_under_no_grad_whatever_requires_a_gradient(calls):
    loss = NTXentLoss(memory_bank_size=(8, 5)).double()
    out0, out1 = (one.requires_grad_() for one in views(rows=2))
    loss(out0, out1.detach())
    pointer = int(loss.memory_bank.bank_ptr)
    with sslfast.accelerate("lightly"), torch.no_grad():
        loss(out0, out1.detach())
    assert calls["against_bank"] == 1 and int(loss.memory_bank.bank_ptr) == pointer == 2


def patched_entropy():
    loss = NTXentLoss()
    loss.cross_entropy.forward = lambda logits, labels: logits.square().mean()
    return loss


def ignoring_entropy():
    loss = NTXentLoss()
    loss.cross_entropy = nn.CrossEntropyLoss(ignore_index=0)
    return loss


def hooked_entropy():
    loss = NTXentLoss()
    loss.cross_entropy.register_forward_hook(lambda module, inputs, output: 3 * output)
    return loss


def hooked_backward():
    loss = NTXentLoss()
    loss.cross_entropy.register_full_backward_hook(
        lambda module, of_inputs, of_outputs: tuple(None if one is None else 2 * one for one in of_inputs)
    )
    return loss


@pytest.mark.parametrize("make", [patched_entropy, hooked_entropy, hooked_backward, ignoring_entropy])
def test_a_changed_cross_entropy_is_not_overlooked(calls, make):
    loss = make()
    theirs = outcome(lambda z: loss(*z), views())
    with pytest.warns(UserWarning, match="cross_entropy"), sslfast.accelerate("lightly"):
        assert_same(outcome(lambda z: loss(*z), views()), theirs, atol=0)
    assert "nt_xent" not in calls


class OwnSubloss(SwaVLoss):
    def subloss(self, z, q):
        return ((z - q) ** 2).mean()


def graphs_of(function, *inputs):
    """Compile without a break; return the value and whether sslfast's operators are in the graph."""
    texts = []

    def backend(module, inputs):
        texts.append(module.code)
        return module

    torch.compiler.reset()
    try:
        value = torch.compile(function, fullgraph=True, backend=backend)(*inputs)
    finally:
        torch.compiler.reset()
    return value, ["sslfast" in text for text in texts]


def of_pair(loss):
    return lambda z0, z1: loss(z0, z1)


def of_views(loss):
    return lambda z0, z1: loss([z0, z1], [z0])


def test_every_loss_is_in_one_graph():
    losses = {
        "nt_xent": of_pair(NTXentLoss()),
        "bank": of_pair(NTXentLoss(memory_bank_size=(4, 5)).double()),
        "barlow_twins": of_pair(BarlowTwinsLoss()),
        "swav": of_views(SwaVLoss()),
        "swav made inside": lambda z0, z1: SwaVLoss()([z0, z1], [z0]),
        "barlow_twins made inside": lambda z0, z1: BarlowTwinsLoss()(z0, z1),
    }
    for name, loss in losses.items():
        expected = loss(*views())
        with warnings.catch_warnings(), sslfast.accelerate("lightly"):
            warnings.simplefilter("error")
            value, ours = graphs_of(loss, *views())
        assert ours == [True], name
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        of_pair(NTXentLoss(-0.5)),
        of_pair(hooked_entropy()),
        lambda z0, z1: NTXentLoss()(z0, z1),
        of_views(OwnSubloss()),
        of_views(SwaVLoss(temperature=-1.0)),
    ],
)
def test_a_fallback_breaks_no_graph(loss):
    expected = loss(*views())
    with warnings.catch_warnings(record=True) as given, sslfast.accelerate("lightly"):
        warnings.simplefilter("always")
        value, _ = graphs_of(loss, *views())
    (warning,) = [one for one in given if "accelerate" in str(one.message)]
    assert warning.filename == __file__
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # PyTorch's own, of its forward mode
def test_forward_mode_is_the_librarys_own():
    tangents = views(seed=3)
    for loss in (lambda z0, z1: NTXentLoss()(z0, z1), lambda z0, z1: SwaVLoss()([z0, z1], [z0])):
        expected = torch.func.jvp(loss, tuple(views()), tuple(tangents))
        with pytest.warns(UserWarning, match="forward-mode"), sslfast.accelerate("lightly"):
            got = torch.func.jvp(loss, tuple(views()), tuple(tangents))
        assert_same(got, expected, atol=1e-12)


def test_a_subloss_patched_in_the_class_is_not_overlooked(monkeypatch):
    loss = SwaVLoss()

    def subloss(self, z, q):
        return ((z - q) ** 2).mean()

    monkeypatch.setattr(SwaVLoss, "subloss", subloss)
    theirs = outcome(lambda z: loss(z, []), views())
    with pytest.warns(UserWarning, match="subloss"), sslfast.accelerate("lightly"):
        assert_same(outcome(lambda z: loss(z, []), views()), theirs)
