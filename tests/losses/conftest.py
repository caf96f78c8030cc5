import pytest
import torch

SMALL = 1e-12


@pytest.fixture
def same():
    """Demand the same value and gradients of two losses on the same tensors, in float64."""

    def compare(ours, theirs, *groups, atol=SMALL):
        results = []
        for loss in (ours, theirs):
            leaves = [[one.detach().clone().requires_grad_() for one in group] for group in groups]
            value = loss(*leaves)
            # Not all ones: a gradient that ignores what comes from above would pass.
            inputs = [one for group in leaves for one in group]
            gradients = torch.autograd.grad(1.7 * value.sum(), inputs, allow_unused=True, materialize_grads=True)
            results.append((value.detach(), *gradients))
        for our, their in zip(*results, strict=True):
            assert our.shape == their.shape
            torch.testing.assert_close(our, their, rtol=0, atol=atol)

    return compare
