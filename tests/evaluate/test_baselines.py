import numpy
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sslfast.errors import DataError
from sslfast.evaluate import linear_head, logistic_regression, predict_probabilities


@pytest.fixture(scope="module")
def digits():
    features, labels = load_digits(return_X_y=True)
    features, labels = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    return (features[:1400], labels[:1400]), (features[1400:], labels[1400:])


def share(head, rows):
    return float((predict_probabilities(head, rows[0]).argmax(1) == rows[1]).double().mean())


def test_logistic_regression_equals_plain_scikit_learn(digits):
    train, val = digits
    ours = logistic_regression(train, val, classes=10, grid=(0.01,))
    scaler = StandardScaler().fit(train[0].numpy())
    plain = LogisticRegression(C=0.01, max_iter=1000).fit(scaler.transform(train[0].numpy()), train[1].numpy())
    wanted = plain.predict_proba(scaler.transform(val[0].numpy()))
    numpy.testing.assert_allclose(predict_probabilities(ours.predictor, val[0]).numpy(), wanted, atol=5e-3)
    assert ours.validation_accuracy == pytest.approx(share(ours.predictor, val))
    assert "converged in" in ours.detail


def test_c_is_the_best_of_the_grid_on_validation(digits):
    train, val = digits
    grid = (1e-4, 1e-2, 1.0)
    single = [logistic_regression(train, val, classes=10, grid=(value,)).validation_accuracy for value in grid]
    chosen = logistic_regression(train, val, classes=10, grid=grid)
    assert f"C {grid[int(numpy.argmax(single))]:g} " in chosen.detail
    assert "all 1,400" in chosen.detail


def test_what_did_not_converge_says_so(digits):
    result = logistic_regression(*digits, classes=10, grid=(10.0,), max_iterations=3)
    assert "not converged in 3 steps" in result.detail


def test_c_may_be_chosen_on_a_part_that_holds_every_class(digits):
    (features, labels), val = digits
    keep = torch.cat([(labels == 3).nonzero()[:1, 0], (labels != 3).nonzero()[:, 0]])
    result = logistic_regression((features[keep], labels[keep]), val, classes=10, selection_rows=300)
    assert "301 of" in result.detail
    assert result.validation_accuracy > 0.7


@pytest.mark.parametrize("left_out", [1, 9])
def test_a_few_rows_more_than_c_is_chosen_on_are_all_taken(digits, left_out):
    train, val = digits
    result = logistic_regression(train, val, classes=10, selection_rows=1400 - left_out, max_iterations=3)
    assert "all 1,400" in result.detail


def test_two_classes_and_a_class_without_rows(digits):
    (features, labels), (val_features, val_labels) = digits
    train, val = [(x[y < 2], y[y < 2]) for x, y in ((features, labels), (val_features, val_labels))]
    result = logistic_regression(train, val, classes=3, grid=(1.0,))
    probabilities = predict_probabilities(result.predictor, val[0])
    assert result.validation_accuracy > 0.97
    assert share(result.predictor, val) == pytest.approx(result.validation_accuracy)
    assert float(probabilities[:, 2].max()) == 0


def test_the_linear_head_learns_and_says_its_epoch(digits):
    train, val = digits
    result = linear_head(train, val, 0.02, classes=10, epochs=5)
    assert result.validation_accuracy > 0.85
    assert share(result.predictor, val) == pytest.approx(result.validation_accuracy)
    assert "lr 0.02, best epoch" in result.detail


def test_rows_that_cannot_be_fitted_are_refused(digits):
    (features, labels), val = digits
    spoiled = features.clone()
    spoiled[3, 3] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        logistic_regression((spoiled, labels), val, classes=10)
    with pytest.raises(DataError, match="one class"):
        logistic_regression((features, labels * 0), val, classes=10)
