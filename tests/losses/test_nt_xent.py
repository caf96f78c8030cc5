import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sslfast.losses import NTXentLoss

lightly = pytest.importorskip("lightly.loss")


def views(rows, dim, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, dim, generator=generator, dtype=torch.float64).to(dtype).unbind()


def both(**arguments):
    """Our loss and lightly's with the same content of the bank, in float64."""
    ours, theirs = NTXentLoss(**arguments).double(), lightly.NTXentLoss(**arguments).double()
    ours.memory_bank.bank.copy_(theirs.memory_bank.bank)
    return ours, theirs


@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (1, 5), (2, 3), (17, 33), (64, 128)])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1, 10.0, -1.0])
@pytest.mark.parametrize("gather", [False, True])
def test_matches_lightly(same, rows, dim, temperature, gather):
    ours, theirs = both(temperature=temperature, gather_distributed=gather)
    same(lambda z: ours(*z), lambda z: theirs(*z), views(rows, dim), atol=1e-12 / min(1, abs(temperature)))


@pytest.mark.parametrize("temperature", [0.07, 0.5, -2.0])
@pytest.mark.parametrize("size", [(1, 6), (7, 6), (64, 6)])
def test_matches_lightly_with_a_bank(same, size, temperature):
    ours, theirs = both(temperature=temperature, memory_bank_size=size)
    for step, rows in enumerate((3, 4, 1, 9, 5, 5, 2)):
        same(lambda z: ours(*z), lambda z: theirs(*z), views(rows, 6, seed=step), atol=1e-12 / min(1, abs(temperature)))
        assert torch.equal(ours.memory_bank.bank, theirs.memory_bank.bank)
        assert torch.equal(ours.memory_bank.bank_ptr, theirs.memory_bank.bank_ptr)


def test_only_what_is_trained_on_is_stored():
    loss = NTXentLoss(memory_bank_size=(8, 3))
    before = copy.deepcopy(loss.state_dict())
    out0, out1 = views(4, 3, dtype=torch.float32)
    loss(out0, out1.requires_grad_())
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())
    loss(out0.requires_grad_(), out1)
    assert torch.equal(loss.memory_bank.bank[:4], nn.functional.normalize(out1, dim=1))
    assert loss.memory_bank.bank_ptr.item() == 4


def test_a_batch_that_is_refused_is_not_stored():
    loss = NTXentLoss(memory_bank_size=(8, 3))
    before = copy.deepcopy(loss.state_dict())
    for out0, out1 in [(torch.randn(4, 3), torch.randn(5, 3)), (torch.randn(4, 3), torch.randn(4, 3).double())]:
        with pytest.raises((TypeError, ValueError), match="NTXentLoss: "):
            loss(out0.requires_grad_(), out1)
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


def test_backward_after_the_bank_has_moved_on():
    loss = NTXentLoss(memory_bank_size=(6, 3)).double()
    out0, out1 = (z.requires_grad_() for z in views(4, 3))
    first = loss(out0, out1)
    expected = torch.autograd.grad(first, out0, retain_graph=True)[0]
    loss(*(z.requires_grad_() for z in views(4, 3, seed=1)))
    assert torch.equal(torch.autograd.grad(first, out0)[0], expected)


@pytest.mark.parametrize(
    ("dtype", "autocast", "result"),
    [
        (torch.float32, False, torch.float32),
        (torch.float64, False, torch.float64),
        (torch.bfloat16, False, torch.bfloat16),
        (torch.bfloat16, True, torch.float32),
    ],
)
def test_the_bank_keeps_its_own_precision(dtype, autocast, result):
    loss = NTXentLoss(temperature=0.1, memory_bank_size=(32, 8))
    out0, out1 = views(16, 8, dtype=dtype)
    exact = copy.deepcopy(loss).double()(out0.double(), out1.double())
    with torch.autocast("cpu", enabled=autocast):
        value = loss(out0.requires_grad_(), out1)
    assert value.dtype == result and loss.memory_bank.bank.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-2 if result == torch.bfloat16 else 1e-6, atol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": 0.0},
        {"temperature": -9e-9},
        {"temperature": 1e-8},
        {"temperature": -0.5},
        {"memory_bank_size": 5},
        {"memory_bank_size": -1},
        {"memory_bank_size": (5, -1)},
        {"memory_bank_size": (5,)},
        {"memory_bank_size": (5, 4, 3)},
        {"memory_bank_size": (0,)},
        {"memory_bank_size": (0, 3)},
        {"memory_bank_size": [5, 3]},
        {"gather_distributed": True},
    ],
)
def test_refuses_what_lightly_refuses(arguments):
    outcomes = []
    for kind in (NTXentLoss, lightly.NTXentLoss):
        try:
            kind(**arguments)
            outcomes.append(None)
        except Exception as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


