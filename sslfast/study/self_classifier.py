"""Classes without labels: Table 1 of Camilloni, Narayanaswamy and Singhal, its curves, examples and linear probe."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslfast.data import Dataset
from sslfast.device import resolve_device
from sslfast.evaluate import clustering_scores
from sslfast.evaluate.grids import write_example_grids
from sslfast.files import write_json
from sslfast.models import Preprocess, check_architecture
from sslfast.pretrain import load_method
from sslfast.run import Run
from sslfast.study.config import SelfClassifierStudyConfig, decided, parse_row
from sslfast.study.grid import Cell, Done, grouped, over_seeds, run_grid
from sslfast.study.images import StudyImages, part
from sslfast.study.pretraining import pretrained
from sslfast.study.probing import probed

SCORES = ("nmi", "ami", "ari", "acc")

PAPER = (
    {"backbone": "ResNet-18", "linears": 1, "epochs": 100, "nmi": 61.1, "ami": 61.0, "ari": 50.5, "acc": 68.7},
    {"backbone": "ResNet-18", "linears": 2, "epochs": 100, "nmi": 60.3, "ami": 60.2, "ari": 49.9, "acc": 67.9},
    {"backbone": "AlexNet", "linears": 2, "epochs": 100, "nmi": 41.9, "ami": 41.8, "ari": 28.4, "acc": 46.5},
    {"backbone": "AlexNet", "linears": 2, "epochs": 200, "nmi": 48.8, "ami": 48.7, "ari": 34.7, "acc": 52.0},
)
"""Its Table 1: CIFAR-10's test images, one run each, in per cent. What it calls N hidden layers are N linear ones."""

PAPER_PROBE = 87.89
"""Its linear probe on the first row's features, in per cent; whether of the best epoch or the last it does not say."""

CURVE_IMAGES = 5000
"""Training images that the curve is scored on, at most."""


def run_self_classifier(
    config: SelfClassifierStudyConfig, images: StudyImages, folder: Path, *, resume: bool = False, device: str = "auto"
) -> dict[str, Any]:
    """Train Self-Classifier with every backbone and head; score its classes on the test images; probe the first.

    The classes are those of the classification head alone; labels are looked at by the scores only. Writes table.json
    and, per training, ``examples/<training>/<class>.png``: test images that were taken for that class, framed green
    where they are of the class that it was matched with.

    Args:
        config: what to train.
        images: on what; all training images are used, nothing is chosen.
        folder: of the study.
        resume: go on with what is there.
        device: auto, cpu or cuda.

    Raises:
        UsageError: the folder holds a study of another configuration, or a backbone does not exist.
    """
    for text in config.backbones:
        check_architecture(parse_row(text)[0])
    with Run(folder, decided(config, images.fingerprints()), resume=resume) as run:

        def work(cell: Cell, place: Path) -> dict[str, Any]:
            return _train(cell, place, config, images, run.folder, device)

        done = run_grid(run, _cells(config), work)
        table = _table(config, images, done)
        write_json(folder / "table.json", table)
    return table


def _cells(config: SelfClassifierStudyConfig) -> list[Cell]:
    rows = [parse_row(text) for text in config.backbones]
    return [
        Cell.of(name, seed, linears=linears, epochs=epochs)
        for seed in config.all_seeds()
        for name, linears, epochs in rows
    ]


