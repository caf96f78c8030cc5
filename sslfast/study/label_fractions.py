"""How much is a label worth: the study of Kirthivasan and Agarwal, with the arms that they left for the future."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sslfast.evaluate.finetune import FinetuneConfig, FinetuneResult, finetune, macro_f1
from sslfast.evaluate.finetuned import FinetunedModel, HeadKind
from sslfast.files import write_json
from sslfast.models import Backbone
from sslfast.run import Run
from sslfast.study.config import LabelFractionsConfig, decided
from sslfast.study.grid import Cell, Done, grouped, mean, over_seeds, run_grid
from sslfast.study.images import StudyImages, fraction_of
from sslfast.study.pretraining import pretrained, untrained

SUPERVISED = "supervised"
"""The arm without pre-training: encoder and head learn together, from random weights, on the labelled images alone."""

HEAD: HeadKind = "convolutions"

NUMBERS = (
    "test_accuracy",
    "test_f1",
    "val_accuracy",
    "val_f1",
    "time_to_accuracy",
    "time_to_accuracy_with_pretraining",
    "pretrain_seconds",
    "pretrain_loss",
    "iteration_ms",
)
"""What stands in a row of the table as mean and deviation over seeds."""

MEASURES = {
    "f1": "macro: the plain mean of the classes' F1 scores",
    "pretrain_loss": "of the last step, each method's own; the autoencoder's is the mean over images of each one's "
    "root mean squared error, pixels in [0, 1]",
    "curves": "on images held out of train; neither the encoder nor the head has seen them",
    "time_to_accuracy": "seconds of training the head, validation left out, until the first epoch at the threshold; "
    "with pre-training: the encoder's seconds added",
    "iteration": "milliseconds of a step of the head's training, images included: median over epochs",
    "test": "after the epoch of the highest validation accuracy; scored once",
}


def run_label_fractions(
    config: LabelFractionsConfig, images: StudyImages, folder: Path, *, resume: bool = False, device: str = "auto"
) -> dict[str, Any]:
    """Train every cell of the grid arm x labelled x unlabelled x seed, and the supervised baselines; write table.json.

    Images that are unlabelled to the head may be unlabelled to the encoder, too: the labelled ones are taken from the
    other end of the order, so that they are others as long as the two fractions leave room.

    Args:
        config: what to train.
        images: on what.
        folder: of the study.
        resume: go on with what is there.
        device: auto, cpu or cuda.

    Returns:
        The table (also ``table.json``): ``rows``, ``needed``, ``measures`` and what it was made of.

    Raises:
        UsageError: the folder holds a study of another configuration, a fraction is too small, or the backbone has no
            maps for a head of convolutions.
    """
    train, _ = images.divided(config.val_fraction, config.seed)  # what is wrong is said before anything is trained
    for share in (*config.labelled, *config.unlabelled):
        fraction_of(train, share, config.seed)
    FinetunedModel(untrained(config.backbone, train, images.size, config.seed), 2, HEAD)
    with Run(folder, decided(config, images.fingerprints()), resume=resume) as run:

        def work(cell: Cell, place: Path) -> dict[str, Any]:
            return _train(cell, place, config, images, run.folder, device)

        done = run_grid(run, _cells(config), work)
        table = _table(config, images, done)
        write_json(folder / "table.json", table)
    return table


def _cells(config: LabelFractionsConfig) -> list[Cell]:
    cells = []
    for seed in config.all_seeds():
        if config.supervised:
            cells += [Cell.of(SUPERVISED, seed, labelled=share) for share in config.labelled]
        cells += [
            Cell.of(arm, seed, labelled=labelled, unlabelled=unlabelled)
            for arm in config.arms
            for unlabelled in config.unlabelled
            for labelled in config.labelled
        ]
    return cells


def _train(
    cell: Cell, place: Path, config: LabelFractionsConfig, images: StudyImages, folder: Path, device: str
) -> dict[str, Any]:
    train, val = images.divided(config.val_fraction, cell.seed)
    labelled = fraction_of(train, cell["labelled"], cell.seed, from_the_end=True)
    if cell.arm == SUPERVISED:
        encoder, before, loss = untrained(config.backbone, labelled, images.size, cell.seed), 0.0, None
    else:
        encoder, recorded = _encoder(cell, config, images, folder, device)
        before, loss = float(recorded["seconds"]), recorded["loss"]
    tuning = FinetuneConfig(
        mode="finetune" if cell.arm == SUPERVISED else "transfer",
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        head=HEAD,
        dropout=config.dropout,
        augmentation="noise-and-flips",
        seed=cell.seed,
        dtype=config.dtype,
    )
    with Run(place, {}, resume=True) as run:
        result = finetune(encoder, labelled, val, tuning, run, device=device)
    return {
        **_measured(result, config.threshold, before),
        **_tested(result, images, device),
        "pretrain_loss": loss,
        "images": len(labelled),
    }


def _encoder(
    cell: Cell, config: LabelFractionsConfig, images: StudyImages, folder: Path, device: str
) -> tuple[Backbone, dict[str, Any]]:
    train, _ = images.divided(config.val_fraction, cell.seed)
    unlabelled = fraction_of(train, cell["unlabelled"], cell.seed)
    autoencoder = cell.arm == "autoencoder"  # it has its own backbone
    options: dict[str, Any] = {"rmse": "image"} if autoencoder else {"backbone": config.backbone}
    return pretrained(
        cell.arm,
        unlabelled,
        folder / "pretrained" / Cell.of(cell.arm, cell.seed, unlabelled=cell["unlabelled"]).name,
        image_size=images.size,
        device=device,
        epochs=config.pretrain_epochs,
        batch_size=config.pretrain_batch_size,
        seed=cell.seed,
        dtype=config.dtype,
        **options,
    )


def _measured(result: FinetuneResult, threshold: float, before: float) -> dict[str, Any]:
    """Keep the curves, and when the threshold was reached."""
    spent, reached = 0.0, None
    for line in result.history:
        spent += line["seconds"]
        if reached is None and line["val_accuracy"] >= threshold:
            reached = spent
    return {
        "curve": [
            {key: line[key] for key in ("epoch", "loss", "val_loss", "val_accuracy", "val_f1")}
            for line in result.history
        ],
        "epoch": result.epoch,
        "val_accuracy": result.val_accuracy,
        "val_f1": result.history[result.epoch]["val_f1"],
        "pretrain_seconds": before,
        "time_to_accuracy": reached,
        "time_to_accuracy_with_pretraining": None if reached is None else reached + before,
        "iteration_ms": statistics.median(1000 * line["seconds"] / line["steps"] for line in result.history),
        "seconds": result.seconds,
    }


def _tested(result: FinetuneResult, images: StudyImages, device: str) -> dict[str, Any]:
    labels = torch.from_numpy(images.test.labels)
    predicted = result.predict(images.test, device=device)
    return {
        "test_accuracy": float((predicted == labels).double().mean()),
        "test_f1": macro_f1(labels, predicted, len(images.test.classes or ())),
    }


def _table(config: LabelFractionsConfig, images: StudyImages, done: Sequence[Done]) -> dict[str, Any]:
    rows = []
    for (arm, setting), same in grouped(done).items():
        row: dict[str, Any] = {"arm": arm, "unlabelled": None, **dict(setting)}
        for key in NUMBERS:
            found = over_seeds(same, key)
            row[key], row[f"{key}_deviation"], row[f"{key}_seeds"] = found.value, found.deviation, found.seeds
        row["images"] = max((one.result["images"] for one in same if not one.diverged), default=None)
        row["diverged"] = sum(bool(one.diverged) for one in same)
        row["curve"] = _curve(same)
        rows.append(row)
    return {
        "study": config.NAME,
        "images": images.in_words(),
        "seeds": list(config.all_seeds()),
        "split": "test, scored once after the epoch of the highest accuracy on images held out of train",
        "threshold": config.threshold,
        "measures": MEASURES,
        "rows": rows,
        "needed": needed(rows, config.targets),
    }


def _curve(same: Sequence[Done]) -> list[dict[str, float | None]]:
    """Give mean and deviation of the seeds' macro F1 after every epoch."""
    curves = [one.result["curve"] for one in same if not one.diverged]
    points = []
    for lines in zip(*curves, strict=True):
        f1 = mean(line["val_f1"] for line in lines)
        points.append({"epoch": lines[0]["epoch"] + 1, "val_f1": f1.value, "val_f1_deviation": f1.deviation})
    return points


def needed(rows: Sequence[Mapping[str, Any]], targets: Sequence[float]) -> list[dict[str, Any]]:
    """Say for every arm, unlabelled fraction and accuracy the smallest labelled fraction of the grid that reached it.

    Reached is what the mean over seeds of the test accuracy reached; None: no labelled fraction of the grid did.
    """
    found = []
    for arm, unlabelled in {(row["arm"], row["unlabelled"]): None for row in rows}:
        same = [row for row in rows if (row["arm"], row["unlabelled"]) == (arm, unlabelled)]
        for target in targets:
            enough = [row for row in same if row["test_accuracy"] is not None and row["test_accuracy"] >= target]
            least = min(enough, key=lambda row: row["labelled"], default=None)
            found.append(
                {
                    "arm": arm,
                    "unlabelled": unlabelled,
                    "accuracy": target,
                    "labelled": None if least is None else least["labelled"],
                    "images": None if least is None else least["images"],
                }
            )
    return found
