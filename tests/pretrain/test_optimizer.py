"""LARS, the groups that are left out of it, and the learning rate's course."""

import pytest
import torch
from quick import config
from torch import nn

from sslfast.pretrain.optimizer import Lars, build_optimizer, learning_rate, set_rate


def test_lars_is_its_formula():
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 3).double().requires_grad_(), torch.randn(5).double().requires_grad_()
    zero = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)  # no length: it moves like plain SGD
    groups = [{"params": [weight, zero]}, {"params": [bias], "weight_decay": 0.0, "adapt": False}]
    lars = Lars(groups, lr=0.3, momentum=0.8, weight_decay=0.1, trust=0.02)
    expected = [p.detach().clone() for p in (weight, zero, bias)]
    moments = [torch.zeros_like(p) for p in expected]
    for _ in range(4):
        gradients = [torch.randn_like(p) for p in expected]
        for p, gradient in zip((weight, zero, bias), gradients, strict=True):
            p.grad = gradient.clone()
        lars.step()
        for index, (p, moment, gradient) in enumerate(zip(expected, moments, gradients, strict=True)):
            if index < 2:
                gradient = gradient + 0.1 * p
                if p.norm() > 0:
                    gradient = gradient * 0.02 * p.norm() / gradient.norm()
            moment.mul_(0.8).add_(gradient)
            p.sub_(0.3 * moment)
    for p, want in zip((weight, zero, bias), expected, strict=True):
        assert torch.allclose(p, want, rtol=1e-12, atol=1e-14)


def test_a_weight_without_a_gradient_stays():
    weight = torch.ones(2, 2, requires_grad=True)
    lars = Lars([weight], lr=1.0)
    lars.step()
    assert torch.equal(weight, torch.ones(2, 2)) and not lars.state


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_biases_and_norms_are_neither_decayed_nor_adapted(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    made = build_optimizer(model, config("simclr", optimizer=name, weight_decay=0.5, bias_rate=0.25))
    weights, vectors = made.param_groups
    assert {p.ndim for p in weights["params"]} == {4, 2} and {p.ndim for p in vectors["params"]} == {1}
    assert weights["weight_decay"] == 0.5 and vectors["weight_decay"] == 0
    set_rate(made, 0.4)
    assert weights["lr"] == 0.4 and vectors["lr"] == pytest.approx(0.1)
    if name == "lars":
        assert weights["adapt"] and not vectors["adapt"]


def test_the_learning_rate_rises_and_falls():
    options = config("simclr", learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(options, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 1e-3


def test_the_learning_rate_may_begin_and_end_above_zero():
    options = config("simclr", learning_rate=2.0, warmup=0.1, warmup_from=0.5, final_rate=0.25)
    rates = [learning_rate(options, step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1.0, rel=0.02) and rates[99] == 2.0 and rates[-1] == pytest.approx(0.5, rel=1e-3)
