"""Which backbone transfers: the comparison of Jimenez and Hale, fine-tuned and frozen, over their sweeps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sslfast.evaluate import classification_report
from sslfast.evaluate.faults import NO_FAULTS, Faults
from sslfast.evaluate.finetune import FinetuneConfig, FinetuneResult, finetune
from sslfast.evaluate.finetuned import FinetunedModel, predict_logits
from sslfast.files import write_json
from sslfast.models import Backbone
from sslfast.run import Run
from sslfast.study.backbones import Named, found_checkpoint, parse, prepared
from sslfast.study.config import TransferConfig, decided
from sslfast.study.grid import Cell, Done, grouped, over_seeds, run_grid
from sslfast.study.images import StudyImages

TESTED = "last"
"""Key of a mark: the test accuracy with the weights as they are after that epoch, as the paper reports its models."""


def run_transfer(
    config: TransferConfig, images: StudyImages, folder: Path, *, resume: bool = False, device: str = "auto"
) -> dict[str, Any]:
    """Train every backbone in every setting of the paper's Figures 3 to 6 and its table; write table.json.

    A training is done once however many figures it stands in: the schedule does not know how long a training is, so
    that the first 10 epochs of 50 are those of a training of 10.

    Args:
        config: what to train.
        images: on what.
        folder: of the study.
        resume: go on with what is there.
        device: auto, cpu or cuda.

    Raises:
        UsageError: the folder holds a study of another configuration, a name or a file that does not exist.
    """
    backbones = [parse(text) for text in config.backbones]
    for named in backbones:
        if named.checkpoint:
            found_checkpoint(named.checkpoint)
    with Run(folder, {**decided(config), "images": images.fingerprints()}, resume=resume) as run:

        def work(cell: Cell, place: Path) -> dict[str, Any]:
            named = next(one for one in backbones if one.label == cell.arm)
            backbone = backbone_of(named, cell.seed, config, images, run.folder, device)
            return train_cell(backbone, cell, place, config, images, device)

        done = run_grid(run, _cells(config, backbones), work)
        table = _table(config, images, backbones, done)
        write_json(folder / "table.json", table)
    return table


def backbone_of(
    named: Named, seed: int, config: TransferConfig, images: StudyImages, folder: Path, device: str
) -> Backbone:
    """Prepare a backbone; one that is pre-trained here sees the training images only, without their labels."""
    train, _ = images.divided(config.val_fraction, seed)
    options: dict[str, Any] = {}
    if named.method:
        options = {
            "epochs": config.pretrain_epochs,
            "batch_size": config.pretrain_batch_size,
            "dtype": config.dtype,
        }
    place = folder / "pretrained" / Cell.of(named.label, seed).name
    return prepared(named, train, place, image_size=images.size, seed=seed, device=device, **options)


def train_cell(
    backbone: Backbone,
    cell: Cell,
    place: Path,
    config: TransferConfig,
    images: StudyImages,
    device: str,
    faults: Faults = NO_FAULTS,
) -> dict[str, Any]:
    """Train one setting; score the test images at the epochs that are asked for and after the best epoch."""
    train, val = images.divided(config.val_fraction, cell.seed)
    test = images.test
    if faults.swapped_splits:
        val, test = test, val
    tuning = FinetuneConfig(
        mode=cell["mode"],
        epochs=cell["epochs"],
        batch_size=cell["batch_size"],
        learning_rate=cell["learning_rate"],
        seed=cell.seed,
        dtype=config.dtype,
    )
    marks = {epoch for epoch in config.epochs if epoch < cell["epochs"]} if faults == NO_FAULTS else set()

    def after_epoch(epoch: int, model: FinetunedModel) -> dict[str, Any]:
        if epoch + 1 not in marks:
            return {}
        predicted = predict_logits(model, test, tuning.batch_size, faults).argmax(1)
        return {TESTED: accuracy_of(predicted, test.labels)}

    with Run(place, {}, resume=True) as run:
        result = finetune(
            backbone, train, val, tuning, run, faults=faults, device=device, after_epoch=after_epoch if marks else None
        )
    return kept(result, test, device)


def kept(result: FinetuneResult, test: Any, device: str) -> dict[str, Any]:
    """Give what a cell keeps of a training: curves, accuracies, the classification report."""
    best, last = (result.predict(test, which, device) for which in ("best", "last"))
    marks = {str(line["epoch"] + 1): line[TESTED] for line in result.history if TESTED in line}
    marks[str(len(result.history))] = accuracy_of(last, test.labels)
    return {
        "curve": [
            {key: line[key] for key in ("epoch", "loss", "val_loss", "val_accuracy", "learning_rate")}
            for line in result.history
        ],
        "epoch": result.epoch,
        "val_accuracy": result.val_accuracy,
        "test_accuracy": accuracy_of(best, test.labels),
        "marks": marks,
        "report": report_of(best, test),
        "seconds": result.seconds,
    }


def accuracy_of(predicted: torch.Tensor, labels: Any) -> float:
    """Give the share of images whose predicted class is their label."""
    return float((predicted == torch.from_numpy(labels)).double().mean())


def report_of(predicted: torch.Tensor, dataset: Any) -> dict[str, Any]:
    """Give precision, recall, F1 and accuracy of every class, and of all."""
    return classification_report(dataset.labels, predicted.numpy(), dataset.classes).as_dict()


def _cells(config: TransferConfig, backbones: Sequence[Named]) -> list[Cell]:
    """List every training once, in the order of the figures."""
    rate, batch, epochs = config.learning_rates[-1], config.batch_sizes[-1], max(config.epochs)
    settings: dict[Cell, None] = {}
    for seed in config.all_seeds():
        for named in backbones:
            for mode in config.modes:
                settings[_cell(named, seed, mode, rate, batch, epochs)] = None
            for other in config.learning_rates:
                settings[_cell(named, seed, config.modes[0], other, batch, epochs)] = None
            for other in config.batch_sizes:
                settings[_cell(named, seed, config.modes[0], rate, other, epochs)] = None
        one = backbones[config.sweep_backbone]
        for other in config.large_batch_sizes:
            settings[_cell(one, seed, config.modes[0], rate, other, epochs)] = None
        for other in config.sweep:
            settings[_cell(one, seed, config.modes[0], other, config.sweep_batch_size, config.sweep_epochs)] = None
    return list(settings)


def _cell(named: Named, seed: int, mode: str, rate: float, batch: int, epochs: int) -> Cell:
    return Cell.of(named.label, seed, mode=mode, learning_rate=rate, batch_size=batch, epochs=epochs)


def _table(
    config: TransferConfig, images: StudyImages, backbones: Sequence[Named], done: Sequence[Done]
) -> dict[str, Any]:
    groups = grouped(done)
    rows = []
    for (arm, setting), same in groups.items():
        row: dict[str, Any] = {"backbone": arm, **dict(setting)}
        for key in ("test_accuracy", "val_accuracy", "seconds"):
            found = over_seeds(same, key)
            row[key], row[f"{key}_deviation"], row[f"{key}_seeds"] = found.value, found.deviation, found.seeds
        row["epoch"] = [None if one.diverged else one.result["epoch"] + 1 for one in same]
        row["marks"] = _marks(same)
        row["diverged"] = sum(bool(one.diverged) for one in same)
        rows.append(row)
    return {
        "study": config.NAME,
        "images": images.in_words(),
        "seeds": list(config.all_seeds()),
        "split": "test; learning rate and epoch chosen on images held out of train. test_accuracy: after the epoch of "
        "the highest validation accuracy; marks: as it was after that epoch, whatever validation said",
        "reference": {
            "learning_rate": config.learning_rates[-1],
            "batch_size": config.batch_sizes[-1],
            "epochs": max(config.epochs),
            "mode": config.modes[0],
        },
        "sweep": {"backbone": backbones[config.sweep_backbone].label, "epochs": config.sweep_epochs,
                  "batch_size": config.sweep_batch_size, "learning_rates": list(config.sweep)},
        "rows": rows,
        "reports": {
            same[0].cell.name: same[0].result["report"] for same in groups.values() if not same[0].diverged
        },
    }  # fmt: skip


def _marks(same: Sequence[Done]) -> dict[str, dict[str, Any]]:
    names: Mapping[str, None] = {name: None for one in same if not one.diverged for name in one.result["marks"]}
    found = {name: over_seeds(same, lambda result, name=name: result["marks"].get(name)) for name in names}  # type: ignore[misc]
    return {name: {"value": one.value, "deviation": one.deviation} for name, one in found.items()}
