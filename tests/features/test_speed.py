"""How fast extraction is beside the backbone, and the store beside memory; prints what docs/features.md says."""

import os
import shutil
import statistics
import time

import numpy as np
import pytest
import torch

from sslfast.features import FeatureStore, extract
from sslfast.models import Preprocess, load_backbone

pytestmark = pytest.mark.soak


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_extraction_beside_the_backbone(cases, tmp_path):
    """Alternating rounds, so that other work on the machine slows both."""
    rows, batch_size = 8192, 256
    dataset = cases.make_dataset(rows, size=28)
    dataset.fingerprint()
    backbone = load_backbone("resnet-small", preprocess=Preprocess(28)).eval()
    network = load_backbone("resnet-small", preprocess=Preprocess(28)).eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def alone():
        for first in range(0, rows, batch_size):
            images = dataset.images(np.arange(first, first + batch_size))
            network(network.preprocess(torch.from_numpy(images)))

    def stored():
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        extract(backbone, dataset, tmp_path / "store", batch_size=batch_size, shard_rows=4096)

    alone()
    pairs = [(timed(alone), timed(stored)) for _ in range(9)]
    ratios = sorted(a / b for a, b in pairs)
    print(f"\nbackbone alone {rows / min(a for a, _ in pairs):,.0f} images/s (best of {len(pairs)})")
    print(f"extract        {rows / min(b for _, b in pairs):,.0f} images/s (best of {len(pairs)})")
    print(f"extract / alone: median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")
    assert max(min(a for a, _ in pairs) / min(b for _, b in pairs), statistics.median(ratios)) > 0.9


def test_reading_and_writing(cases, tmp_path):
    """60,000 rows of 512: 123 MB, as the demo's features would be with a wider backbone."""
    from sslfast.features.format import write_tensors

    features = torch.randn(60_000, 512)
    size = features.nbytes / 1e6
    shards = features.split(16384)
    seconds = timed(lambda: [write_tensors(tmp_path / f"{i}", {"identity": part}) for i, part in enumerate(shards)])
    print(f"\nwrite with checksums and fsync {size / seconds:,.0f} MB/s")
    path = tmp_path / "copy"
    seconds = timed(lambda: _write_plain(path, features))
    print(f"plain write with fsync {size / seconds:,.0f} MB/s")

    class Stored(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :512].contiguous()

    backbone = cases.make_backbone(512, size=14)
    backbone.network = Stored()
    extract(backbone, cases.make_dataset(60_000, size=14), tmp_path / "store")
    store = FeatureStore.open(tmp_path / "store")
    first, second = timed(store.load), timed(store.load)
    print(f"load, first touch {size / first:,.0f} MB/s, verified before {size / second:,.0f} MB/s")
    print(f"verify {size / timed(store.verify):,.0f} MB/s")
    rows = torch.randperm(60_000)
    store.batch(rows[:2])
    seconds = timed(lambda: [store.batch(part) for part in rows.split(256)])
    print(f"random batches of 256: {60_000 / seconds:,.0f} rows/s")
    loaded = store.load()
    seconds = timed(lambda: [loaded[part] for part in rows.split(256)])
    print(f"the same from memory: {60_000 / seconds:,.0f} rows/s")


def _write_plain(path, features):
    with path.open("wb") as handle:
        handle.write(features.numpy().data)
        handle.flush()
        os.fsync(handle.fileno())
