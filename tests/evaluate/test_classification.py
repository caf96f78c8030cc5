"""Reports of predictions; both legible confusion matrices of paper 002 and every figure that it prints of them."""

import numpy
import pytest
from sklearn import metrics

from sslfast.errors import DataError
from sslfast.evaluate import accuracy, classification_report, confusion_matrix, report_of

NAMES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SELF_SUPERVISED_PC_DARTS = (
    (941, 3, 12, 6, 0, 0, 3, 2, 25, 8),
    (1, 976, 0, 0, 0, 0, 0, 0, 2, 21),
    (16, 0, 935, 10, 13, 12, 9, 2, 2, 1),
    (8, 1, 20, 848, 12, 78, 19, 9, 4, 1),
    (1, 0, 7, 10, 958, 7, 7, 10, 0, 0),
    (2, 1, 8, 50, 6, 917, 6, 7, 1, 2),
    (4, 0, 13, 9, 3, 1, 969, 1, 0, 0),
    (7, 0, 7, 3, 7, 10, 1, 965, 0, 0),
    (15, 5, 2, 2, 0, 0, 2, 0, 967, 7),
    (3, 14, 0, 1, 0, 0, 1, 0, 8, 973),
)
SELF_SUPERVISED_PC_DARTS_PRINTED = """
plane 0.942886 0.9410 0.941942 0.9884
car   0.976000 0.9760 0.976000 0.9952
bird  0.931275 0.9350 0.933134 0.9866
cat   0.903088 0.8480 0.874678 0.9757
deer  0.958959 0.9580 0.958479 0.9917
dog   0.894634 0.9170 0.905679 0.9809
frog  0.952802 0.9690 0.960833 0.9921
horse 0.968876 0.9650 0.966934 0.9934
ship  0.958375 0.9670 0.962668 0.9925
truck 0.960513 0.9730 0.966716 0.9933
all   0.944900 0.9449 0.944900 0.9449
"""

PCP_DARTS = (
    (971, 0, 10, 3, 1, 0, 0, 0, 13, 2),
    (1, 981, 0, 0, 1, 0, 0, 0, 1, 16),
    (9, 0, 965, 5, 9, 8, 3, 0, 1, 0),
    (2, 1, 8, 908, 8, 58, 8, 2, 4, 1),
    (1, 0, 4, 6, 979, 7, 1, 2, 0, 0),
    (0, 1, 3, 25, 5, 960, 2, 4, 0, 0),
    (3, 0, 4, 5, 3, 0, 984, 1, 0, 0),
    (1, 0, 2, 2, 6, 7, 0, 982, 0, 0),
    (8, 3, 2, 0, 0, 0, 0, 0, 986, 1),
    (3, 16, 0, 1, 0, 0, 0, 0, 8, 972),
)
PCP_DARTS_PRINTED = """
plane 0.971972 0.9710 0.971486 0.9943
car   0.979042 0.9810 0.980020 0.9960
bird  0.966934 0.9650 0.965966 0.9932
cat   0.950785 0.9080 0.928900 0.9861
deer  0.967391 0.9790 0.973161 0.9946
dog   0.923077 0.9600 0.941176 0.9880
frog  0.985972 0.9840 0.984985 0.9970
horse 0.990918 0.9820 0.986439 0.9973
ship  0.973346 0.9860 0.979632 0.9959
truck 0.979839 0.9720 0.975904 0.9952
all   0.968800 0.9688 0.968800 0.9688
"""

PAPER = [
    pytest.param(SELF_SUPERVISED_PC_DARTS, SELF_SUPERVISED_PC_DARTS_PRINTED, id="SS PC-DARTS, s 1"),
    pytest.param(PCP_DARTS, PCP_DARTS_PRINTED, id="PCP-DARTS, s 0"),
]


