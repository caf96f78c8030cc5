"""Every protocol of an evaluation on the same features: what chooses is fitted first, then the test is scored, once."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sslfast.data import Dataset
from sslfast.errors import DataError, UsageError
from sslfast.evaluate.classification import classification_report
from sslfast.evaluate.clusters import check_clusters, kmeans
from sslfast.evaluate.config import ClusterConfig, NearestConfig, ProbeConfig
from sslfast.evaluate.grids import example_rows, write_example_grids
from sslfast.evaluate.guards import check_selection
from sslfast.evaluate.nearest import check_nearest, knn
from sslfast.evaluate.probe import SCORED_ROWS, Probe, fit_probe, score_probe
from sslfast.evaluate.samples import pair
from sslfast.features import FeatureStore
from sslfast.files import write_json, write_text, writing
from sslfast.models.head import save_head
from sslfast.progress import console
from sslfast.run import Run

PROTOCOLS = ("sgd", "lbfgs", "knn", "kmeans")
"""In the order in which a table has them."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        protocols: of `PROTOCOLS`.
        seeds: of the linear probes and of k-means.
        nearest: of k-NN.
        probe: of the linear probes; solver and seed are set by the plan.
        cluster: of k-means; the seed is set by the plan.
        examples: images per predicted class in the grids; 0: none.
    """

    protocols: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    nearest: NearestConfig = NearestConfig()
    probe: ProbeConfig = ProbeConfig()
    cluster: ClusterConfig = ClusterConfig()
    examples: int = 25


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Args:
        name: of the protocol.
        accuracies: on the test rows, one per seed, in [0, 1].
        validation: accuracies on held-out training rows, one per seed, or none.
        epoch_rule: which weights were scored.
        detail: what was chosen, of the first seed.
        seconds: of all seeds.
        predicted: of the first seed, classes or clusters (M,).
        clustering: NMI, AMI, ARI and more of each seed, for clusters.
    """

    name: str
    accuracies: tuple[float, ...]
    validation: tuple[float, ...]
    epoch_rule: str
    detail: str
    seconds: float
    predicted: Tensor
    clustering: tuple[dict[str, Any], ...] = ()

    def row(self) -> dict[str, Any]:
        """Give it as JSON-able values: the mean, and the standard deviation (n - 1) where there are several seeds."""
        return {
            "name": self.name,
            "test_accuracy": statistics.fmean(self.accuracies),
            "test_deviation": statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None,
            "test_accuracies": list(self.accuracies),
            "validation_accuracy": statistics.fmean(self.validation) if self.validation else None,
            "seeds": len(self.accuracies),
            "epoch_rule": self.epoch_rule,
            "detail": self.detail,
            "seconds": self.seconds,
            "clustering": list(self.clustering),
        }


def evaluate_features(
    train: FeatureStore,
    test: FeatureStore,
    plan: Plan,
    run: Run,
    *,
    images: Dataset | None = None,
    notes: Sequence[str] = (),
    device: str = "cpu",
    memory: str = "auto",
) -> dict[str, Any]:
    """Measure a backbone by the features of a training and a test split.

    Writes into the run's folder ``result.json`` (everything), ``table.json``, ``metrics.jsonl`` (a line per epoch of a
    linear probe), ``predictions.safetensors``, ``report.txt`` (every class), the probes of the first seed, and where
    images are given ``examples.safetensors`` and ``examples/*.png``. Predictions are those of the table's first row.

    Args:
        train: features to train, and to choose, on.
        test: features that are scored when everything is fitted.
        plan: what to measure.
        run: where to.
        images: the test images, in the order of the test rows.
        notes: what else must stand in ``result.json``.
        device: where SGD and k-NN run.
        memory: see `linear_probe`.

    Raises:
        UsageError: a protocol is unknown or none, or a seed comes twice.
        DataError: the rows do not belong together, or what a protocol says.
    """
    unknown = [name for name in plan.protocols if name not in PROTOCOLS]
    if unknown or not plan.protocols:
        raise UsageError(f"there is no protocol {', '.join(unknown) or 'to run'}; there are: {', '.join(PROTOCOLS)}")
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        raise UsageError("seeds must be given, each once")
    rows, tested, classes = pair(train, test)
    check_selection(train, test)
    # What would end the run is found before anything is trained.
    if "knn" in plan.protocols:
        check_nearest(plan.nearest, len(rows))
    if "kmeans" in plan.protocols:
        check_clusters(plan.cluster, plan.cluster.clusters or classes, len(rows))
    for _ in tested.parts(SCORED_ROWS):
        pass  # they are whole and finite
    run.keep_metrics(lambda line: "protocol" not in line)  # of a try that was broken off
    names = rows.names or tuple(map(str, range(classes)))
    if images is not None and len(images) != len(tested):
        raise DataError(f"there are {len(images)} test images and {len(tested)} test rows; extract the features anew")
    probes: dict[str, list[Probe]] = {}
    for solver in ("sgd", "lbfgs"):
        if solver in plan.protocols:
            probes[solver] = [_fitted(train, test, plan, solver, seed, device, memory, run) for seed in plan.seeds]
            head = probes[solver][0].head
            save_head(head, run.folder / f"head-{solver}.safetensors", names, train.manifest["backbone"]["fingerprint"])
    console.print(f"scoring {len(tested):,} test rows", markup=False)
    results = [
        result
        for protocol in PROTOCOLS
        if protocol in plan.protocols
        for result in (
            [_probed(probes[protocol], score_with=lambda probe: score_probe(probe, tested))]
            if protocol in probes
            else _nearest(train, test, plan, device)
            if protocol == "knn"
            else [_clustered(train, test, plan)]
        )
    ]
    return _write(results, train, test, plan, run, names, images, notes)


