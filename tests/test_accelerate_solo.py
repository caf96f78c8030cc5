"""solo-learn: the release 1.0.2 as it is installed, and the form of its repository since, written out here."""

import importlib.util
import inspect
import subprocess
import sys
import types
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from outcomes import assert_same, counting, outcome, views
from torch import nn

import sslfast
from sslfast import _peers
from sslfast._peers import solo as peer


@pytest.fixture(autouse=True)
def no_warning_was_given(monkeypatch):
    monkeypatch.setattr(_peers, "_warned", set())


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of our losses from the swapped functions."""
    counted = {}
    for name in ("nt_xent", "nt_xent_indexed", "barlow_twins", "sinkhorn"):
        monkeypatch.setattr(peer, name, counting(counted, name, getattr(peer, name)))
    return counted


@pytest.fixture
def solo(monkeypatch):
    """Return a function that imports a module of solo-learn 1.0.2 without what its other modules need."""
    spec = importlib.util.find_spec("solo")
    if spec is None:
        pytest.skip("solo-learn is not installed")
    _forget_solo(monkeypatch)
    root = Path(spec.origin).parent
    for name in ("solo", "solo.utils"):  # their __init__ import networks, loggers and plug-ins
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, package)
    yield importlib.import_module
    _forget_solo(monkeypatch)


def _forget_solo(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "solo"]:
        monkeypatch.delitem(sys.modules, name)


def assignments(count, rows=6, classes=5):
    return [torch.softmax(3 * one, dim=1) for one in views(count, rows, classes, seed=9)]


RELEASE = {
    "nt_xent": ("solo.losses.simclr", "simclr_loss_func", lambda f, z: f(z[0], z[1], temperature=0.2)),
    "barlow_twins": ("solo.losses.barlow", "barlow_loss_func", lambda f, z: f(*(one.float() for one in z[:2]), 0.1)),
    "swav_2": ("solo.losses.swav", "swav_loss_func", lambda f, z: f(z[:2], assignments(2), 0.3)),
    "swav_3": ("solo.losses.swav", "swav_loss_func", lambda f, z: f(z[:3], assignments(3))),
    "sinkhorn": (
        "solo.utils.sinkhorn_knopp",
        "SinkhornKnopp",
        lambda kind, z: z[0].sum() + kind(num_iters=2, epsilon=0.5, world_size=1)(z[0]),
    ),
}


@pytest.mark.parametrize("name", RELEASE)
def test_the_release_of_solo_learn(solo, calls, name):
    module, attribute, run = RELEASE[name]
    function = getattr(solo(module), attribute)  # as `from solo.losses.simclr import simclr_loss_func` holds it
    signature = inspect.signature(function)
    theirs = outcome(partial(run, function), views(3))
    with sslfast.accelerate("solo") as handle:
        assert len(handle.swapped) == 4
        ours = outcome(partial(run, function), views(3))
        assert inspect.signature(function) == signature
    assert_same(ours, theirs, atol=1e-5 if name == "barlow_twins" else 1e-11)
    assert name.startswith("swav") or calls[name] == 1
    after = outcome(partial(run, function), views(3))
    assert all(torch.equal(one, other) for one, other in zip(after, theirs, strict=True))
    assert name.startswith("swav") or calls[name] == 1


def test_what_solo_learn_alone_computes(solo):
    simclr = solo("solo.losses.simclr").simclr_loss_func
    sinkhorn = solo("solo.utils.sinkhorn_knopp").SinkhornKnopp(num_iters=0, world_size=3)
    swav = solo("solo.losses.swav").swav_loss_func
    mask = torch.rand(12, 12) > 0.7
    runs = (
        lambda z: simclr(*z[:2], 0.3, mask),
        lambda z: simclr(*z[:2], extra_pos_mask=mask),
        lambda z: simclr(*z[:2], -0.3),
        lambda z: swav(z[:2], assignments(3)),
        lambda z: z[0].sum() + sinkhorn(z[0]),
    )
    theirs = [outcome(run, views(3)) for run in runs]
    with warnings.catch_warnings(record=True) as given, sslfast.accelerate("solo"):
        warnings.simplefilter("always")
        for _ in range(2):
            for run, expected in zip(runs, theirs, strict=True):
                assert_same(outcome(run, views(3)), expected, atol=0)
    messages = [str(one.message) for one in given]
    assert len(messages) == 4 and all("runs solo's own code" in message for message in messages)
    assert "extra_pos_mask" in messages[0] and given[0].filename == __file__


def simclr_loss_func(z, indexes, temperature=0.1):
    """The present form: rows with equal indexes are positives, whoever else is in the batch a negative."""
    z = nn.functional.normalize(z, dim=-1)
    similarity = torch.exp(z @ z.T / temperature)
    equal = indexes[:, None] == indexes[None, :]
    others = ~torch.eye(len(z), dtype=torch.bool)
    positive = (similarity * (equal & others)).sum(dim=1)
    return -torch.log(positive / (positive + (similarity * ~equal).sum(dim=1))).mean()


def swav_loss_func(preds, assignments, temperature=0.1):
    """The present form: there may be more predictions (of small crops) than assignments."""
    terms = [
        -(a * torch.log_softmax(p / temperature, dim=1)).sum(dim=1).mean()
        for i, a in enumerate(assignments)
        for j, p in enumerate(preds)
        if i != j
    ]
    return sum(terms) / len(terms)


@pytest.fixture
def solo_now(monkeypatch):
    """The repository's present functions in modules of its names; the other modules cannot be imported."""
    _forget_solo(monkeypatch)
    for name in ("solo", "solo.losses"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[name].__path__ = []
    for function in (simclr_loss_func, swav_loss_func):
        name = f"solo.losses.{function.__name__.partition('_')[0]}"
        module = types.ModuleType(name)
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)
    yield
    _forget_solo(monkeypatch)


