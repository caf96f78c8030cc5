import numpy
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from sslfast.errors import DataError
from sslfast.evaluate import k_nearest, predict_probabilities
from sslfast.evaluate.neighbours import TEMPERATURE


@pytest.fixture(scope="module")
def digits():
    features, labels = load_digits(return_X_y=True)
    features, labels = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    return (features[:1400], labels[:1400]), (features[1400:], labels[1400:])


@pytest.mark.parametrize("number", [1, 7, 50])
def test_the_votes_are_scikit_learns(digits, number):
    train, val = digits
    ours = k_nearest(train, val, classes=10, numbers=(number,))
    plain = KNeighborsClassifier(
        number, metric="cosine", algorithm="brute", weights=lambda distance: numpy.exp(-distance / TEMPERATURE)
    ).fit(train[0].numpy(), train[1].numpy())
    wanted = plain.predict_proba(val[0].numpy())
    numpy.testing.assert_allclose(predict_probabilities(ours.predictor, val[0]).numpy(), wanted, atol=2e-4)
    assert ours.validation_accuracy == pytest.approx(plain.score(val[0].numpy(), val[1].numpy()), abs=2 / 397)


def test_k_is_the_best_on_validation_and_never_above_the_rows(digits):
    train, val = digits
    single = [k_nearest(train, val, classes=10, numbers=(number,)).validation_accuracy for number in (1, 20, 400)]
    chosen = k_nearest(train, val, classes=10, numbers=(400, 20, 1))
    assert chosen.validation_accuracy == max(single)
    few = k_nearest((train[0][:15], train[1][:15]), val, classes=10)
    assert few.predictor.number <= 15


def test_a_row_of_zeros_has_a_class_too(digits):
    train, val = digits
    result = k_nearest(train, (torch.zeros(3, 64), val[1][:3]), classes=10, numbers=(5,))
    assert bool(predict_probabilities(result.predictor, torch.zeros(2, 64)).isfinite().all())


def test_rows_that_cannot_be_compared_are_refused(digits):
    train, val = digits
    spoiled = train[0].clone()
    spoiled[2, 2] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        k_nearest((spoiled, train[1]), val, classes=10)
    with pytest.raises(DataError, match="no rows"):
        k_nearest((train[0][:0], train[1][:0]), val, classes=10)
