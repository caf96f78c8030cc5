"""Many logistic regressions at once against scikit-learn, one at a time."""

import numpy
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sslfast.evaluate.logistic import c_grid, fit_logistic


@pytest.fixture(scope="module")
def digits():
    features, labels = load_digits(return_X_y=True)
    features = torch.tensor(features, dtype=torch.float64)
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-3)
    return features[:900], torch.tensor(labels)[:900]


def objective(inputs, labels, weight, bias, strength):
    loss = F.cross_entropy(inputs.double() @ weight.double().t() + bias.double(), labels)
    return float(loss + 0.5 * weight.double().square().sum() / (strength * len(labels)))


def test_the_grid_is_that_of_the_linear_probe():
    grid = c_grid()
    assert len(grid) == 45 and grid[0] == pytest.approx(1e-6) and grid[-1] == pytest.approx(1e5)
    assert numpy.allclose(numpy.diff(numpy.log10(grid)), 0.25)


def test_three_strengths_equal_scikit_learn(digits):
    inputs, labels = digits
    strengths = (1e-3, 0.1, 10.0)
    fits = fit_logistic(inputs, labels, 10, strengths, 2000, 1e-8)
    assert fits.converged == [True] * 3
    for index, strength in enumerate(strengths):
        plain = LogisticRegression(C=strength, tol=1e-10, max_iter=5000).fit(inputs.numpy(), labels.numpy())
        torch.testing.assert_close(fits.weight[index], torch.from_numpy(plain.coef_), atol=2e-4, rtol=1e-3)
        ours, theirs = fits.bias[index], torch.from_numpy(plain.intercept_)
        torch.testing.assert_close(ours - ours.mean(), theirs - theirs.mean(), atol=2e-4, rtol=1e-3)
        theirs_value = objective(inputs, labels, torch.from_numpy(plain.coef_), theirs, strength)
        assert objective(inputs, labels, fits.weight[index], ours, strength) <= theirs_value * (1 + 1e-6)


def test_all_at_once_end_where_each_would_alone(digits):
    inputs, labels = digits
    strengths = c_grid()[::4]
    together = fit_logistic(inputs, labels, 10, strengths, 2000, 1e-8)
    for index in (0, 4, 7):
        alone = fit_logistic(inputs, labels, 10, [strengths[index]], 2000, 1e-8)
        # Products of other shapes round differently, so that paths part; the end is one.
        scale = float(alone.weight.abs().max())
        torch.testing.assert_close(together.weight[index] / scale, alone.weight[0] / scale, rtol=0, atol=1e-3)


def test_float32_comes_as_near(digits):
    inputs, labels = digits
    strengths = c_grid()
    single = fit_logistic(inputs.float(), labels, 10, strengths, 300)
    double = fit_logistic(inputs, labels, 10, strengths, 2000, 1e-7)
    for index, strength in enumerate(strengths):
        near = objective(inputs, labels, single.weight[index], single.bias[index], strength)
        best = objective(inputs, labels, double.weight[index], double.bias[index], strength)
        assert near <= best + 5e-3, (strength, near, best)
    assert sum(single.converged) >= 40


def test_steps_that_are_not_enough_are_said(digits):
    fits = fit_logistic(*digits, 10, (1e-6, 1e5), 5)
    assert fits.converged[1] is False and fits.steps[1] == 5


def test_a_constant_feature_and_more_features_than_rows(digits):
    inputs, labels = digits
    wide = torch.cat([inputs[:40], torch.zeros(40, 30, dtype=torch.float64)], 1)
    fits = fit_logistic(wide, labels[:40], 10, (1.0,), 500)
    assert fits.converged == [True] and bool(fits.weight.isfinite().all())
    assert float(fits.weight[0, :, 64:].abs().max()) < 1e-8


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any tensor had."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        found = operation(*arguments, **(options or {}))
        for one in found if isinstance(found, tuple) else (found,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return found


def test_many_classes_take_no_more_memory_than_few():
    """45 strengths x 300 classes x 2,000 rows: the scores of all rows would be 27 million numbers."""
    inputs, labels = torch.randn(2000, 8), torch.arange(2000) % 300
    with Largest() as largest:
        fits = fit_logistic(inputs, labels, 300, c_grid(), 2)
    assert 2_000_000 < largest.numbers <= 16_000_000
    whole = fit_logistic(inputs, labels, 300, c_grid()[:1], 2)
    torch.testing.assert_close(fits.weight[:1], whole.weight)
