"""``sslfast extract``: run a backbone over a data set and store the features."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sslfast.progress import console


@dataclass(frozen=True)
class Options:
    """What `run` does.

    Args:
        backbone: checkpoint that pretrain wrote (backbone.safetensors); with --checkpoint, the architecture's name.
        data: a data set by name, or imagefolder:PATH, folder:PATH, csv:PATH.
        out: folder of the feature store; an unfinished extraction in it is continued.
        checkpoint: weights that somebody else trained (docs/import.md says whose are known).
        layout: whose layout the checkpoint has, where more than one fits.
        allow_missing: weights or modules that the checkpoint need not have; they stay random.
        split: of the data set.
        data_dir: where the data set lies, besides the usual places.
        views: of each image: identity, flip (mirrored left to right) or both.
        dtype: what features are stored as.
        compute_dtype: what the backbone computes in.
        batch_size: images per forward pass.
        shard_rows: images per file of the store.
        device: auto, cpu, cuda, cuda:1, ...
        resume: continue an unfinished extraction; without it a folder in use is refused.
        json: print the result as JSON.
    """

    backbone: str
    data: str
    out: Path
    checkpoint: Path | None = None
    layout: str | None = None
    allow_missing: tuple[str, ...] = ()
    split: str = "train"
    data_dir: Path | None = None
    views: tuple[Literal["identity", "flip"], ...] = ("identity",)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    compute_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    batch_size: int = 256
    shard_rows: int = 16384
    device: str = "auto"
    resume: bool = True
    json: bool = False


def run(options: Options) -> int:
    """Extract the features of a data set, print what is stored, and return the exit code."""
    from sslfast import data, features
    from sslfast.cli import checkpoints
    from sslfast.device import resolve_device

    device = resolve_device(options.device)
    backbone = checkpoints.load(options.backbone, options.checkpoint, options.layout, options.allow_missing)
    dataset = data.load(options.data, options.split, root=options.data_dir)
    started = time.perf_counter()
    store = features.extract(
        backbone,
        dataset,
        options.out,
        options.views,
        dtype=options.dtype,
        compute_dtype=options.compute_dtype,
        batch_size=options.batch_size,
        shard_rows=options.shard_rows,
        device=str(device),
        resume=options.resume,
    )
    seconds = time.perf_counter() - started
    files = [*store.manifest["shards"], store.manifest["index"]]
    result = {
        "path": str(store.path),
        "rows": store.rows,
        "features": store.features,
        "views": list(store.views),
        "dtype": store.manifest["dtype"],
        "bytes": sum(file["bytes"] for file in files),
        "skipped": len(store.manifest["skipped"]),
        "seconds": round(seconds, 3),
    }
    if options.json:
        print(json.dumps(result))
        return 0
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name.ljust(width)}  {', '.join(value) if isinstance(value, list) else value}")
    for path, reason in store.manifest["skipped"][:5]:
        console.print(f"left out: {path}: {reason}".encode("utf-8", "replace").decode(), markup=False)
    if store.labels is None:
        console.print("next: these features have no labels; extract a labelled split to tune a head", markup=False)
    else:
        console.print(f"next: sslfast tune --features {options.out} --out runs/tune", markup=False)
    return 0