def test_gathering_needs_torch_distributed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    NTXentLoss()
    with pytest.raises(ValueError, match="NTXentLoss: gather_distributed=True"):
        NTXentLoss(gather_distributed=True)


def test_attributes_are_lightlys():
    ours, theirs = both(temperature=0.3, memory_bank_size=(5, 4))
    for name in ("temperature", "gather_distributed", "eps"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert isinstance(ours.cross_entropy, nn.CrossEntropyLoss)
    for name in ("size", "gather_distributed", "feature_dim_first"):
        assert getattr(ours.memory_bank, name) == getattr(theirs.memory_bank, name)


@pytest.mark.parametrize("size", [0, (8, 5)])
def test_copies_and_pickles(size):
    loss = NTXentLoss(temperature=0.2, memory_bank_size=size)
    out0, out1 = views(4, 5, dtype=torch.float32)
    expected = loss(out0, out1)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(out0, out1), expected)


@pytest.mark.parametrize("size", [0, (8, 5)])
def test_compiles_without_a_break(size):
    loss = NTXentLoss(temperature=0.2, memory_bank_size=size).double()
    twin = copy.deepcopy(loss)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        (a0, a1), (b0, b1) = ([z.requires_grad_() for z in views(4, 5, seed)] for _ in range(2))
        expected, got = loss(a0, a1), compiled(b0, b1)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            *torch.autograd.grad(got, b0), *torch.autograd.grad(expected, a0), rtol=0, atol=1e-12
        )
        assert torch.equal(twin.memory_bank.bank, loss.memory_bank.bank)
    torch.compiler.reset()


def test_single_precision_does_not_lose_the_difference():
    # All rows are equal: the loss is log(bank + 1) whatever the temperature, and its terms are ten times as large.
    worst = 0.0
    for seed in range(200):
        out0, out1 = (z[:, :1].abs().float() * torch.tensor([1.0, 2.0]) for z in views(16, 1, seed))
        loss = NTXentLoss(temperature=0.1, memory_bank_size=(1, 2))
        loss.memory_bank.bank.copy_(nn.functional.normalize(out1[:1], dim=1))
        worst = max(worst, abs(float(loss(out0, out1)) / 0.6931471805599453 - 1))
    assert worst < 1e-6


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), float("-inf")])
def test_a_temperature_that_is_no_number_is_refused(temperature):
    with pytest.raises(ValueError, match="NTXentLoss: temperature must be finite"):
        NTXentLoss(temperature)


def test_a_temperature_of_words_is_refused():
    with pytest.raises(TypeError, match="NTXentLoss: temperature must be a number, got str"):
        NTXentLoss("0.5")


def test_a_negative_temperature_checks_the_batch_too():
    loss = NTXentLoss(-0.5)
    for z0, z1 in ((torch.ones(6, 5), torch.ones(5, 5)), (torch.ones(6, 5), torch.ones(6, 5).double())):
        with pytest.raises((ValueError, TypeError), match="NTXentLoss: "):
            loss(z0, z1)
    half = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert loss(half, half).dtype == torch.bfloat16


def test_a_refused_batch_is_not_stored():
    loss = NTXentLoss(0.5, memory_bank_size=(16, 5))
    before = loss.memory_bank.bank.clone()
    with pytest.raises(ValueError, match="must have the 5 columns of the memory bank"):
        loss(torch.ones(6, 4, requires_grad=True), torch.ones(6, 4))
    loss.temperature = float("nan")
    with pytest.raises(ValueError, match="temperature must be"):
        loss(torch.ones(6, 5, requires_grad=True), torch.ones(6, 5))
    assert torch.equal(loss.memory_bank.bank, before) and int(loss.memory_bank.bank_ptr) == 0


