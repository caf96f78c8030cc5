"""Clusterings against classes; scikit-learn, whole enumerations and fractions are the oracles."""

import itertools
import math
import time
from fractions import Fraction

import numpy
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn import metrics
from sklearn.metrics.cluster import contingency_matrix
from sklearn.metrics.cluster import expected_mutual_information as scikit_learns

from sslfast.errors import DataError, UsageError
from sslfast.evaluate import clustering_scores
from sslfast.evaluate.counting import contingency, count_pairs, expected_mutual_information


def made(rows, classes, clusters, seed=0, agreement=0.5):
    random = numpy.random.default_rng(seed)
    true = random.integers(0, classes, rows)
    return true, numpy.where(random.random(rows) < agreement, true % clusters, random.integers(0, clusters, rows))


@pytest.mark.parametrize(
    ("rows", "classes", "clusters"), [(1000, 10, 10), (500, 4, 30), (500, 30, 4), (50, 7, 7), (2, 2, 2)]
)
def test_nmi_ami_and_ari_are_scikit_learns(rows, classes, clusters):
    true, predicted = made(rows, classes, clusters)
    ours = clustering_scores(true * 7 - 3, predicted + 11)  # numbers of classes and clusters mean nothing
    assert ours.nmi == pytest.approx(metrics.normalized_mutual_info_score(true, predicted), abs=1e-10)
    assert ours.ami == pytest.approx(metrics.adjusted_mutual_info_score(true, predicted), abs=1e-9)
    assert ours.ari == pytest.approx(metrics.adjusted_rand_score(true, predicted), abs=1e-12)


@pytest.mark.parametrize(
    ("true", "predicted"),
    [
        ([0, 0, 0], [5, 5, 5]),  # one class, one cluster
        ([0, 0, 0], [0, 1, 2]),
        ([0, 1, 2], [0, 0, 0]),
        ([0, 1, 2], [2, 0, 1]),  # every row alone
        ([0], [3]),
        ([0, 0, 1, 1], [1, 1, 0, 0]),
        ([0, 0, 1, 1], [0, 1, 0, 1]),
    ],
)
def test_the_corners_are_scikit_learns(true, predicted):
    ours = clustering_scores(true, predicted)
    assert ours.nmi == pytest.approx(metrics.normalized_mutual_info_score(true, predicted), abs=1e-9)
    assert ours.ami == pytest.approx(metrics.adjusted_mutual_info_score(true, predicted), abs=1e-9)
    assert ours.ari == pytest.approx(metrics.adjusted_rand_score(true, predicted), abs=1e-9)


def exact(rows, columns):
    """The same sum in fractions; only the logarithm is rounded."""
    total, found = sum(rows), 0.0
    for a, b in itertools.product(rows, columns):
        for n in range(max(1, a + b - total), min(a, b) + 1):
            share = Fraction(math.comb(b, n) * math.comb(total - b, a - n), math.comb(total, a))
            found += float(share * Fraction(n, total)) * math.log(total * n / (a * b))
    return found


@pytest.mark.parametrize(
    ("rows", "columns"),
    [([3, 4, 5], [6, 6]), ([1] * 12, [4, 8]), ([40, 2], [1, 41]), ([12], [5, 7]), ([300, 700, 24], [500, 500, 24])],
)
def test_expected_mutual_information_is_exact(rows, columns):
    found = expected_mutual_information(numpy.array(rows), numpy.array(columns))
    assert found == pytest.approx(exact(rows, columns), rel=1e-12, abs=1e-15)


def test_expected_mutual_information_of_every_permutation():
    """The definition itself: the mean over all ways of putting two labellings together."""
    true, predicted = [0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 2]
    found = [metrics.mutual_info_score(true, list(other)) for other in set(itertools.permutations(predicted))]
    expected = expected_mutual_information(numpy.array([3, 2, 2]), numpy.array([2, 4, 1]))
    assert expected == pytest.approx(sum(found) / len(found), rel=1e-12)


def test_a_million_rows_overflow_nothing():
    """Products of counts of a million rows leave 32 bits, and products of pairs leave 64."""
    random = numpy.random.default_rng(1)
    true = random.integers(0, 3, 1_000_000)
    predicted = numpy.where(random.random(len(true)) < 0.3, true, random.integers(0, 4, len(true)))
    ours = clustering_scores(true, predicted)
    table = contingency_matrix(true, predicted)
    assert ours.ari == pytest.approx(metrics.adjusted_rand_score(true, predicted), abs=1e-10)
    expected = expected_mutual_information(table.sum(1), table.sum(0))
    # scikit-learn's comes from logarithms of factorials of a million, whose last digits are rounded.
    assert expected == pytest.approx(scikit_learns(table, len(true)), rel=1e-4)
    # Of large tables chance is (R - 1)(C - 1) / 2N, with corrections of the order 1 / N^2.
    assert expected == pytest.approx(2 * 3 / (2 * len(true)), rel=1e-4)


