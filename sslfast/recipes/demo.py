"""The main job: pre-train, cache features, tune a head, compare it honestly, export, report."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sslfast.bench.machine import machine
from sslfast.data.size import working_size
from sslfast.device import resolve_device
from sslfast.features import FeatureStore, extract
from sslfast.files import write_json, writing
from sslfast.models import Backbone, Preprocess, load_backbone, save_backbone
from sslfast.models.head import load_head
from sslfast.pretrain.config import SimCLRConfig
from sslfast.pretrain.loop import pretrain as pretrain_backbone
from sslfast.progress import console
from sslfast.recipes.config import DemoConfig
from sslfast.recipes.images import Images, load_images
from sslfast.recipes.rows import Row, baseline_rows, searched_row
from sslfast.run import Run
from sslfast.search import HeadSpace, SearchResult, search_heads
from sslfast.search.sources import open_rows

EXAMPLES_PER_CLASS = 12
"""Test images per predicted class that the report shows."""

CHECKED_IMAGES = 1000
"""Test images that the ONNX file is compared with torch on."""


def run_demo(config: DemoConfig, run: Run, *, data_dir: Path | None = None, device: str = "auto") -> dict[str, Any]:
    """Do the whole job in ``run``'s folder, or what is left of it, and return the table.

    The test images are used twice, both after everything that the run chooses was chosen: to fill the table, and to
    check the ONNX file.

    Args:
        config: what decides the result.
        run: its folder has the layout of docs/design.md section 9.
        data_dir: where data sets lie, before the usual places.
        device: auto, cpu or cuda.

    Raises:
        SslfastError: see the stages.
    """
    folder = run.folder
    where = str(resolve_device(device))
    with _stage(run, "images"):
        images = load_images(config, data_dir)
    pretrain = config.pretrain
    size = working_size(images.train, config.image_size)
    decided = {"data": config.data, "images": images.train.fingerprint(), "image_size": size, **asdict(pretrain)}
    with _stage(run, "pre-training without labels (SimCLR)"), Run(folder / "pretrain", decided, resume=True) as inner:
        backbone = pretrain_backbone(images.train, pretrain, inner, image_size=size, device=where)
    with _stage(run, "features, computed once"):
        untrained = _untrained(backbone.preprocess, pretrain, folder / "features-untrained" / "backbone.safetensors")
        stores = {
            name: {
                part: extract(network, getattr(images, part), folder / name / part, device=where)
                for part in ("train", "test")
            }
            for name, network in (("features", backbone), ("features-untrained", untrained))
        }
    trained_stores, untrained_stores = stores["features"], stores["features-untrained"]
    with _stage(run, "head search (TPE)"):
        tuned = _search(config, images, trained_stores["train"], folder / "tune", where, "on trained features")
        control = _search(
            config, images, untrained_stores["train"], folder / "tune-untrained", where, "on untrained features"
        )
    with _stage(run, "the test images, once"):
        linear, logistic, raw = baseline_rows(config, images, trained_stores, tuned, folder / "baselines.json")
        rows = [
            searched_row("tuned head on pre-trained features", tuned, trained_stores["test"]),
            linear,
            logistic,
            searched_row("same search on the untrained backbone", control, untrained_stores["test"]),
            raw,
        ]
        predict_test(images, trained_stores["test"], folder)
    with _stage(run, "ONNX"):
        _export(backbone, images, folder)
    table = make_table(config, rows, images, tuned, sum(line["seconds"] for line in run.metrics()))
    write_json(folder / "table.json", table)
    return table


def predict_test(images: Images, store: FeatureStore, folder: Path) -> None:
    """Write the tuned head's predictions on the test images, and a sample of images per predicted class."""
    head, _, _ = load_head(folder / "tune" / "head.safetensors")
    with torch.inference_mode():
        probabilities = torch.softmax(head.eval()(store.load()), dim=1)
    predicted = probabilities.argmax(1)
    labels = torch.as_tensor(images.test.labels)
    metadata = {"classes": json.dumps(images.classes)}
    _save(
        {"labels": labels, "predicted": predicted, "probabilities": probabilities},
        folder / "predictions.safetensors",
        metadata,
    )
    random = np.random.default_rng(0)
    chosen: list[int] = []
    for label in range(len(images.classes)):
        of_class = np.flatnonzero(predicted.numpy() == label)
        chosen += random.permutation(of_class)[:EXAMPLES_PER_CLASS].tolist()
    if not chosen:
        return
    pick = torch.tensor(chosen)
    _save(
        {
            "images": torch.from_numpy(images.test.images(np.array(chosen))),
            "labels": labels[pick],
            "predicted": predicted[pick],
            "probability": probabilities[pick, predicted[pick]],
        },
        folder / "examples.safetensors",
        metadata,
    )


def make_table(
    config: DemoConfig, rows: list[Row], images: Images, tuned: SearchResult, seconds: float
) -> dict[str, Any]:
    """Gather the rows, both budgets and what they were measured on; ``seconds``: wall time of every finished stage."""
    pretrain = config.pretrain
    measured_on = machine()
    versions = measured_on.pop("versions")
    return {
        "data": config.data,
        "split": f"test, {len(images.test)} images; chosen on {len(images.held_out)} images held out of train",
        "seeds": 1,
        "which_epoch": "each head as it was after its best epoch on the held-out images",
        "rows": [asdict(row) for row in rows],
        "budget": {
            "pretrain": {
                "images": len(images.train),
                "epochs": pretrain.epochs,
                "batch_size": pretrain.batch_size,
                "views": 2,
            },
            "tune": tuned.budget,
            "seconds": round(seconds, 1),
        },
        "machine": measured_on,
        "versions": versions,
    }


def _untrained(preprocess: Preprocess, config: SimCLRConfig, path: Path) -> Backbone:
    # The weights that the pre-training started from.
    torch.manual_seed(config.seed)
    backbone = load_backbone(config.backbone, preprocess=preprocess).eval()
    save_backbone(backbone, path)
    return backbone


def _search(
    config: DemoConfig, images: Images, store: FeatureStore, out: Path, device: str, title: str
) -> SearchResult:
    return search_heads(
        open_rows(store, config.val_fraction, config.seed, device=device),
        None,
        HeadSpace.paper(),
        out=out,
        classes=images.classes,
        backbone_fingerprint=store.manifest["backbone"]["fingerprint"],
        trials=config.trials,
        epochs=config.tune_epochs,
        batch_size=config.tune_batch_size,
        parallel=config.parallel,
        seed=config.seed,
        device=device,
        resume=True,
        title=title,
    )


def _export(backbone: Backbone, images: Images, folder: Path) -> None:
    from sslfast.export.onnx import to_onnx
    from sslfast.models.classifier import Classifier

    head, classes, _ = load_head(folder / "tune" / "head.safetensors")
    count = min(CHECKED_IMAGES, len(images.test))
    pick = np.unique(np.linspace(0, len(images.test) - 1, count).astype(int))
    parity = to_onnx(Classifier(backbone, head, classes), folder / "model.onnx", check_images=images.test.images(pick))
    console.print(f"model.onnx agrees with torch on {parity.describe()}", markup=False)


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    with writing(path) as partial:
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial, metadata=metadata)


@contextmanager
def _stage(run: Run, title: str) -> Iterator[None]:
    """Say what begins, and keep the time that it took: a resumed run adds up what all its sessions finished."""
    console.rule(f"[bold]{title}", align="left")
    run.log(title)
    started = time.monotonic()
    yield
    run.metric(stage=title, seconds=round(time.monotonic() - started, 3))
