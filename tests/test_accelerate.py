import copy
import inspect
import pickle
import subprocess
import sys
import threading
import warnings
from functools import partial

import pytest
import torch
from outcomes import assert_same, counting, outcome, views
from torch import nn

import sslfast
from sslfast import _peers
from sslfast._peers import lightly as lightly_peer

pytest.importorskip("lightly.loss")
from lightly.loss import BarlowTwinsLoss, DirectCLRLoss, NTXentLoss, SwaVLoss, swav_loss  # noqa: E402
from lightly.models.modules.memory_bank import MemoryBankModule  # noqa: E402

CODES = {function: inspect.unwrap(function).__code__ for function in (NTXentLoss.forward, swav_loss.sinkhorn)}


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    """Every test starts without warnings given, and leaves the libraries as they were."""
    monkeypatch.setattr(_peers, "_warned", set())
    yield
    swapped = sys.modules["sslfast.accelerate"]._swapped
    assert all(entry.wanted == 0 and function.__code__ is entry.theirs for function, entry in swapped.items())
    assert all(inspect.unwrap(function).__code__ is code for function, code in CODES.items())


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of our losses from the swapped functions."""
    counted = {}
    for name in ("nt_xent", "against_bank", "barlow_twins", "swav_loss", "sinkhorn"):
        monkeypatch.setattr(lightly_peer, name, counting(counted, name, getattr(lightly_peer, name)))
    return counted


LOSSES = {
    "nt_xent": (NTXentLoss(0.2), lambda loss, z: loss(*z[:2])),
    "barlow_twins": (BarlowTwinsLoss(0.1), lambda loss, z: loss(*z[:2])),
    "swav_loss": (SwaVLoss(), lambda loss, z: loss(z[:2], z[2:])),
}
"""Built before anything is accelerated."""


@pytest.mark.parametrize("name", LOSSES)
def test_what_was_built_before_is_accelerated(calls, name):
    loss, run = LOSSES[name]
    theirs = outcome(partial(run, loss), views(4))
    assert name not in calls
    with sslfast.accelerate("lightly"):
        ours = outcome(partial(run, loss), views(4))
        assert calls[name] == 1
        assert_same(ours, theirs)
        assert_same(outcome(partial(run, copy.deepcopy(loss)), views(4)), theirs)
    after = outcome(partial(run, loss), views(4))
    assert all(torch.equal(one, other) for one, other in zip(after, theirs, strict=True))
    assert calls[name] == 2


def test_as_a_call_it_stays_until_restored(calls):
    handle = sslfast.accelerate("lightly")
    try:
        assert len(handle.swapped) == 4 and "in force" in repr(handle)
        NTXentLoss()(*views())
        NTXentLoss()(*views())
        assert calls["nt_xent"] == 2
    finally:
        handle.restore()
    handle.restore()
    assert "ended" in repr(handle)
    NTXentLoss()(*views())
    assert calls["nt_xent"] == 2


def test_every_reference_follows(calls):
    loss = NTXentLoss()
    bound, unbound, sinkhorn = loss.forward, NTXentLoss.forward, swav_loss.sinkhorn
    fixed = partial(sinkhorn, iterations=2)
    direct = DirectCLRLoss(loss_dim=3)
    expected = outcome(lambda z: direct(*z), views())
    with sslfast.accelerate("lightly"):
        bound(*views())
        unbound(loss, *views())
        assert calls["nt_xent"] == 2
        assert_same(outcome(lambda z: direct(*z), views()), expected)
        assert calls["nt_xent"] == 3
        sinkhorn(views()[0])
        fixed(views()[0], epsilon=0.3)
        assert calls["sinkhorn"] == 2


def test_an_error_inside_restores():
    with pytest.raises(KeyError), sslfast.accelerate("lightly"):
        raise KeyError


@pytest.mark.parametrize("first_out", [0, 1])
def test_nested_in_any_order(calls, first_out):
    handles = [sslfast.accelerate("lightly"), sslfast.accelerate("lightly")]
    handles[first_out].restore()
    handles[first_out].restore()
    NTXentLoss()(*views())
    assert calls["nt_xent"] == 1
    with sslfast.accelerate("lightly"):
        handles[1 - first_out].restore()
        NTXentLoss()(*views())
    NTXentLoss()(*views())
    assert calls["nt_xent"] == 2


def test_signatures_names_and_kinds_stay():
    def look():
        return [
            (inspect.signature(f), f.__name__, f.__doc__, f.__module__, inspect.unwrap(f).__defaults__)
            for f in (NTXentLoss.forward, BarlowTwinsLoss.forward, SwaVLoss.forward, swav_loss.sinkhorn)
        ]

    before = look()
    with sslfast.accelerate("lightly"):
        assert look() == before
        loss = NTXentLoss(memory_bank_size=(4, 3))
        assert type(loss) is NTXentLoss and isinstance(loss, nn.Module) and not loss.state_dict()
        assert type(loss.memory_bank) is MemoryBankModule


def test_pickles_and_states_pass_the_border():
    expected = outcome(lambda z: NTXentLoss(0.3)(*z), views())
    with sslfast.accelerate("lightly"):
        inside = pickle.dumps((NTXentLoss(0.3), NTXentLoss(0.3).forward, swav_loss.sinkhorn))
        state = nn.ModuleList([nn.Linear(2, 2), NTXentLoss(0.3)]).state_dict()
        assert_same(outcome(lambda z: pickle.loads(inside)[0](*z), views()), expected)
    loss, bound, sinkhorn = pickle.loads(inside)
    assert_same(outcome(lambda z: loss(*z), views()), expected, atol=0)
    assert_same(outcome(lambda z: bound(*z), views()), expected, atol=0)
    assert sinkhorn is swav_loss.sinkhorn
    nn.ModuleList([nn.Linear(2, 2), NTXentLoss(0.3)]).load_state_dict(state)
    code = "import pickle, sys; loss = pickle.load(sys.stdin.buffer)[0]; print(type(loss), 'sslfast' in sys.modules)"
    run = subprocess.run([sys.executable, "-P", "-c", code], input=inside, capture_output=True)
    assert run.stdout.decode().strip() == "<class 'lightly.loss.ntx_ent_loss.NTXentLoss'> False", run.stderr


@pytest.mark.parametrize("temperature", [0.2, -0.5])
def test_the_memory_bank_moves_as_before(calls, temperature):
    def train(loss):
        torch.manual_seed(1)
        loss.memory_bank._init_memory_bank((7, 5))
        results = []
        for step in range(6):
            results += outcome(lambda z: loss(*z), views(rows=3 + step % 2, seed=step))
            results += [loss.memory_bank.bank.clone(), loss.memory_bank.bank_ptr.clone()]
        loss(*views())  # nothing to train: nothing is stored
        return [*results, loss.memory_bank.bank.clone()]

    theirs = train(NTXentLoss(temperature, memory_bank_size=(7, 5)).double())
    with warnings.catch_warnings(record=True) as given, sslfast.accelerate("lightly"):
        warnings.simplefilter("always")
        ours = train(NTXentLoss(temperature, memory_bank_size=(7, 5)).double())
    assert_same(ours, theirs)
    assert calls.get("against_bank", 0) == (7 if temperature > 0 else 0) and len(given) == (temperature < 0)


def learned_temperature():
    loss = NTXentLoss()
    del loss.temperature
    loss.temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    return loss


def other_entropy(**options):
    loss = NTXentLoss()
    loss.cross_entropy = nn.CrossEntropyLoss(**options)
    return loss


class OwnBank(MemoryBankModule):
    def forward(self, output, labels=None, update=False):
        return output, torch.ones(5, 3, dtype=output.dtype)


def own_bank():
    loss = NTXentLoss()
    loss.memory_bank = OwnBank((3, 5))
    return loss


class OwnSubloss(SwaVLoss):
    def subloss(self, z, q):
        return ((z - q) ** 2).mean()


def bound_subloss():
    loss = SwaVLoss()
    loss.subloss = lambda z, q: ((z - q) ** 2).mean()
    return loss


@pytest.mark.parametrize(
    ("make", "run", "word"),
    [
        (lambda: NTXentLoss(-0.5), lambda loss, z: loss(*z), "temperature"),
        (learned_temperature, lambda loss, z: loss(*z), "temperature"),
        (lambda: other_entropy(label_smoothing=0.1), lambda loss, z: loss(*z), "cross_entropy"),
        (lambda: other_entropy(reduction="none"), lambda loss, z: loss(*z), "cross_entropy"),
        (own_bank, lambda loss, z: loss(*z), "memory_bank"),
        (OwnSubloss, lambda loss, z: loss(z, []), "subloss"),
        (bound_subloss, lambda loss, z: loss(z, []), "subloss"),
        (lambda: SwaVLoss(temperature=-1.0), lambda loss, z: loss(z, []), "temperature"),
        (lambda: BarlowTwinsLoss(torch.tensor(0.1)), lambda loss, z: loss(*z), "lambda_param"),
    ],
)
def test_what_is_not_covered_runs_as_before_with_one_warning(make, run, word):
    loss = make()
    theirs = outcome(partial(run, loss), views())
    with warnings.catch_warnings(record=True) as given, sslfast.accelerate("lightly"):
        warnings.simplefilter("always")
        for _ in range(3):
            # lightly's SwaVLoss calls its sinkhorn, which is ours.
            atol = 0 if isinstance(loss, NTXentLoss) else 1e-12
            assert_same(outcome(partial(run, loss), views()), theirs, atol=atol)
    (warning,) = given
    message = str(warning.message)
    assert message.startswith("accelerate: lightly.loss.") and "runs lightly's own code: " in message
    assert word in message and "\n" not in message
    assert warning.filename == __file__  # the user's own line, not PyTorch's or ours


def test_one_warning_per_reason_whatever_the_value():
    with warnings.catch_warnings(record=True) as given, sslfast.accelerate("lightly"):
        warnings.simplefilter("always")
        for temperature in (-0.5, -0.6, -0.7):
            NTXentLoss(temperature)(*views())
        other_entropy(label_smoothing=0.1)(*views())
    assert len(given) == 2


def test_an_error_is_the_librarys_own():
    wrong = [
        (NTXentLoss(), (torch.randn(3, 4), torch.randn(3, 4).double())),
        (BarlowTwinsLoss(), tuple(torch.randn(2, 1, 4))),
        (BarlowTwinsLoss(), (torch.randn(3, 4), torch.randn(4, 4))),
        (NTXentLoss(memory_bank_size=(8, 3)), tuple(torch.randn(2, 3, 4))),
        (NTXentLoss(), ("z0", "z1")),
    ]
    for loss, arguments in wrong:
        with pytest.raises(Exception) as expected:
            loss(*arguments)
        with warnings.catch_warnings(), sslfast.accelerate("lightly"):
            warnings.simplefilter("ignore")
            with pytest.raises(expected.type) as got:
                loss(*arguments)
        assert str(got.value) == str(expected.value) and got.value.__context__ is None


def test_sinkhorn_keeps_its_no_grad(calls):
    scores = views(1)[0].requires_grad_()
    expected = swav_loss.sinkhorn(scores, 2, 0.5)
    with sslfast.accelerate("lightly"):
        got = swav_loss.sinkhorn(scores, iterations=2, epsilon=0.5)
        assert calls["sinkhorn"] == 1 and not got.requires_grad
        swav_loss.sinkhorn(scores, 2, 0.5, gather_distributed=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_training_is_the_same():
    def train():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8)).double()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        losses = NTXentLoss(0.2, memory_bank_size=(16, 8)).double(), BarlowTwinsLoss(), SwaVLoss(), NTXentLoss()
        for step in range(20):
            z = [network(one) for one in views(4, rows=8, seed=step)]
            loss = losses[0](*z[:2]) + losses[1](*z[:2]) + losses[2](z[:2], z[2:]).sum() + losses[3](*z[2:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return nn.utils.parameters_to_vector(network.parameters()).detach()

    theirs = train()
    with sslfast.accelerate("lightly"):
        ours = train()
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_compiled_code_follows_too():
    graphs = []

    def backend(module, inputs):
        graphs.append("sslfast" in module.code)
        return module

    loss = NTXentLoss(0.2)
    compiled = torch.compile(lambda z0, z1: loss(z0, z1) * 2, backend=backend)
    expected = compiled(*views())
    assert graphs and not any(graphs)
    before = len(graphs)
    for _ in range(3):
        with sslfast.accelerate("lightly"):
            torch.testing.assert_close(compiled(*views()), expected)
        assert torch.equal(compiled(*views()), expected)
    assert graphs[before:] == [True]  # one graph without a break, compiled once
    torch.compiler.reset()


def test_threads_may_enter_and_leave():
    loss, errors = NTXentLoss(0.2), []
    expected = loss(*views())

    def work():
        try:
            for _ in range(50):
                with sslfast.accelerate("lightly"):
                    torch.testing.assert_close(loss(*views()), expected)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_another_name_is_an_error():
    with pytest.raises(ValueError, match=r"accelerate: library must be 'lightly' or 'solo', got 'vissl'"):
        sslfast.accelerate("vissl")


@pytest.mark.parametrize(("library", "package"), [("lightly", "lightly"), ("solo", "solo-learn")])
def test_a_library_that_is_not_installed_is_named(monkeypatch, library, package):
    module = sys.modules["sslfast.accelerate"]
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError) as error:
        sslfast.accelerate(library)
    assert str(error.value) == f"accelerate: {package} is not installed; install it with: pip install {package}"
    assert library not in sys.modules


def test_nothing_of_a_library_is_imported_before_it_is_asked_for():
    code = "import sys, sslfast; print({'lightly', 'solo', 'pytorch_lightning'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr


def test_a_function_that_is_unlike_the_known_one_is_left(monkeypatch):
    def sinkhorn(out, iterations=3):
        return out

    monkeypatch.setattr(swav_loss, "sinkhorn", sinkhorn)
    with (
        pytest.warns(UserWarning, match=r"swav_loss.sinkhorn is unlike .*\(parameters \(out, iterations=3\)"),
        sslfast.accelerate("lightly") as handle,
    ):
        assert len(handle.swapped) == 3 and sinkhorn(1) == 1


def test_a_handle_that_has_ended_can_be_entered_again(calls):
    handle = sslfast.accelerate("lightly")
    for count in (1, 2):
        with handle:
            NTXentLoss()(*views())
            assert calls["nt_xent"] == count and "in force" in repr(handle)
        NTXentLoss()(*views())
        assert calls["nt_xent"] == count and "ended" in repr(handle)


def test_accelerations_that_nobody_kept_can_be_ended(calls):
    for _ in range(3):  # the cell of a notebook, run again
        sslfast.accelerate("lightly")
    sslfast.accelerate("lightly").restore_all()
    NTXentLoss()(*views())
    assert "nt_xent" not in calls
    with sslfast.accelerate("lightly") as handle:  # nothing is left over
        handle.restore_all()
        NTXentLoss()(*views())
    assert "nt_xent" not in calls


@pytest.mark.parametrize("library", [["lightly"], None, 3])
def test_a_library_that_is_no_name_is_an_error(library):
    with pytest.raises(ValueError, match="accelerate: library must be 'lightly' or 'solo', got "):
        sslfast.accelerate(library)
