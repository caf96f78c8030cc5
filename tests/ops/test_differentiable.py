"""The short way that eager mode takes through ``torch.autograd.Function``, against the long one."""

import pytest
import torch

from sslfast.ops import _differentiable
from sslfast.ops._differentiable import quick


class Scaled(torch.autograd.Function):
    """x^2 a, and the number a again, which has no derivative."""

    long_way = 0

    @staticmethod
    def forward(x, a):
        return x * x * a, torch.tensor(a)

    @staticmethod
    def setup_context(ctx, inputs, output):
        Scaled.long_way += 1
        x, ctx.a = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad, _):
        (x,) = ctx.saved_tensors
        return 2 * ctx.a * x * grad, None

    @staticmethod
    def vmap(info, in_dims, x, a):
        return apply(x, a), (in_dims[0], None)


apply = quick(Scaled)


def test_this_pytorch_says_whether_a_transform_is_active():
    # Without an answer every call takes the long way.
    assert not _differentiable._transforms_are_active()
    assert torch.func.vmap(lambda x: x * _differentiable._transforms_are_active())(torch.ones(2)).eq(1).all()


@pytest.mark.parametrize("transforms", [False, True])
def test_both_ways_give_the_same(transforms, monkeypatch):
    monkeypatch.setattr(_differentiable, "_transforms_are_active", lambda: transforms)
    x = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    value, number = apply(x, 3.0)
    assert value.tolist() == [3.0, 12.0] and value.requires_grad
    assert float(number) == 3.0 and not number.requires_grad
    (grad,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    assert grad.tolist() == [6.0, -12.0]
    (second,) = torch.autograd.grad(grad.sum(), x)
    assert second.tolist() == [6.0, 6.0]


def test_without_gradients_nothing_is_kept():
    x = torch.ones(2, requires_grad=True)
    before = Scaled.long_way
    with torch.no_grad():
        value = apply(x, 3.0)[0]
    assert not value.requires_grad and Scaled.long_way == before


def test_transforms_are_served():
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    grad = torch.func.grad(lambda one: apply(one, 3.0)[0].sum())
    assert torch.equal(torch.func.vmap(grad)(x), 6 * x)
    with torch.no_grad():
        assert torch.equal(grad(x), 6 * x)
