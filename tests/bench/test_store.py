"""Benchmarks of the feature store: everybody reads the same rows, and runs the same network over the same images."""

import numpy as np
import pytest
import torch

from sslfast import features
from sslfast.bench import store as case


@pytest.mark.parametrize("how", [case.OURS, "batch", case.SELECT, case.NUMPY, case.MEMCPY])
def test_all_read_the_rows_that_are_asked_for(how, monkeypatch):
    kept = []
    extract = features.extract
    monkeypatch.setattr(features, "extract", lambda *a, **k: kept.append(extract(*a, shard_rows=30, **k)) or kept[-1])
    case.gather((24, 16, 100), how)()
    store = kept[0]
    assert len(store.manifest["shards"]) == 4
    rows = np.array([70, 3, 3, 99, 29, 30])
    found = case.reader(store, how, torch.zeros(6, 24))(rows)
    expected = store.load()[70:76] if how == case.MEMCPY else store.load()[rows]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_run_the_network_over_all_images(dtype, monkeypatch, tmp_path):
    monkeypatch.setattr(case, "_folder", lambda: tmp_path)
    seen = []
    forward = case.Backbone.forward
    monkeypatch.setattr(case.Backbone, "forward", lambda self, x: seen.append(forward(self, x)) or seen[-1])
    found = {}
    for how in (case.OURS, case.ALONE, case.SCRIPT):
        seen.clear()
        case.extraction((300, 8, 0), how, dtype)()
        found[how] = torch.cat(seen).float()
    for features_of in found.values():
        assert features_of.shape == (300, 128)
        assert torch.allclose(features_of, found[case.OURS], rtol=2e-2 if dtype == "bfloat16" else 1e-4, atol=1e-2)
    stored = features.FeatureStore.open(tmp_path / "0")
    assert torch.equal(stored.load(), found[case.OURS])
    assert len(np.load(tmp_path / "0.npy")) == 300


def test_a_networks_operations_are_counted():
    small = case.EXTRACTION.operations((1, 28, 0))
    assert small == pytest.approx(case.EXTRACTION.operations((1, 56, 0)) / 4, rel=0.15) and small > 1e6
