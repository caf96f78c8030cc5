"""What several tests of banks share: heads, rows, and how banks are trained and compared."""

import math

import torch

from sslfast.models.head import HeadSpec
from sslfast.search.bank import Optimizer

SPECS = [
    HeadSpec((17,), 0.3, 0.01),
    HeadSpec((), 0.0, 0.02),
    HeadSpec((64, 130), 0.5, 0.02),
    HeadSpec((100, 33, 65), 0.0, 0.005),
]
OPTIMIZERS = [
    Optimizer("sgd", weight_decay=1e-3),
    Optimizer("adam", weight_decay=1e-2),
    Optimizer("adamw", weight_decay=1e-1),
    Optimizer("lars", weight_decay=1e-2, trust=0.02),
]


def rows(count, width=20, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, width, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(classes, (count,), generator=generator)
    return features, labels, torch.randperm(count, generator=generator)


def cosine(specs, steps):
    at = torch.arange(steps, dtype=torch.float64)
    rates = torch.tensor([spec.learning_rate for spec in specs], dtype=torch.float64)
    return rates[:, None] * 0.5 * (1 + torch.cos(math.pi * at / steps))


def tables(bank):
    places = [bank._places[index] for index in bank.running]
    numbers = torch.tensor([place.optimizer.numbers() for place in places], dtype=torch.float64)
    return places, bank._table(places), numbers


def in_plain(bank, features, labels, order, batch):
    """HeadBank.train by whatever serves the CPU."""
    specs = [bank._places[index].spec for index in bank.running]
    return bank.train(features, labels, order, cosine(specs, -(-len(order) // batch)), batch)


def same(one, other, rtol=1e-9, atol=1e-11):
    assert one.running == other.running
    for index in one.running:
        for ours, theirs in zip(one.weights(index), other.weights(index), strict=True):
            torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=rtol, atol=atol, check_dtype=False)
