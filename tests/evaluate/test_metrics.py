import numpy
import pytest

from sslfast.evaluate import accuracy, classification_report, confusion_matrix, report_text

LABELS = numpy.array([0, 0, 1, 1, 2, 2, 2])
PREDICTED = numpy.array([0, 1, 1, 1, 2, 0, 2])


def test_accuracy_and_confusion():
    assert accuracy(LABELS, PREDICTED) == pytest.approx(5 / 7)
    assert confusion_matrix(LABELS, PREDICTED, 4).tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]


def test_the_report_is_per_class_and_survives_a_class_that_does_not_occur():
    report = classification_report(LABELS, PREDICTED, ["ankle boot", "bag", "coat"])
    assert report["bag"] == {"precision": pytest.approx(2 / 3), "recall": 1.0, "f1-score": 0.8, "support": 2}
    report = classification_report(LABELS, PREDICTED, ["ankle boot", "bag", "coat", "shirt"])
    assert report["shirt"]["support"] == 0
    assert report["accuracy"] == pytest.approx(5 / 7)
    text = report_text(report)
    assert "ankle boot" in text and "0.71" in text
