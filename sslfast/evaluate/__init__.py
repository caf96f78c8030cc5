"""Honest numbers for a backbone: protocols on frozen features, metrics, and guards against what spoils them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslfast.evaluate.baselines import (
        Baseline,
        k_nearest,
        linear_head,
        logistic_regression,
        predict_probabilities,
    )
    from sslfast.evaluate.classification import (
        ClassificationReport,
        accuracy,
        classification_report,
        confusion_matrix,
        report_of,
    )
    from sslfast.evaluate.clustering import ClusteringScores, clustering_scores
    from sslfast.evaluate.clusters import Clustered, kmeans
    from sslfast.evaluate.config import ClusterConfig, DenseConfig, NearestConfig, ProbeConfig
    from sslfast.evaluate.dense import DenseScores, dense_probe
    from sslfast.evaluate.guards import (
        SharedImages,
        check_evaluation_mode,
        check_no_random_layer,
        check_normalisation,
        check_selection,
        check_shared_images,
        shared_images,
    )
    from sslfast.evaluate.nearest import NearestScore, knn
    from sslfast.evaluate.probe import Probe, ProbeScore, fit_probe, linear_probe, score_probe

_PARTS = {
    "baselines": "Baseline k_nearest linear_head logistic_regression predict_probabilities",
    "classification": "ClassificationReport accuracy classification_report confusion_matrix report_of",
    "clusters": "Clustered kmeans",
    "clustering": "ClusteringScores clustering_scores",
    "config": "ClusterConfig DenseConfig NearestConfig ProbeConfig",
    "dense": "DenseScores dense_probe",
    "guards": (
        "SharedImages check_evaluation_mode check_no_random_layer check_normalisation check_selection "
        "check_shared_images shared_images"
    ),
    "nearest": "NearestScore knn",
    "probe": "Probe ProbeScore fit_probe linear_probe score_probe",
}
_HOME = {name: part for part, names in _PARTS.items() for name in names.split()}
"""Where a name is; torch, numba and scikit-learn are imported when one is first asked for."""

__all__ = [
    "Baseline",
    "ClassificationReport",
    "ClusterConfig",
    "Clustered",
    "ClusteringScores",
    "DenseConfig",
    "DenseScores",
    "NearestConfig",
    "NearestScore",
    "Probe",
    "ProbeConfig",
    "ProbeScore",
    "SharedImages",
    "accuracy",
    "check_evaluation_mode",
    "check_no_random_layer",
    "check_normalisation",
    "check_selection",
    "check_shared_images",
    "classification_report",
    "clustering_scores",
    "confusion_matrix",
    "dense_probe",
    "fit_probe",
    "k_nearest",
    "kmeans",
    "knn",
    "linear_head",
    "linear_probe",
    "logistic_regression",
    "predict_probabilities",
    "report_of",
    "score_probe",
    "shared_images",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
