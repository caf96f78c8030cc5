import copy
import pickle

import pytest
import torch

from sslfast.losses import SelfClassifierLoss


def published(heads, row_temperature, column_temperature, eps):
    """The paper's loss in the order of its own words: every pair of views of which one is global, per head."""
    terms = []
    for views in heads:
        rows, classes = views[0].shape
        for i, target in enumerate(views):
            p = torch.softmax(target / column_temperature, dim=0)
            p = p / p.sum(dim=1, keepdim=True).clamp_min(eps)
            for j, predicted in enumerate(views):
                if i != j and (i < 2 or j < 2):
                    q = torch.softmax(predicted / row_temperature, dim=1)
                    q = q / q.sum(dim=0, keepdim=True).clamp_min(eps)
                    terms.append(-(p * torch.log(q * rows / classes + eps)).sum(dim=1).mean())
    return sum(terms) / len(terms)


def logits(views, rows, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(views, rows, classes, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize(("rows", "classes"), [(4, 3), (9, 17)])
def test_matches_the_published_loss(same, views, rows, classes):
    loss = SelfClassifierLoss()
    same(loss, lambda z: published([z], 0.1, 0.05, 1e-8), logits(views, rows, classes), atol=1e-11)


def test_several_heads_and_other_options(same):
    loss = SelfClassifierLoss(row_temperature=0.3, column_temperature=0.2, eps=1e-5)
    same(
        lambda *heads: loss(list(heads)),
        lambda *heads: published(heads, 0.3, 0.2, 1e-5),
        logits(3, 8, 5),
        logits(3, 8, 11, seed=1),
        atol=1e-11,
    )


def test_gathering_needs_torch_distributed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    SelfClassifierLoss()
    with pytest.raises(ValueError, match="SelfClassifierLoss: gather_distributed=True"):
        SelfClassifierLoss(gather_distributed=True)


def test_copies_and_pickles():
    loss = SelfClassifierLoss(eps=1e-6)
    assert not loss.state_dict()
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(logits(2, 4, 3)), loss(logits(2, 4, 3)))


def test_numbers_in_other_wrappings():
    loss = SelfClassifierLoss(torch.tensor(0.25), torch.tensor(0.5))
    assert torch.equal(loss(logits(2, 4, 3)), SelfClassifierLoss(0.25, 0.5)(logits(2, 4, 3)))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_nested_tensors_are_refused_by_name(layout):
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=layout)
    with pytest.raises(TypeError, match=r"self_classifier: logits\[0\] must be a dense tensor"):
        SelfClassifierLoss()([nested, nested])
