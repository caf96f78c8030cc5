"""The paper's head search on real features: extracts them, and puts what a search found into one results file.

``python -m sslfast.bench.head_search extract resnet50|resnet20 WEIGHTS OUT [...]`` stores CIFAR-10's
training and test features, each image and its mirror image, in OUT/train and OUT/test; a killed extraction goes on.
``sslfast tune --features OUT/train --test-features OUT/test --out RUN`` searches, and
``python -m sslfast.bench.head_search collect RUN OUT/train OUT/test RESULT.json`` keeps table, trials and machine, and
draws a PNG beside it.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from sslfast import data, features, models
from sslfast.bench.machine import machine
from sslfast.bench.search_plots import draw
from sslfast.files import read_json, writing
from sslfast.models.backbone import Backbone, Preprocess

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def keras_resnet50(weights: Path, size: int) -> Backbone:
    """Give Keras's ImageNet ResNet-50, version 1: blocks shrink in their first convolution.

    The weights have torchvision's names, which do not tell that they are Keras's.
    """
    backbone = models.load_backbone("resnet50", weights, layout="keras")
    backbone.preprocess = Preprocess(size, backbone.preprocess.mean, backbone.preprocess.std)
    backbone.source = f"Keras ResNet-50, ImageNet ({weights.name})"
    return backbone


def resnet20(weights: Path, size: int) -> Backbone:
    """Give a CIFAR ResNet-20 that was trained without labels on images of ``size`` pixels."""
    return models.load_backbone("resnet20", weights, Preprocess(size, CIFAR10_MEAN, CIFAR10_STD))


BACKBONES = {"resnet50": (keras_resnet50, 160, 32, 2048), "resnet20": (resnet20, 32, 256, 16384)}
"""Name: constructor, side of the images in pixels, images per forward pass, images per shard (what a kill may cost)."""


def extract(name: str, weights: Path, out: Path, data_dir: Path | None, compute_dtype: str) -> None:
    """Store the features of CIFAR-10's two splits, views identity and flip."""
    build, size, batch, shard = BACKBONES[name]
    backbone = build(weights, size)
    for split in ("train", "test"):
        images = data.load("cifar10", split, root=data_dir)
        started = time.perf_counter()
        store = features.extract(
            backbone,
            images,
            out / split,
            ("identity", "flip"),
            compute_dtype=compute_dtype,
            batch_size=batch,
            shard_rows=shard,
        )
        print(f"{split}: {store.rows} rows, {time.perf_counter() - started:.0f} s", flush=True)


def collect(run: Path, store: Path, test_store: Path) -> dict[str, Any]:
    """Give what a search with one or several seeds found: features, table, and of each seed and sampler the trials."""
    opened = {split: features.FeatureStore.open(path) for split, path in (("train", store), ("test", test_store))}
    manifest = dict(opened["train"].manifest)
    # A checkpoint is known by its file's name: where it lay is nobody's business.
    manifest["backbone"] = {**manifest["backbone"], "source": Path(manifest["backbone"]["source"]).name}
    seeds = sorted(run.glob("seed-*")) or [run]
    searches = {}
    for folder in seeds:
        for name, where in (("tpe", folder), ("random", folder / "random")):
            if (where / "result.json").exists():
                searches[f"{folder.name} {name}" if len(seeds) > 1 else name] = _short(read_json(where / "result.json"))
    return {
        "machine": machine(),
        "features": {
            **{name: manifest[name] for name in ("backbone", "preprocess", "dataset", "features", "views", "dtype")},
            "rows": {split: found.rows for split, found in opened.items()},
        },
        "table": read_json(run / "table.json"),
        "searches": searches,
    }


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """Leave accuracies at five digits: what 5,000 rows can tell apart."""
    trials = [
        {
            **trial,
            "intermediate": [round(one, 5) for one in trial["intermediate"]],
            "seconds": round(trial["seconds"], 2),
        }
        for trial in result["trials"]
    ]
    return {**result, "trials": trials, "best": result["best"]["number"]}


def main(argv: list[str]) -> int:
    """Run one of the two parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("extract")
    one.add_argument("backbone", choices=sorted(BACKBONES))
    one.add_argument("weights", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--data-dir", type=Path)
    one.add_argument("--compute-dtype", default="float32")
    other = parts.add_parser("collect")
    for name in ("run", "store", "test_store", "out"):
        other.add_argument(name, type=Path)
    options = parser.parse_args(argv)
    if options.part == "collect":
        found = collect(options.run, options.store, options.test_store)
        with writing(options.out) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n")
        feature = found["features"]
        what = f"{feature['features']:,} features of {feature['backbone']['architecture']}"
        title = f"Head search on {feature['dataset']['name']}: {what}"
        draw(found, title, options.out.with_suffix(".png"))
        return 0
    extract(options.backbone, options.weights, options.out, options.data_dir, options.compute_dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
