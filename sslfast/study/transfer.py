"""Which backbone transfers: the comparison of Jimenez and Hale, fine-tuned and frozen, over their sweeps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslfast.data import Dataset
from sslfast.data.dataset import Rows
from sslfast.device import resolve_dtype
from sslfast.evaluate import accuracy, classification_report, report_of
from sslfast.evaluate.faults import NO_FAULTS, Faults
from sslfast.evaluate.finetune import FinetuneConfig, FinetuneResult, finetune
from sslfast.evaluate.finetuned import FinetunedModel, predict_logits
from sslfast.files import write_json, write_text
from sslfast.models import Backbone
from sslfast.run import Run
from sslfast.study.backbones import Named, opened, prepared
from sslfast.study.config import TransferConfig, decided
from sslfast.study.grid import Cell, Done, grouped, over_seeds, run_grid
from sslfast.study.images import StudyImages

TESTED = "test_accuracy"
"""In an epoch's line: with the weights as they are after that epoch, as the paper reports its models."""


def run_transfer(
    config: TransferConfig, images: StudyImages, folder: Path, *, data_dir: Path | None = None, resume: bool = False,
    device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Train every backbone in every setting of the paper's Figures 3 to 6 and its table.

    Writes table.json and, per training, ``reports/<training>.txt``: the classification reports of the validation and
    the test images.

    A training is done once however many figures it stands in: the schedule does not know how long a training is, so
    that the first 10 epochs of 50 are those of a training of 10.

    Args:
        config: what to train.
        images: on what.
        folder: of the study.
        data_dir: where published weights lie, before the usual places.
        resume: go on with what is there.
        device: auto, cpu or cuda.

    Raises:
        UsageError: the folder holds a study of another configuration, a name or a file that does not exist.
        SslfastError: a checkpoint does not hold what is asked for.
    """
    backbones, weights = opened(config.backbones, data_dir)
    with Run(folder, {**decided(config, images.fingerprints()), "weights": weights}, resume=resume) as run:

        def work(cell: Cell, place: Path) -> dict[str, Any]:
            named = next(one for one in backbones if one.label == cell.arm)
            backbone = backbone_of(named, cell.seed, config, images, run.folder, device)
            return train_cell(
                backbone, cell, place, config, images, device, marks=config.epochs if _shown(cell, config) else ()
            )

        done = run_grid(run, _cells(config, backbones), work)
        table = _table(config, images, backbones, done)
        _write_reports(done, folder)
        write_json(folder / "table.json", table)
    return table


def backbone_of(
    named: Named, seed: int, config: TransferConfig, images: StudyImages, folder: Path, device: str
) -> Backbone:
    """Prepare a backbone; one that is pre-trained here sees none of the images that are held out."""
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
    *,
    faults: Faults = NO_FAULTS,
    marks: Sequence[int] = (),
) -> dict[str, Any]:
    """Train one setting; score the test images after the epochs ``marks``, the best epoch and the last."""
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

    def after_epoch(epoch: int, model: FinetunedModel) -> dict[str, Any]:
        if epoch + 1 not in marks or epoch + 1 == tuning.epochs:
            return {}
        compute = resolve_dtype(tuning.dtype, model.device())
        predicted = predict_logits(model, test, tuning.batch_size, faults, compute).argmax(1)
        return {TESTED: accuracy(_labels(test), predicted.numpy())}

    with Run(place, {}, resume=True) as run:
        result = finetune(backbone, train, val, tuning, run, faults=faults, device=device, after_epoch=after_epoch)
    return _kept(result, val, test, device)


def _kept(result: FinetuneResult, val: Dataset, test: Dataset, device: str) -> dict[str, Any]:
    """Give what a cell keeps of a training: curves, accuracies, the classification reports of both sets."""
    best = result.predict(test, device=device).numpy()
    ended = result.epoch + 1 == len(result.history)  # the best weights are the last ones, too
    last = best if ended else result.predict(test, "last", device).numpy()
    marks = {str(line["epoch"] + 1): line[TESTED] for line in result.history if TESTED in line}
    predicted = {"validation": (val, result.predict(val, device=device).numpy()), "test": (test, best)}
    return {
        "curve": [
            {key: line[key] for key in ("epoch", "loss", "val_loss", "val_accuracy", "learning_rate")}
            for line in result.history
        ],
        "epoch": result.epoch,
        "val_accuracy": result.val_accuracy,
        "test_accuracy": accuracy(_labels(test), best),
        "test_images": len(test),
        "marks": {**marks, str(len(result.history)): accuracy(_labels(test), last)},
        "reports": {
            name: classification_report(_labels(dataset), found, dataset.classes or ()).as_dict()
            for name, (dataset, found) in predicted.items()
        },
        "seconds": result.seconds,
    }


def _labels(dataset: Dataset) -> Rows:
    assert dataset.labels is not None
    return dataset.labels


def _write_reports(done: Sequence[Done], folder: Path) -> None:
    """Lay out the classification reports of every training in ``reports/<training>.txt``."""
    for one in done:
        texts = [
            f"{name} images, after the best epoch\n{report_of(report['confusion'], list(report['classes'])).text()}\n"
            for name, report in one.result.get("reports", {}).items()
        ]
        if texts:
            write_text(folder / "reports" / f"{one.cell.name}.txt", "\n".join(texts))


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


def _shown(cell: Cell, config: TransferConfig) -> bool:
    """Say whether Figure 6 shows the accuracy of this training after its earlier epochs."""
    at = (config.modes[0], config.learning_rates[-1], config.batch_sizes[-1])
    return (cell["mode"], cell["learning_rate"], cell["batch_size"]) == at


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
    }  # fmt: skip


def _marks(same: Sequence[Done]) -> dict[str, dict[str, Any]]:
    names: Mapping[str, None] = {name: None for one in same if not one.diverged for name in one.result["marks"]}
    found = {name: over_seeds(same, lambda result, name=name: result["marks"].get(name)) for name in names}  # type: ignore[misc]
    return {name: {"value": one.value, "deviation": one.deviation} for name, one in found.items()}
