import copy

import pytest
import torch
from torch import nn

from sslfast.losses import MemoryBankModule, NTXentLoss


def rows(count, dim=3, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("feature_dim_first", [True, False])
def test_the_ring_is_lightlys(size, feature_dim_first):
    theirs_module = pytest.importorskip("lightly.models.modules.memory_bank")
    ours = MemoryBankModule((size, 3), feature_dim_first=feature_dim_first)
    theirs = theirs_module.MemoryBankModule((size, 3), feature_dim_first=feature_dim_first)
    ours.bank.copy_(theirs.bank)
    for step, count in enumerate((1, 3, 2, 5, 8, 9, 1, 1, 4, 4, 20, 3)):
        batch = rows(count, seed=step)
        update = step % 4 != 3
        (out, bank), (_, expected) = (module(batch, update=update) for module in (ours, theirs))
        assert out is batch
        assert torch.equal(bank, expected) and bank.shape == expected.shape
        assert torch.equal(ours.bank, theirs.bank) and torch.equal(ours.bank_ptr, theirs.bank_ptr)


def test_hand_computed_ring():
    bank = MemoryBankModule((3, 1), feature_dim_first=False)
    assert torch.equal(bank.bank.abs(), torch.ones(3, 1))
    bank(torch.tensor([[1.0], [2.0]]), update=True)
    bank(torch.tensor([[3.0], [4.0]]), update=True)  # reaches the end: 4 is dropped
    assert bank.bank.tolist() == [[1.0], [2.0], [3.0]] and bank.bank_ptr.tolist() == [0]
    bank(torch.tensor([[5.0]]), update=True)
    assert bank.bank.tolist() == [[5.0], [2.0], [3.0]] and bank.bank_ptr.tolist() == [1]


def test_what_was_handed_out_does_not_change():
    bank = MemoryBankModule((4, 3))
    handed = bank(rows(2), update=True)[1]
    before = handed.clone()
    bank(rows(2, seed=1), update=True)
    assert torch.equal(handed, before)


def test_labels_are_ignored_and_no_gradient_passes():
    bank = MemoryBankModule((4, 3))
    batch = rows(2).requires_grad_()
    out, held = bank(batch, torch.arange(2), update=True)
    assert out is batch and not held.requires_grad and not bank.bank.requires_grad


@pytest.mark.parametrize("size", [0, (0,), (0, 3)])
def test_no_bank_has_no_state(size):
    bank = MemoryBankModule(size)
    batch = rows(2)
    assert bank(batch, update=True) == (batch, None)
    assert not bank.state_dict()


def test_the_bank_is_part_of_a_checkpoint(tmp_path):
    def step(loss, seed):
        out0, out1 = rows(3, seed=seed).requires_grad_(), rows(3, seed=seed + 100)
        value = loss(out0, out1)
        return value.detach(), torch.autograd.grad(value, out0)[0]

    unbroken = NTXentLoss(memory_bank_size=(7, 3))
    for seed in range(4):
        step(unbroken, seed)
    torch.save(unbroken.state_dict(), tmp_path / "state.pt")
    resumed = NTXentLoss(memory_bank_size=(7, 3))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    for seed in range(4, 10):
        for expected, got in zip(step(unbroken, seed), step(resumed, seed), strict=True):
            assert torch.equal(got, expected)
    assert torch.equal(resumed.memory_bank.bank, unbroken.memory_bank.bank)


def test_a_state_of_lightly_loads():
    lightly = pytest.importorskip("lightly.loss")
    network = nn.ModuleDict({"layer": nn.Linear(2, 2), "loss": lightly.NTXentLoss(memory_bank_size=(7, 3))})
    ours = nn.ModuleDict({"layer": nn.Linear(2, 2), "loss": NTXentLoss(memory_bank_size=(7, 3))})
    before = copy.deepcopy(ours["loss"].state_dict())
    assert ours.load_state_dict(network.state_dict(), strict=True) == ([], [])
    assert torch.equal(ours["layer"].weight, network["layer"].weight)
    assert all(torch.equal(before[name], value) for name, value in ours["loss"].state_dict().items())
    # And the other way, for those who have no bank.
    plain = nn.ModuleDict({"layer": nn.Linear(2, 2), "loss": NTXentLoss()})
    network["loss"] = lightly.NTXentLoss()
    network.load_state_dict(plain.state_dict(), strict=True)


def test_half_a_state_or_another_size_is_an_error():
    loss = NTXentLoss(memory_bank_size=(7, 3))
    state = loss.state_dict()
    assert sorted(state) == ["memory_bank.bank", "memory_bank.bank_ptr"]
    with pytest.raises(RuntimeError, match="memory_bank.bank_ptr"):
        loss.load_state_dict({"memory_bank.bank": state["memory_bank.bank"]})
    with pytest.raises(RuntimeError, match="size mismatch"):
        NTXentLoss(memory_bank_size=(8, 3)).load_state_dict(state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_gpu_is_not_waited_for():
    loss = NTXentLoss(memory_bank_size=(7, 3)).cuda()
    batches = [(rows(3, seed=seed).cuda().requires_grad_(), rows(3, seed=seed + 50).cuda()) for seed in range(4)]
    loss(*batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for out0, out1 in batches[1:]:
            loss(out0, out1).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.memory_bank.bank_ptr.item() == 3
