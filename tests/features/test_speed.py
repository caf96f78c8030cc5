"""How fast the store is beside memory; records what docs/features.md says. Gathering and extraction are benchmarks."""

import os
import time

import pytest
import torch

from sslfast.features import FeatureStore, extract

pytestmark = pytest.mark.soak


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_reading_and_writing(cases, tmp_path, record_property):
    """60,000 rows of 512: 123 MB, as the demo's features would be with a wider backbone."""
    from sslfast.features.format import write_tensors

    features = torch.randn(60_000, 512)
    size = features.nbytes / 1e6
    shards = features.split(16384)
    seconds = timed(lambda: [write_tensors(tmp_path / f"{i}", {"identity": part}) for i, part in enumerate(shards)])
    record_property("write with checksums and fsync, MB/s", round(size / seconds))
    path = tmp_path / "copy"
    seconds = timed(lambda: _write_plain(path, features))
    record_property("plain write with fsync, MB/s", round(size / seconds))

    class Stored(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :512].contiguous()

    backbone = cases.make_backbone(512, size=14)
    backbone.network = Stored()
    extract(backbone, cases.make_dataset(60_000, size=14), tmp_path / "store")
    store = FeatureStore.open(tmp_path / "store")
    first, second = timed(store.load), timed(store.load)
    record_property("load, first touch, MB/s", round(size / first))
    record_property("load again, MB/s", round(size / second))
    record_property("verify, MB/s", round(size / timed(store.verify)))
    rows = torch.randperm(60_000)
    store.batch(rows[:2])
    seconds = timed(lambda: [store.batch(part) for part in rows.split(256)])
    record_property("random batches of 256, rows/s", round(60_000 / seconds))
    loaded = store.load()
    seconds = timed(lambda: [loaded[part] for part in rows.split(256)])
    record_property("the same from a tensor in memory, rows/s", round(60_000 / seconds))


def _write_plain(path, features):
    with path.open("wb") as handle:
        handle.write(features.numpy().data)
        handle.flush()
        os.fsync(handle.fileno())