def _train(
    cell: Cell, place: Path, config: SelfClassifierStudyConfig, images: StudyImages, folder: Path, device: str
) -> dict[str, Any]:
    assert images.train.classes is not None and images.test.labels is not None
    trained = folder / "pretrained" / cell.name
    seen = part(images.train, CURVE_IMAGES)
    assert seen.labels is not None
    labels = seen.labels

    def after_epoch(epoch: int, method: Any) -> dict[str, float]:
        if epoch % config.score_every and epoch != cell["epochs"]:
            return {}
        scores = clustering_scores(labels, predicted_classes(method, method.preprocess, seen).numpy())
        return {name: getattr(scores, name) for name in SCORES}

    _, recorded = pretrained(
        "self-classifier",
        images.train,
        trained,
        image_size=images.size,
        device=device,
        after_epoch=after_epoch,
        backbone=cell.arm,
        mlp_layers=cell["linears"],
        epochs=cell["epochs"],
        classes=(config.classes or len(images.train.classes),),
        hidden=config.hidden,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        optimizer=config.optimizer,
        weight_decay=config.weight_decay,
        warmup=0.1,
        seed=cell.seed,
        dtype=config.dtype,
    )
    method, backbone = load_method(trained)
    where = resolve_device(device)
    predicted = predicted_classes(method.to(where), backbone.preprocess, images.test).numpy()
    scores = clustering_scores(images.test.labels, predicted)
    # Every predicted class goes by the name of the one that it was matched with.
    write_example_grids(
        images.test, scores.assigned(predicted), folder / "examples" / cell.name, per_class=config.examples,
        seed=cell.seed,
    )  # fmt: skip
    result: dict[str, Any] = {name: getattr(scores, name) for name in SCORES}
    result |= {"classes": int(scores.classes), "clusters": int(scores.clusters), "seconds": recorded["seconds"]}
    result["loss"], result["curve"] = _curves(trained)
    if (cell.arm, cell["linears"], cell["epochs"]) == parse_row(config.backbones[0]):
        result["probe"] = probed(backbone, images, place / "features", config, cell.seed, device)
    return result


@torch.no_grad()
def predicted_classes(method: Any, preprocess: Preprocess, dataset: Dataset) -> Tensor:
    """Give the class that the first classifier gives to every image (N,), int64; in evaluation mode."""
    training = method.training
    method.eval()
    where = next(method.parameters()).device
    parts = []
    for rows in np.array_split(np.arange(len(dataset)), -(-len(dataset) // 500)):
        x = preprocess(torch.from_numpy(dataset.images(rows)).to(where))
        parts.append(method.logits(x).argmax(1).cpu())
    method.train(training)
    return torch.cat(parts)


def _curves(folder: Path) -> tuple[list[list[float]], list[dict[str, float]]]:
    """Read the mean loss of every epoch and the scores after it."""
    losses: dict[int, list[float]] = {}
    scores = []
    for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "loss" in line:
            losses.setdefault(int(np.ceil(line["epoch"] - 1e-6)), []).append(line["loss"])
        if "acc" in line:
            scores.append({"epoch": line["epoch"], **{name: line[name] for name in SCORES}})
    return [[epoch, float(np.mean(values))] for epoch, values in sorted(losses.items())], scores


def _table(config: SelfClassifierStudyConfig, images: StudyImages, done: Sequence[Done]) -> dict[str, Any]:
    rows, probe = [], None
    for (arm, setting), same in grouped(done).items():
        row: dict[str, Any] = {"backbone": arm, **dict(setting), "examples": f"examples/{same[0].cell.name}"}
        for key in (*SCORES, "seconds"):
            found = over_seeds(same, key)
            row[key], row[f"{key}_deviation"], row[f"{key}_seeds"] = found.value, found.deviation, found.seeds
        first = next((one.result for one in same if not one.diverged), {})
        row["loss"], row["curve"] = first.get("loss", []), first.get("curve", [])
        row["diverged"] = sum(bool(one.diverged) for one in same)
        rows.append(row)
        probes = [one.result["probe"] for one in same if "probe" in one.result]
        if probes:
            last = over_seeds(same, lambda result: result["probe"]["test_accuracy"] if "probe" in result else None)
            probe = {
                "backbone": arm,
                **dict(setting),
                "test_accuracy": last.value,
                "test_accuracy_deviation": last.deviation,
                "curve": probes[0]["curve"],
                "detail": probes[0]["detail"],
            }
    return {
        "study": config.NAME,
        "images": images.in_words(),
        "classes": list(images.train.classes or ()),
        "seeds": list(config.all_seeds()),
        "split": "classes of the test images, after the last epoch; trained on all training images, without labels; "
        "curves: on training images; nothing is chosen",
        "rows": rows,
        "paper": list(PAPER),
        "probe": probe,
        "paper_probe": PAPER_PROBE,
    }