@pytest.mark.parametrize("indexes", [[0, 1, 2, 0, 1, 2], [0, 0, 1, 1, 1, 0], [4, 4, 4, 4, 4, 4], [5, 7, 7, 5, 7, 5]])
def test_the_present_form_of_solo_learn(solo_now, calls, indexes):
    def run(z):
        return simclr_loss_func(z[0], torch.tensor(indexes), 0.4)

    theirs = outcome(run, views())
    with sslfast.accelerate("solo") as handle:
        assert handle.swapped == ("solo.losses.simclr.simclr_loss_func", "solo.losses.swav.swav_loss_func")
        assert_same(outcome(run, views()), theirs)
        assert calls["nt_xent_indexed"] == 1


@pytest.mark.parametrize(("predicted", "assigned"), [(2, 2), (5, 2), (3, 1), (3, 3)])
def test_the_present_swav_of_solo_learn(solo_now, predicted, assigned):
    def run(z):
        return swav_loss_func(z, assignments(assigned))

    theirs = outcome(run, views(predicted))
    with sslfast.accelerate("solo"):
        assert_same(outcome(run, views(predicted)), theirs)


def test_solo_learn_as_it_is_installed():
    """1.0.2 needs packages that are gone; its losses can be imported after that has failed once."""
    if importlib.util.find_spec("solo") is None:
        pytest.skip("solo-learn is not installed")
    code = """
import sslfast, torch
handle = sslfast.accelerate("solo")
from solo.losses.simclr import simclr_loss_func
from solo.losses import barlow_loss_func
z = torch.randn(2, 5, 3)
torch.testing.assert_close(simclr_loss_func(*z, temperature=0.5), sslfast.nt_xent(*z, 0.5))
torch.testing.assert_close(barlow_loss_func(*z, scale_loss=1.0), sslfast.barlow_twins(*z))
print(*handle.swapped)
"""
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert "solo.losses.simclr.simclr_loss_func solo.losses.barlow.barlow_loss_func" in run.stdout, run.stderr


def test_solo_learn_without_any_loss(monkeypatch):
    _forget_solo(monkeypatch)
    package = types.ModuleType("solo")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "solo", package)
    with pytest.raises(ImportError) as error:
        sslfast.accelerate("solo")
    assert str(error.value).startswith(
        "accelerate: no loss of solo-learn to swap: solo.losses.simclr cannot be imported"
    )


FORMS = {
    "stacked": lambda a: torch.stack(a),
    "float32": lambda a: [one.float() for one in a],
    "one-hot": lambda a: [nn.functional.one_hot(one.argmax(1), 5) for one in a],
    "whole numbers": lambda a: [torch.full_like(one, 200, dtype=torch.uint8) for one in a],
    "truth values": lambda a: [one > 0.1 for one in a],
    "one row for all": lambda a: [one[:1] for one in a],
    "one column": lambda a: [one[:, :1] for one in a],
    "a number per class": lambda a: [one[0] for one in a],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [2, 3])
def test_assignments_of_every_form(solo, form, count):
    function = solo("solo.losses.swav").swav_loss_func

    def run(z):
        return function(z, FORMS[form](assignments(count)), 0.3)

    theirs = outcome(run, views(count))
    with warnings.catch_warnings(), sslfast.accelerate("solo"):
        warnings.simplefilter("ignore")
        assert_same(outcome(run, views(count)), theirs, atol=1e-9 if form == "whole numbers" else 1e-11)


def test_predictions_may_be_stacked(solo):
    function = solo("solo.losses.swav").swav_loss_func
    theirs = outcome(lambda z: function(torch.stack(z), assignments(2)), views())
    with sslfast.accelerate("solo"):
        assert_same(outcome(lambda z: function(torch.stack(z), assignments(2)), views()), theirs)


def test_square_predictions_with_a_vector_are_no_class_numbers(solo):
    """Whole numbers in one dimension are factors to solo-learn, class numbers to PyTorch's cross entropy."""
    function = solo("solo.losses.swav").swav_loss_func
    vectors = [torch.arange(5) % 3] * 2
    theirs = outcome(lambda z: function(z, vectors), views(rows=5))
    with warnings.catch_warnings(), sslfast.accelerate("solo"):
        warnings.simplefilter("ignore")
        assert_same(outcome(lambda z: function(z, vectors), views(rows=5)), theirs)
