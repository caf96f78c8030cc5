"""Metrics and the baselines that a tuned head is compared with."""

from sslfast.evaluate.baselines import Baseline, k_nearest, linear_head, logistic_regression, predict_probabilities
from sslfast.evaluate.metrics import accuracy, classification_report, confusion_matrix, report_text

__all__ = [
    "Baseline",
    "accuracy",
    "classification_report",
    "confusion_matrix",
    "k_nearest",
    "linear_head",
    "logistic_regression",
    "predict_probabilities",
    "report_text",
]
