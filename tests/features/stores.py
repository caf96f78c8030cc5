"""Feature stores of given numbers, without images and backbone."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from sslfast.features import FeatureStore
from sslfast.features.format import BLOCK_BYTES, write_tensors
from sslfast.features.manifest import FORMAT, INDEX_NAME, VERSION, file_entry, shard_name, write_manifest


def write_store(folder, features, labels, views=("identity",), shard_rows=16384, classes=None, split="train"):
    """Write features (views, N, D), float32, float16 or bfloat16, and labels as a store; open it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _, rows, width = features.shape
    shards = []
    for number, first in enumerate(range(0, rows, shard_rows)):
        part = {name: each[first : first + shard_rows].contiguous() for name, each in zip(views, features, strict=True)}
        entry = file_entry(shard_name(number), *write_tensors(folder / shard_name(number), part))
        shards.append({**entry, "first_row": first, "rows": min(shard_rows, rows - first)})
    ids = [f"train/{row:06d}".encode() for row in range(rows)]
    tensors = {
        "labels": labels,
        "id_offsets": torch.from_numpy(np.cumsum([0, *map(len, ids)], dtype=np.int64)),
        "ids": torch.from_numpy(np.frombuffer(b"".join(ids), dtype=np.uint8).copy()),
    }
    index = file_entry(INDEX_NAME, *write_tensors(folder / INDEX_NAME, tensors))
    dtype = str(features.dtype).removeprefix("torch.")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "rows": rows,
        "features": width,
        "dtype": dtype,
        "views": list(views),
        "classes": classes or [str(label) for label in range(int(labels.max()) + 1)],
        "block_bytes": BLOCK_BYTES,
        "shard_rows": shard_rows,
        "shards": shards,
        "index": {**index, "labels": True, "id_bytes": len(b"".join(ids))},
        "backbone": {"architecture": "none", "fingerprint": "0" * 64, "source": "random numbers"},
        "preprocess": {"size": 8, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
        "dataset": {"name": "noise", "split": split, "fingerprint": hashlib.sha256(split.encode()).hexdigest()},
        "compute_dtype": "float32",
        "skipped": [],
        "versions": {},
    }
    write_manifest(folder, content)
    return FeatureStore.open(folder)


def clusters(rows, width, classes=5, views=1, seed=0):
    """Rows around one point per class, (views, rows, width), and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    noise = torch.randn(views, rows, width, generator=generator)
    return 3 + centres[labels] + 2 * noise, labels