@pytest.mark.parametrize(("matrix", "printed"), PAPER)
def test_every_figure_that_the_paper_prints(matrix, printed):
    pairs = [(i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) for _ in range(count)]
    true, predicted = numpy.array(pairs).T
    report = classification_report(true, predicted, NAMES)
    assert report.confusion.tolist() == [list(row) for row in matrix]
    lines = [line.split()[:5] for line in report.text().splitlines()[1:]]
    assert lines == [line.split() for line in printed.strip().splitlines()]


@pytest.fixture(scope="module")
def guesses():
    random = numpy.random.default_rng(0)
    true = random.integers(0, 7, 3000)
    return true, numpy.where(random.random(3000) < 0.6, true, random.integers(0, 7, 3000))


def test_the_numbers_are_scikit_learns(guesses):
    true, predicted = guesses
    report = classification_report(true, predicted, list("abcdefg"))
    wanted = metrics.precision_recall_fscore_support(true, predicted)
    for row, precision, recall, f1, support in zip(report.rows, *wanted, strict=True):
        assert (row.precision, row.recall, row.f1, row.support) == (
            pytest.approx(precision), pytest.approx(recall), pytest.approx(f1), support,
        )  # fmt: skip
        binary = metrics.accuracy_score(true == "abcdefg".index(row.name), predicted == "abcdefg".index(row.name))
        assert row.accuracy == pytest.approx(binary)
    assert report.accuracy == accuracy(true, predicted) == metrics.accuracy_score(true, predicted)
    assert report.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(true, predicted))
    assert report.macro.f1 == pytest.approx(metrics.f1_score(true, predicted, average="macro"))
    assert confusion_matrix(true, predicted, 7).tolist() == metrics.confusion_matrix(true, predicted).tolist()


def test_classes_that_do_not_occur_or_are_never_predicted_have_zeros_and_spoil_no_mean():
    report = classification_report([0, 0, 1, 1], [0, 0, 1, 2], ["boot", "bag", "coat", "shirt"])
    boot, bag, coat, shirt = report.rows
    assert (bag.precision, bag.recall, bag.support) == (1.0, 0.5, 2)
    assert (coat.precision, coat.recall, coat.f1, coat.accuracy) == (0.0, 0.0, 0.0, 0.75)
    assert (shirt.precision, shirt.recall, shirt.f1, shirt.accuracy, shirt.support) == (0.0, 0.0, 0.0, 1.0, 0)
    assert report.balanced_accuracy == 0.75
    assert report.macro.f1 == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert report.as_dict()["all"]["f1-score"] == 0.75
    assert len(classification_report([0, 1], [0, 1], ["a\nb", "c"]).text().splitlines()) == 4  # a folder's name


@pytest.mark.parametrize(
    ("true", "predicted", "names", "said"),
    [
        ([0, 1], [0], "ab", "2 true labels and 1 predicted"),
        ([], [], "ab", "true labels are empty"),
        ([0, 2], [0, 1], "ab", "true label of row 1 is 2, but there are 2 classes"),
        ([0, 1], [0, -1], "ab", "predicted label of row 1 is -1"),
        ([0, 1.5], [0, 1], "ab", "row 1 is 1.5"),
        ([0, float("nan")], [0, 1], "ab", "whole numbers"),
        ([0, 1e300], [0, 1], "ab", "row 1 is 1e"),
        ([[0], [1, 2]], [0, 1], "ab", "one row of labels"),
        (["cat", "dog"], ["cat", "dog"], "ab", "whole numbers"),
        ([[0, 1]], [[0, 1]], "ab", "one row of labels"),
        ([0, 1], [0, 1], "aa", "two classes are called 'a'"),
    ],
)
def test_labels_that_cannot_be_compared_are_refused_in_a_line(true, predicted, names, said):
    with pytest.raises(DataError, match=said) as caught:
        classification_report(true, predicted, names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("matrix", [[[1, 2]], [[1.5, 0], [0, 1]], [[0, 0], [0, 0]], [[1, -1], [0, 2]]])
def test_a_matrix_that_is_no_confusion_matrix_is_refused(matrix):
    with pytest.raises(DataError, match="confusion matrix"):
        report_of(matrix, "ab")