def test_a_table_of_imagenets_size_takes_seconds(record_property):
    """1,000 classes, 8,000 clusters, 1.3 million rows, put together blindly: one draw of what the expectation is of."""
    random = numpy.random.default_rng(2)
    true = random.choice(1000, 1_300_000, p=random.dirichlet(numpy.full(1000, 50.0)))
    predicted = random.choice(8000, len(true), p=random.dirichlet(numpy.full(8000, 0.5)))
    start = time.monotonic()
    ours = clustering_scores(true, predicted)
    seconds = time.monotonic() - start
    record_property("seconds", seconds)
    assert ours.nmi > 0.15 and abs(ours.ami) < 1e-3 and abs(ours.ari) < 1e-3
    assert ours.clusters > 7000 and seconds < 30


def best_by_trying(table):
    square = numpy.zeros((max(table.shape),) * 2, dtype=int)
    square[: table.shape[0], : table.shape[1]] = table
    places = range(len(square))
    return max(square[places, order].sum() for order in map(list, itertools.permutations(places)))


@pytest.mark.parametrize(("classes", "clusters"), [(5, 5), (3, 6), (6, 3)])
def test_the_matching_is_the_best_of_all(classes, clusters):
    for seed in range(5):
        true, predicted = made(200, classes, clusters, seed, agreement=0.4)
        ours = clustering_scores(true, predicted)
        table, _, _ = contingency(true, predicted)
        assert ours.one_to_one_acc == pytest.approx(best_by_trying(table) / 200)
        if clusters <= classes:
            assert ours.acc == ours.one_to_one_acc
        assert ours.acc == pytest.approx((ours.assigned(predicted) == true).mean())


def test_clusters_that_are_left_over_go_to_their_majority():
    true = numpy.repeat([0, 1], [60, 40])
    predicted = numpy.concatenate([numpy.repeat([0, 1, 2], [30, 20, 10]), numpy.repeat([3, 2], [35, 5])])
    ours = clustering_scores(true, predicted)
    assert ours.assignment == {0: 0, 1: 0, 2: 0, 3: 1}
    assert ours.acc == 0.95 and ours.one_to_one_acc == 0.65
    assert (ours.clusters, ours.classes, ours.rows) == (4, 2, 100)


def by_a_square_matrix(true, predicted):
    """Over-clustering as the Self-Classifier's evaluation words it: classes that do not exist are matched as well."""
    size = max(true.max(), predicted.max()) + 1
    counts = numpy.zeros((size, size), dtype=int)
    numpy.add.at(counts, (predicted, true), 1)
    classes = dict(zip(*linear_sum_assignment(counts, maximize=True), strict=True))
    for cluster in numpy.unique(predicted):
        if classes[cluster] not in true:
            classes[cluster] = counts[cluster].argmax()
    return sum(counts[cluster, kind] for cluster, kind in classes.items()) / len(true)


@pytest.mark.parametrize("clusters", [10, 25, 60])
def test_accuracy_is_that_of_the_self_classifiers_evaluation(clusters):
    for seed in range(3):
        true, predicted = made(20_000, 10, clusters, seed)
        assert clustering_scores(true, predicted).acc == pytest.approx(by_a_square_matrix(true, predicted))


def test_with_few_clusters_some_classes_are_never_predicted():
    ours = clustering_scores([0, 0, 1, 1, 2], [7, 7, 8, 8, 8])
    assert ours.acc == 0.8 and ours.assignment == {7: 0, 8: 1}
    assert ours.assigned([8, 9, 7]).tolist() == [1, -1, 0]


def test_a_random_clustering_scores_nothing_once_chance_is_taken_off():
    random = numpy.random.default_rng(0)
    ours = clustering_scores(random.integers(0, 10, 300), random.integers(0, 100, 300))
    assert ours.nmi > 0.3 and abs(ours.ami) < 0.05 and abs(ours.ari) < 0.02


@pytest.mark.parametrize(
    ("true", "predicted", "said"),
    [([0, 1], [0], "2 true labels and 1"), ([], [], "empty"), ([0.5, 1], [0, 1], "row 0 is 0.5")],
)
def test_labels_that_cannot_be_compared_are_refused(true, predicted, said):
    with pytest.raises(DataError, match=said):
        clustering_scores(true, predicted)


def test_a_pair_out_of_range_is_an_error_and_no_write_beside_the_table():
    with pytest.raises(IndexError):
        count_pairs(numpy.array([0, 255]), numpy.array([0, 1]), 2, 2)


def test_numbers_that_are_no_classes_are_refused_before_memory_is_full():
    with pytest.raises(UsageError, match="are these class numbers"):
        clustering_scores(numpy.arange(20_000), numpy.arange(20_000))
