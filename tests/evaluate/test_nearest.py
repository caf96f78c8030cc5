"""k-NN by the cosine, beside scikit-learn's; tiles; what is refused."""

import numpy
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from sslfast.errors import DataError, UsageError
from sslfast.evaluate import NearestConfig, knn, nearest
from sslfast.evaluate.samples import Samples


def scikit_learns(train, test, number, temperature):
    weights = "uniform" if temperature is None else lambda distance: numpy.exp((1 - distance) / temperature)
    model = KNeighborsClassifier(number, metric="cosine", algorithm="brute", weights=weights)
    return model.fit(train[0].numpy(), train[1].numpy()).predict(test[0].numpy())


@pytest.mark.parametrize("tile", [32768, 113])
def test_every_row_of_the_table_is_scikit_learns(rows, stores, tile, monkeypatch):
    monkeypatch.setattr(nearest, "TRAIN_ROWS", tile)
    monkeypatch.setattr(nearest, "TEST_ROWS", 64)
    (features, labels), test = rows
    for scores in (knn((features, labels), test), knn(*stores)):
        assert [(one.number, one.temperature) for one in scores] == [
            (20, 0.07), (20, 0.1), (20, None), (200, 0.07), (200, 0.1), (200, None),
        ]  # fmt: skip
        for score in scores:
            wanted = scikit_learns(
                (features[0].double(), labels), (test[0].double(), test[1]), score.number, score.temperature
            )
            # A sum of votes may be a tie but for rounding.
            assert (score.predicted.numpy() != wanted).sum() <= 1
            assert score.accuracy == pytest.approx((score.predicted == test[1]).float().mean().item())


def test_the_neighbours_are_the_nearest_ones_whatever_the_tiles(rows, monkeypatch):
    (features, labels), test = rows
    train, tested = Samples((features[0], labels), "training"), Samples(test, "test")
    unit = [torch.nn.functional.normalize(one.double(), dim=1) for one in (test[0], features[0])]
    wanted, _ = (unit[0] @ unit[1].t()).topk(30)
    for tile in (32768, 500, 29):
        monkeypatch.setattr(nearest, "TRAIN_ROWS", tile)
        similar, index = nearest.nearest(train, tested, 30)
        assert torch.allclose(similar.double(), wanted, atol=1e-6)
        assert torch.allclose((unit[0] @ unit[1].t()).gather(1, index), wanted, atol=1e-6)
        assert all(len(set(row)) == 30 for row in index.tolist())


def test_the_temperature_decides_between_one_near_and_two_far_neighbours():
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]]), torch.tensor([0, 1, 1])
    test = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    found = {one.temperature: int(one.predicted) for one in knn(train, test, NearestConfig((3,), (0.07, 1.0)))}
    assert found == {0.07: 0, 1.0: 1, None: 1}


def test_a_small_temperature_overflows_nothing_and_a_row_of_zeros_has_a_class(rows):
    train, _ = rows
    test = torch.zeros(2, 16), torch.tensor([0, 1])
    scores = knn(train, test, NearestConfig((200,), (0.001, 0.07)))
    assert all(0 <= int(one) < 5 for score in scores for one in score.predicted)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (NearestConfig((0,)), "k must be at least 1"),
        (NearestConfig(()), "needs a value of k"),
        (NearestConfig((5,), (), False), "needs a value of k"),
        (NearestConfig((5,), (0.0,)), "temperature"),
    ],
)
def test_options_that_make_no_sense(rows, config, said):
    with pytest.raises(UsageError, match=said):
        knn(*rows, config)


def test_rows_that_cannot_be_compared(rows, stores, spoiled):
    train, test = rows
    few = train[0][0, :100], train[1][:100]
    with pytest.raises(DataError, match="k is 200, but there are 100 training rows"):
        knn(few, test)
    with pytest.raises(DataError, match="NaN or infinity, first in row 7"):
        knn(spoiled, test)
    with pytest.raises(DataError, match="length 16, test features 15"):
        knn(train, (test[0][:, 1:], test[1]))
    with pytest.raises(DataError, match="500 rows of test features and labels"):
        knn(train, (test[0], test[1][1:]))
    with pytest.raises(DataError, match="no test rows"):
        knn(train, (test[0][:0], test[1][:0]))
    with pytest.raises(DataError, match="one class only"):
        knn((train[0][0], torch.zeros(1200, dtype=torch.int64)), (test[0], torch.zeros(500, dtype=torch.int64)))
    with pytest.raises(DataError, match="has label 9, but there are 5 classes"):
        knn(train, (test[0], torch.where(torch.arange(500) == 3, 9, test[1])))
    with pytest.raises(DataError, match="has label -1"):
        knn(train, (test[0], torch.where(torch.arange(500) == 3, -1, test[1])))
    with pytest.raises(DataError, match="whole numbers"):
        knn(train, (test[0], test[1].float()))
    with pytest.raises(DataError, match="the same images"):
        knn(stores[0], stores[0])
    for same in (train, (train[0][0].clone(), train[1])):
        with pytest.raises(DataError, match="the test rows themselves"):
            knn(train, same)
    with pytest.raises(DataError, match="must be a FeatureStore .* got a str"):
        knn("features/train", test)
    with pytest.raises(DataError, match="test features and labels must be numbers"):
        knn(train, (test[0], ["cat"] * 500))
