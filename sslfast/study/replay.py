"""The faults of a published comparison, each alone against the honest training, and all together.

Jimenez and Hale (2023) report 53 % on Oxford-IIIT Pet for a SimCLR ResNet-50 whose linear probe is worth 84 %, and
wonder about the checkpoint. Their published code explains it six times over; this replays it on the images at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslfast.data import Dataset, load
from sslfast.evaluate.faults import Faults
from sslfast.files import write_json
from sslfast.models import Backbone
from sslfast.run import Run
from sslfast.study.backbones import Named, opened
from sslfast.study.config import TransferConfig, decided
from sslfast.study.grid import Cell, Done, grouped, over_seeds, run_grid
from sslfast.study.images import StudyImages, part
from sslfast.study.pretraining import pretrained
from sslfast.study.transfer import backbone_of, train_cell

RANDOM_LAYER = 1000
"""Outputs of the layer that torchvision's ``resnet50(num_classes=1000)`` ends with."""

HONEST, ALL = "honest", "all six"


@dataclass(frozen=True)
class Fault:
    """One row of the replay.

    Args:
        name: short.
        what: was done.
        wrong_checkpoint: start from other weights.
        faults: of the training.
        modes: in which it makes a difference.
    """

    name: str
    what: str
    wrong_checkpoint: bool = False
    faults: Faults = Faults()
    modes: tuple[str, ...] = ("finetune", "transfer")


def rows_of(config: TransferConfig) -> list[Fault]:
    """List the honest training, the six faults in the order of their paper's code, and all together."""
    every = Faults(RANDOM_LAYER, config.wrong_size, True, True, True)
    return [
        Fault(HONEST, "right weights and input, evaluation mode, selection on held-out images of train, test once"),
        Fault("wrong checkpoint", "weights of a short pre-training on other images", True),
        Fault(
            "random layer", f"a random layer of {RANDOM_LAYER} outputs and a ReLU stay between backbone and head",
            faults=Faults(random_layer=RANDOM_LAYER),
        ),
        Fault(
            "wrong input", f"{config.wrong_size} pixels, cropped, and ImageNet's mean and deviation, whatever the "
            "weights were trained with", faults=Faults(wrong_input=config.wrong_size),
        ),
        Fault(
            "swapped splits", "learning rate and epoch are chosen on the test images; what is reported as test are "
            "images held out of train", faults=Faults(swapped_splits=True),
        ),
        Fault(
            "training mode at test", "batch normalisation by the judged batch, its running statistics moved by it, "
            "dropout on", faults=Faults(training_mode_at_test=True),
        ),
        Fault(
            "frozen statistics move", "the frozen backbone's batch statistics follow the training images",
            faults=Faults(frozen_batch_norm_learns=True), modes=("transfer",),
        ),
        Fault(ALL, "as published", True, every),
    ]  # fmt: skip


