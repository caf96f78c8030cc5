"""How fast extraction is beside the backbone, and the store beside memory; records what docs/features.md says."""

import os
import shutil
import statistics
import time

import numpy as np
import pytest
import torch
from stores import write_store

from sslfast.features import FeatureStore, extract
from sslfast.features.format import DTYPES
from sslfast.models import Preprocess, load_backbone

pytestmark = pytest.mark.soak


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_extraction_beside_the_backbone(cases, tmp_path, record_property):
    """Alternating rounds, so that other work on the machine slows both."""
    rows, batch_size = 60_000, 256
    dataset = cases.make_dataset(rows, size=28)
    dataset.fingerprint()
    backbone = load_backbone("resnet-small", preprocess=Preprocess(28)).eval()
    network = load_backbone("resnet-small", preprocess=Preprocess(28)).eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def alone():
        for first in range(0, rows, batch_size):
            images = dataset.images(np.arange(first, min(first + batch_size, rows)))
            network(network.preprocess(torch.from_numpy(images)))

    def stored():
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        extract(backbone, dataset, tmp_path / "store", batch_size=batch_size)

    alone()
    pairs = [(timed(alone), timed(stored)) for _ in range(9)]
    ratios = sorted(a / b for a, b in pairs)
    record_property("backbone alone, images/s, best", round(rows / min(a for a, _ in pairs)))
    record_property("extract, images/s, best", round(rows / min(b for _, b in pairs)))
    for name, value in (("median", statistics.median(ratios)), ("least", ratios[0]), ("most", ratios[-1])):
        record_property(f"extract / alone, {name}", round(value, 3))
    assert max(min(a for a, _ in pairs) / min(b for _, b in pairs), statistics.median(ratios)) > 0.9


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_gathering_beside_memcpy(tmp_path, record_property, dtype):
    """4,096 random rows of 2048 from a store in the page cache, in turn with a copy of as many bytes."""
    count, width, size = 32_768, 2048, 4096
    features = torch.randn(1, count, width)
    store = write_store(tmp_path / "store", features.to(DTYPES[dtype]), torch.arange(count) % 10)
    store.load()
    draw, out, plain = np.random.default_rng(0), torch.empty(size, width), features[0].numpy()
    target = out.numpy()

    def copy(rows):
        first = int(rows[0]) % (count - size)
        np.copyto(target, plain[first : first + size])

    contenders = {
        "numpy copy of one run, one thread": copy,
        "gather": lambda rows: store.gather(rows, out),
        "gather, one thread": lambda rows: store.gather(rows, out, threads=1),
        "torch.index_select of a tensor in memory": lambda rows: torch.index_select(
            features[0], 0, torch.from_numpy(rows), out=out
        ),
    }
    seconds = {name: [] for name in contenders}
    for _ in range(60):
        rows = draw.integers(0, count, size)
        for name, contender in contenders.items():
            seconds[name].append(timed(lambda contender=contender, rows=rows: contender(rows)))
    speed = {name: 4e-9 * size * width / statistics.median(found) for name, found in seconds.items()}
    for name, found in speed.items():
        record_property(f"{name}, GB/s of output", round(found, 1))
    assert speed["gather"] >= 0.5 * speed["numpy copy of one run, one thread"]
