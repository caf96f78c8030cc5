import copy
import pickle

import pytest
import torch

from sslfast.losses import BarlowTwinsLoss

lightly = pytest.importorskip("lightly.loss")


def views(rows, dim):
    generator = torch.Generator().manual_seed(3)
    return (2 * torch.randn(2, rows, dim, generator=generator, dtype=torch.float64) + 1).unbind()


@pytest.mark.parametrize(("rows", "dim"), [(2, 1), (2, 9), (5, 3), (33, 17), (16, 96)])
@pytest.mark.parametrize("weight", [0.0, 5e-3, 1.0])
@pytest.mark.parametrize("gather", [False, True])
def test_matches_lightly(same, rows, dim, weight, gather):
    ours, theirs = (kind(weight, gather_distributed=gather) for kind in (BarlowTwinsLoss, lightly.BarlowTwinsLoss))
    # The loss and its terms are sums over dim x dim entries.
    same(lambda z: ours(*z), lambda z: theirs(*z), views(rows, dim), atol=1e-12 * max(1, dim))


def test_one_row_is_a_value_error_as_in_lightly():
    for kind in (BarlowTwinsLoss, lightly.BarlowTwinsLoss):
        with pytest.raises(ValueError):
            kind()(*views(1, 4))


def test_gathering_needs_torch_distributed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    BarlowTwinsLoss()
    with pytest.raises(ValueError, match="BarlowTwinsLoss: gather_distributed=True"):
        BarlowTwinsLoss(gather_distributed=True)


def test_attributes_copies_and_pickles():
    loss = BarlowTwinsLoss(lambda_param=0.2)
    assert vars(lightly.BarlowTwinsLoss(lambda_param=0.2)).keys() <= vars(loss).keys()
    assert loss.lambda_param == 0.2 and loss.gather_distributed is False and not loss.state_dict()
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(*views(5, 3)), loss(*views(5, 3)))


def test_a_weight_in_another_wrapping():
    z = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(BarlowTwinsLoss(torch.tensor(0.5))(*z), BarlowTwinsLoss(0.5)(*z))