def run_replay(
    config: TransferConfig, images: StudyImages, folder: Path, *, data_dir: Path | None = None, resume: bool = False,
    device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Train the first backbone honestly, with each fault, and with all of them; write table.json.

    Args:
        config: of the study; learning rate, batch size and epochs are its reference.
        images: on what.
        folder: of the study.
        data_dir: where data sets and published weights lie, before the usual places.
        resume: go on with what is there.
        device: auto, cpu or cuda.

    Raises:
        UsageError: the folder holds a study of another configuration, a name or a file that does not exist.
        DataError: the images of the wrong checkpoint's stand-in are not there.
    """
    texts = [text for text in (config.backbones[0], config.wrong_checkpoint) if text]
    (named, *others), weights = opened(texts, data_dir)
    wrong = others[0] if others else None
    other = None if wrong else _other_images(config, images, data_dir)
    pixels = [*images.fingerprints(), *([] if other is None else [other.fingerprint()])]
    faults = rows_of(config)
    with Run(folder, {**decided(config, pixels), "weights": weights}, resume=resume) as run:

        def work(cell: Cell, place: Path) -> dict[str, Any]:
            fault = next(one for one in faults if one.name == cell.arm)
            if fault.wrong_checkpoint:
                backbone = _wrong(named, wrong, other, cell.seed, config, images, run.folder, device)
            else:
                backbone = backbone_of(named, cell.seed, config, images, run.folder, device)
            return train_cell(backbone, cell, place, config, images, device, faults=fault.faults)

        done = run_grid(run, _cells(config, faults), work)
        table = _table(config, images, named, wrong, faults, done)
        write_json(folder / "table.json", table)
    return table


def _cells(config: TransferConfig, faults: Sequence[Fault]) -> list[Cell]:
    setting = {
        "learning_rate": config.learning_rates[-1],
        "batch_size": config.batch_sizes[-1],
        "epochs": max(config.epochs),
    }
    return [
        Cell.of(fault.name, seed, mode=mode, **setting)
        for seed in config.all_seeds()
        for fault in faults
        for mode in config.modes
        if mode in fault.modes
    ]


def _other_images(config: TransferConfig, images: StudyImages, data_dir: Path | None) -> Dataset:
    """Load the images of the wrong checkpoint's stand-in, at the size of the study's."""
    dataset = part(load(config.wrong_data, "train", root=data_dir), config.images)
    return dataset.decoded(images.size if dataset.image_size != (images.size, images.size) else None)


def _wrong(
    named: Named,
    wrong: Named | None,
    other: Dataset | None,
    seed: int,
    config: TransferConfig,
    images: StudyImages,
    folder: Path,
    device: str,
) -> Backbone:
    if wrong is not None:
        return backbone_of(wrong, seed, config, images, folder, device)
    assert other is not None
    return pretrained(
        "simclr",
        other,
        folder / "pretrained" / Cell.of("wrong", seed).name,
        image_size=images.size,
        device=device,
        backbone=named.architecture,
        epochs=config.wrong_epochs,
        batch_size=config.pretrain_batch_size,
        seed=seed,
        dtype=config.dtype,
    )[0]


def _table(
    config: TransferConfig,
    images: StudyImages,
    named: Named,
    wrong: Named | None,
    faults: Sequence[Fault],
    done: Sequence[Done],
) -> dict[str, Any]:
    groups = {(arm, dict(setting)["mode"]): same for (arm, setting), same in grouped(done).items()}
    rows = []
    for fault in faults:
        row: dict[str, Any] = {"fault": fault.name, "what": fault.what}
        for mode in config.modes:
            same = groups.get((fault.name, mode))
            if same is None:  # it makes no difference there
                row[mode] = None
                continue
            found = over_seeds(same, "test_accuracy")
            honest = over_seeds(groups[HONEST, mode], "test_accuracy").value
            points = None if found.value is None or honest is None else 100 * (found.value - honest)
            row[mode] = {
                "accuracy": found.value,
                "deviation": found.deviation,
                "seeds": found.seeds,
                "images": next((one.result["test_images"] for one in same if not one.diverged), None),
                "points": points,
            }
        rows.append(row)
    stood_in = (
        f"{wrong.label}"
        if wrong is not None
        else f"SimCLR on {config.wrong_data}, epochs: {config.wrong_epochs}; stands in for sthalles' "
        "resnet50_50-epochs_stl10, which the paper took for the SimCLR authors' own"
    )
    return {
        "study": "transfer --replay paper003",
        "images": images.in_words(),
        "backbone": named.label,
        "wrong_checkpoint": stood_in,
        "seeds": list(config.all_seeds()),
        "split": "what the training would have reported as test accuracy, after its best epoch; with swapped "
        "splits these are images held out of train",
        "reference": {
            "learning_rate": config.learning_rates[-1],
            "batch_size": config.batch_sizes[-1],
            "epochs": max(config.epochs),
        },
        "modes": list(config.modes),
        "rows": rows,
    }