def test_mixed_precision_under_autocast_with_a_bank():
    loss = NTXentLoss(0.5, memory_bank_size=(16, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(torch.ones(6, 5), torch.ones(6, 5, dtype=torch.bfloat16)).dtype == torch.float32


def test_nothing_is_stored_under_no_grad_whatever_requires_a_gradient():
    network = nn.Linear(3, 3).double()
    for step in range(2):
        losses = both(memory_bank_size=(8, 3))
        for loss in losses:
            out0, out1 = network(views(2, 3, seed=step)[0]), views(2, 3, seed=step)[1]
            loss(out0, out1)
            with torch.no_grad():
                loss(out0, out1)
            with torch.inference_mode():
                loss(*views(2, 3))
        assert [int(loss.memory_bank.bank_ptr) for loss in losses] == [2, 2]
        assert torch.equal(losses[0].memory_bank.bank, losses[1].memory_bank.bank)


def tripled(module, inputs, output):
    return 3 * output


ENTROPIES = {
    "sum": lambda width: nn.CrossEntropyLoss(reduction="sum"),
    "none": lambda width: nn.CrossEntropyLoss(reduction="none"),
    "smoothed": lambda width: nn.CrossEntropyLoss(label_smoothing=0.2),
    "weights": lambda width: nn.CrossEntropyLoss(torch.arange(1, width + 1, dtype=torch.float64)),
    "one class ignored": lambda width: nn.CrossEntropyLoss(ignore_index=1 if width == 7 else 5),
    "another module": lambda width: nn.MultiMarginLoss(),
    "hook": lambda width: _with_hook(),
}


def _with_hook():
    entropy = nn.CrossEntropyLoss()
    entropy.register_forward_hook(tripled)
    return entropy


@pytest.mark.parametrize("name", ENTROPIES)
@pytest.mark.parametrize(("size", "width"), [(0, 7), ((5, 3), 6)])
def test_a_cross_entropy_of_ones_own_is_called(same, name, size, width):
    losses = both(temperature=0.3, memory_bank_size=size)
    for loss in losses:
        loss.cross_entropy = ENTROPIES[name](width)
    same(lambda z: losses[0](*z), lambda z: losses[1](*z), views(4, 3))


def test_a_cross_entropy_of_ones_own_keeps_the_dtype():
    loss = NTXentLoss()
    loss.cross_entropy = nn.CrossEntropyLoss(reduction="sum")
    z0, z1 = views(4, 3, dtype=torch.bfloat16)
    assert loss(z0, z1).dtype == torch.bfloat16
    torch.testing.assert_close(loss(z0, z1).float(), 8 * NTXentLoss()(z0.float(), z1.float()), rtol=8e-3, atol=0)


@pytest.mark.parametrize(
    "temperature", [torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64), np.float32(0.5), np.array(0.5)]
)
def test_numbers_in_other_wrappings(temperature):
    out = views(4, 3)
    assert torch.equal(NTXentLoss(temperature)(*out), NTXentLoss(0.5)(*out))
    assert pickle.loads(pickle.dumps(NTXentLoss(temperature))).temperature == 0.5


def test_a_temperature_that_is_learned_is_refused():
    with pytest.raises(TypeError, match="NTXentLoss: temperature must be a number, got Parameter"):
        NTXentLoss(nn.Parameter(torch.tensor(0.5)))


@pytest.mark.parametrize("size", [(np.int64(8), 3), (8, np.int32(3)), torch.Size([8, 3])])
def test_sizes_of_other_kinds_of_whole_numbers(size):
    bank = NTXentLoss(memory_bank_size=size).memory_bank
    assert bank.size == (8, 3) and all(type(one) is int for one in bank.size)


def test_a_temperature_that_became_words_is_named():
    loss = NTXentLoss()
    loss.temperature = "x"
    with pytest.raises(TypeError, match="NTXentLoss: temperature must be a number, got str"):
        loss(*views(4, 3))
