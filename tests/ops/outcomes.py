"""Value and gradients of a loss, how two are compared, and how often a function was called for them."""

import torch


def counting(counted, name, function):
    def call(*arguments, **options):
        counted[name] = counted.get(name, 0) + 1
        return function(*arguments, **options)

    return call


def views(count=2, rows=6, dim=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, rows, dim, generator=generator, dtype=torch.float64).to(dtype))


def outcome(loss, tensors):
    """Value and gradients."""
    leaves = [one.detach().clone().requires_grad_() for one in tensors]
    value = loss(leaves)
    return value.detach(), *torch.autograd.grad(value.sum(), leaves, allow_unused=True, materialize_grads=True)


def assert_same(ours, theirs, atol=1e-11):
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape and our.dtype == their.dtype
        torch.testing.assert_close(our, their, rtol=0, atol=atol)