def _fitted(
    train: FeatureStore, test: FeatureStore, plan: Plan, solver: str, seed: int, device: str, memory: str, run: Run
) -> Probe:
    config = replace(plan.probe, solver=solver, seed=seed)  # type: ignore[arg-type]
    probe = fit_probe(train, config, test=test, device=device, memory=memory)
    for line in probe.curve:
        run.metric(protocol=solver, seed=seed, **line)
    run.log(f"{probe.name}, seed {seed}: {probe.detail}; validation {probe.validation_accuracy:.4f}")
    return probe


def _probed(probes: list[Probe], score_with: Callable[[Probe], Any]) -> Result:
    scores = [score_with(probe) for probe in probes]
    first = probes[0]
    return Result(
        first.name,
        tuple(score.accuracy for score in scores),
        tuple(probe.validation_accuracy for probe in probes),
        first.epoch_rule,
        first.detail,
        sum(probe.seconds for probe in probes),
        scores[0].predicted,
    )


def _nearest(train: FeatureStore, test: FeatureStore, plan: Plan, device: str) -> list[Result]:
    start = time.monotonic()
    scores = knn(train, test, plan.nearest, device=device)
    seconds = time.monotonic() - start
    rule = "nothing is trained"
    return [
        Result(score.name, (score.accuracy,), (), rule, "cosine, all training rows", seconds, score.predicted)
        for score in scores
    ]


def _clustered(train: FeatureStore, test: FeatureStore, plan: Plan) -> Result:
    found = [kmeans(train, test, replace(plan.cluster, seed=seed)) for seed in plan.seeds]
    scores = [one.scores for one in found]
    kept = [{key: value for key, value in asdict(score).items() if key != "assignment"} for score in scores]
    first = scores[0]
    words = f"NMI {100 * first.nmi:.1f}, AMI {100 * first.ami:.1f}, ARI {100 * first.ari:.1f}"
    if first.clusters > first.classes:
        words += f", one cluster a class {100 * first.one_to_one_acc:.1f}"
    return Result(
        f"k-means, {found[0].centres.shape[0]} clusters",
        tuple(score.acc for score in scores),
        (),
        "matched with the test labels",
        words,
        sum(one.seconds for one in found),
        torch.from_numpy(first.assigned(found[0].predicted.numpy())),
        tuple(kept),
    )


def _write(
    results: list[Result], train: FeatureStore, test: FeatureStore, plan: Plan, run: Run, names: tuple[str, ...],
    images: Dataset | None, notes: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    folder, dataset = run.folder, test.manifest["dataset"]
    assert test.labels is not None
    split = f"{dataset['split']} split of {dataset['name']}, {test.rows:,} images"
    table: dict[str, Any] = {
        "rows": [result.row() for result in results],
        "seeds": list(plan.seeds),
        "split": split,
        "epoch": "the rule of each row",
        "chosen_on": f"{plan.probe.val_fraction:.0%} of the {train.manifest['dataset']['split']} split, held out",
        "backbone": train.manifest["backbone"],
        "preprocess": train.manifest["preprocess"],
        "train_rows": train.rows,
        "test_rows": test.rows,
        "features": train.features,
        "views": list(train.views),
        "notes": list(notes),
        "versions": train.manifest["versions"],
        "predictions": results[0].name,
    }
    write_json(folder / "table.json", table)
    labels, predicted = test.labels, results[0].predicted
    known = predicted >= 0
    report = classification_report(labels[known], predicted[known], names) if bool(known.any()) else None
    result = {**table, "classification_report": None if report is None else report.as_dict()}
    write_json(folder / "result.json", result)
    if report is not None:
        write_text(folder / "report.txt", f"{results[0].name}, seed {plan.seeds[0]}, {split}\n\n{report.text()}\n")
        metadata = {"classes": json.dumps(names)}
        _save({"labels": labels[known], "predicted": predicted[known]}, folder / "predictions.safetensors", metadata)
    if images is not None and plan.examples:
        _examples(images, labels, predicted, names, plan, folder)
    return result


def _examples(
    images: Dataset, labels: Tensor, predicted: Tensor, names: tuple[str, ...], plan: Plan, folder: Path
) -> None:
    write_example_grids(
        images, predicted.numpy(), folder / "examples", names=names, labels=labels.numpy(), per_class=plan.examples,
        seed=plan.seeds[0],
    )  # fmt: skip
    if images.image_size is None:
        return
    rows = np.concatenate(
        [part for value, part in example_rows(predicted.numpy(), plan.examples).items() if value >= 0]
    )
    pick = torch.from_numpy(rows)
    _save(
        {
            "images": torch.from_numpy(images.images(rows)),
            "labels": labels[pick],
            "predicted": predicted[pick],
            "probability": torch.full((len(pick),), torch.nan),
        },
        folder / "examples.safetensors",
        {"classes": json.dumps(names)},
    )


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    with writing(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
