"""Training from a store that is not in memory: the same numbers, bit by bit, gathered ahead, under a real limit."""

import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import clusters, write_store

from sslfast.cli.main import main
from sslfast.data import holdout
from sslfast.errors import DataError, IntegrityError, UsageError
from sslfast.features import FeatureStore
from sslfast.memory import available_memory
from sslfast.models.head import HeadSpec
from sslfast.search import search_heads, sources
from sslfast.search.sources import Rows, StoredRows, moments, open_rows, standardised
from sslfast.search.train import Recipe, train_heads

JOBS = [(0, HeadSpec((70,), 0.3, 0.02)), (1, HeadSpec((64, 130), 0.5, 0.01)), (2, HeadSpec((), 0.0, 0.05))]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """3,000 rows of 37 in two views and shards of 700."""
    features, labels = clusters(3000, 37, views=2)
    return write_store(tmp_path_factory.mktemp("store"), features, labels, ("identity", "flip"), shard_rows=700)


def in_memory(store):
    """As a caller with tensors would have it."""
    rest, held_out = map(torch.from_numpy, holdout(store.labels.numpy(), 0.1, 0))
    views = torch.stack([store.load(view)[rest] for view in store.views])
    train = views if len(views) > 1 else views[0]
    return (train, store.labels[rest]), (store.load()[held_out], store.labels[held_out])


def same(found, expected):
    assert found.keys() == expected.keys()
    for number, result in found.items():
        assert result.accuracies == expected[number].accuracies
        assert all(map(torch.equal, result.weights, expected[number].weights))


def test_moments_are_those_of_all_rows():
    features = torch.randn(2, 5000, 19) * (0.1 + torch.rand(19)) + 100
    features[:, :, 3] = 0.1
    flat = features.flatten(0, 1).double()
    mean, std = moments((run for view in features for run in view.split(777)), 19)
    torch.testing.assert_close(mean, flat.mean(0).float(), rtol=1e-7, atol=0)
    expected = flat.std(0, correction=0).float()
    expected[3] = 1
    torch.testing.assert_close(std, expected, rtol=1e-6, atol=0)


def test_every_form_has_the_same_numbers(store):
    streamed, loaded = open_rows(store, 0.1, 0, memory="stream"), open_rows(store, 0.1, 0, memory="load")
    assert isinstance(streamed, StoredRows) and isinstance(loaded, Rows)
    given = standardised(*in_memory(store), 5)
    assert streamed.fingerprint == loaded.fingerprint
    for rows in (loaded, given):
        for name in ("labels", "validation_labels", "mean", "std"):
            assert torch.equal(getattr(rows, name), getattr(streamed, name))
        assert rows.views == streamed.views == 2
        order = torch.randperm(2 * len(rows.labels))[:999]
        for (features, labels, part), (there, classes, places) in zip(
            rows.chunks(order, 999), streamed.chunks(order, 999), strict=True
        ):
            assert torch.equal(features.flatten(0, 1)[part], there[places])
            assert torch.equal(labels[part % len(labels)], classes[places])
        assert torch.equal(rows.features, loaded.features)
        assert torch.equal(rows.validation_features, loaded.validation_features)
    found = torch.cat([features for features, _ in streamed.validation()])
    assert torch.equal(found, loaded.validation_features)


@pytest.mark.parametrize("batch_size", [64, 50, 3000])
@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 64 << 20])
def test_heads_end_the_same(store, monkeypatch, batch_size, chunk_bytes):
    monkeypatch.setattr(sources, "CHUNK_BYTES", chunk_bytes)
    if chunk_bytes == 1:  # one minibatch at a time; validation rows a few at a time
        monkeypatch.setattr(sources.Source, "validation_rows", lambda self: 7)
    recipe = Recipe(epochs=3, batch_size=batch_size)
    expected = train_heads(JOBS, standardised(*in_memory(store), 5), recipe)
    assert batch_size == 3000 or min(result.value for result in expected.values()) > 0.3
    same(train_heads(JOBS, open_rows(store, 0.1, 0, memory="stream"), recipe), expected)
    same(train_heads(JOBS, open_rows(store, 0.1, 0, memory="load"), recipe), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stores_of_half_precision(tmp_path, dtype):
    features, labels = clusters(900, 33)
    store = write_store(tmp_path, features.to(dtype), labels, shard_rows=250)
    recipe = Recipe(epochs=2, batch_size=32)
    expected = train_heads(JOBS, standardised(*in_memory(store), 5), recipe)
    same(train_heads(JOBS, open_rows(store, 0.1, 0, memory="stream"), recipe), expected)


def test_a_search_ends_the_same_and_resumes_in_the_other_form(store, tmp_path):
    options = {"trials": 3, "epochs": 2, "parallel": 2, "dtype": "float32"}
    results = []
    for memory in ("stream", "load"):
        rows = open_rows(store, 0.1, 0, memory=memory)
        results.append(search_heads(rows, out=tmp_path / memory, classes=store.classes, **options))
    given = search_heads(*in_memory(store), out=tmp_path / "given", classes=store.classes, **options)
    for result in (*results, given):
        assert [(trial.params, trial.intermediate) for trial in result.trials] == [
            (trial.params, trial.intermediate) for trial in given.trials
        ]
        assert all(map(torch.equal, result.head().state_dict().values(), given.head().state_dict().values()))
    rows = open_rows(store, 0.1, 0, memory="stream")
    search_heads(rows, out=tmp_path / "load", classes=store.classes, resume=True, **options)
    other = open_rows(store, 0.1, 1, memory="stream")
    with pytest.raises(UsageError):
        search_heads(other, out=tmp_path / "load", classes=store.classes, resume=True, **options)


def test_the_next_chunk_is_gathered_while_one_is_trained_on(store, monkeypatch):
    rows = open_rows(store, 0.1, 0, memory="stream")
    expected = open_rows(store, 0.1, 0, memory="load").features[0]
    gathered, where = threading.Semaphore(0), set()
    gather = store.gather

    def counted(*arguments, **keywords):
        gather(*arguments, **keywords)
        where.add(threading.get_ident())
        gathered.release()

    monkeypatch.setattr(rows.store, "gather", counted)
    order = torch.randperm(len(rows.labels))
    chunks = rows.chunks(order, 500)
    for number, (features, labels, part) in enumerate(chunks):
        gathered.acquire()
        if number < 5:
            assert gathered.acquire(timeout=30), "nobody gathers ahead"
            gathered.release()
        assert torch.equal(features[part], expected[order[500 * number : 500 * (number + 1)]])
        assert torch.equal(labels, rows.labels[order[500 * number : 500 * (number + 1)]])
    assert number == 5 and where and threading.get_ident() not in where
    assert threading.active_count() < 20


def test_what_fits_is_loaded_and_what_does_not_is_streamed(store, monkeypatch):
    assert open_rows(store, 0.1, 0, memory="stream").bytes() == 2 * 2700 * 37 * 4 + 300 * 37 * 4
    need = 2 * 3000 * 37 * 4  # both views of all rows
    for free, form in ((2 * need, Rows), (2 * need - 2, StoredRows)):
        monkeypatch.setattr(sources, "available_memory", lambda device="cpu", free=free: free)
        assert type(open_rows(store, 0.1, 0)) is form
        assert type(open_rows(store, 0.1, 0, memory="load")) is Rows
        assert type(open_rows(store, 0.1, 0, memory="stream")) is StoredRows
    with pytest.raises(UsageError, match="memory must be one of auto, load, stream"):
        open_rows(store, 0.1, 0, memory="disk")


def test_the_command_takes_both_forms(store, tmp_path, capsys):
    results = []
    for memory in ("load", "stream"):
        command = ["tune", "--features", str(store.path), "--trials", "2", "--epochs", "1", "--memory", memory]
        assert main([*command, "--out", str(tmp_path / memory), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
        # A machine with more or less memory to spare goes on with it.
        other = "stream" if memory == "load" else "load"
        assert main([*command[:-1], other, "--out", str(tmp_path / memory), "--resume", "--no-baselines"]) == 0
        capsys.readouterr()
    for result in results:
        del result["best"]["seconds"], result["best"]["finished"]
    assert results[0]["best"] == results[1]["best"]


def test_rows_that_cannot_be_trained_on(tmp_path):
    features, labels = clusters(900, 33, views=2)
    for view, row, name in ((0, 300, "identity"), (1, 899, "flip")):
        wrong = features.clone()
        wrong[view, row, 5] = torch.nan
        store = write_store(tmp_path / name, wrong, labels, ("identity", "flip"), shard_rows=250)
        shard = f"shard-0000{row // 250}.safetensors"
        with pytest.raises(DataError, match=rf"{shard} .* row {row % 250} of the shard, row {row} of the store"):
            StoredRows(store, np.arange(900), np.arange(10), labels, 5, store.views)
    # Only the first view of validation rows is read.
    StoredRows(store, np.arange(800), np.arange(890, 900), labels, 5, store.views)
    with pytest.raises(DataError, match="no validation rows"):
        StoredRows(store, np.arange(800), np.arange(0), labels, 5)
    path = store.path / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-200] ^= 4
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"shard-00002\.safetensors is damaged"):
        open_rows(FeatureStore.open(store.path), 0.1, 0)


def test_classes_are_looked_at(tmp_path):
    features, labels = clusters(300, 9)
    with pytest.raises(DataError, match="has label 4, but there are 4 classes"):
        open_rows(write_store(tmp_path / "a", features, labels, classes=list("abcd")), 0.1, 0)
    rows = open_rows(write_store(tmp_path / "b", features, labels, classes=list("abcdef")), 0.1, 0)
    with pytest.raises(DataError, match="class 'f' has no training row"):
        search_heads(rows, out=tmp_path / "run", classes=list("abcdef"), trials=1, epochs=1)
    with pytest.raises(UsageError, match="val is missing"):
        search_heads((features[0], labels), out=tmp_path / "run")


def test_available_memory_heeds_limits():
    assert 0 < available_memory() <= 1 << 50
    code = (
        "import resource; from sslfast.memory import available_memory as free; before = free();"
        "used = int(next(l for l in open('/proc/self/status') if l.startswith('VmData')).split()[1]) << 10;"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20),) * 2); print(before, free())"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert after <= 64 << 20 and after <= before


@pytest.mark.slow
def test_a_store_larger_than_the_memory_there_is(tmp_path):
    """RLIMIT_DATA: everything that is a process's own. 268 MB of features, 192 MiB to work with."""
    spec = importlib.util.spec_from_file_location("limited", Path(__file__).with_name("limited.py"))
    limited = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(limited)
    features, labels = clusters(32_768, 2048)
    store = write_store(tmp_path / "store", features, labels, shard_rows=8192)
    del features
    command = [sys.executable, "-P", str(Path(__file__).with_name("limited.py")), str(tmp_path / "store"), "192"]
    run = subprocess.run([*command, str(tmp_path / "found.pt")], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    found = torch.load(tmp_path / "found.pt")
    expected = limited.train(open_rows(store, limited.SHARE, 0, memory="load"))
    for number, (accuracies, weights) in expected.items():
        assert found[number][0] == accuracies
        assert all(map(torch.equal, found[number][1], weights))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_chunks_come_through_pinned_buffers(store):
    there = open_rows(store, 0.1, 0, memory="stream", device="cuda")
    here = open_rows(store, 0.1, 0, memory="load")
    order = torch.randperm(2 * len(here.labels))
    flat = here.features.flatten(0, 1)
    for number, (features, labels, part) in enumerate(there.chunks(order, 500)):
        rows = order[500 * number : 500 * (number + 1)]
        assert features.device.type == labels.device.type == "cuda"
        assert torch.equal(features[part].cpu(), flat[rows])
        assert torch.equal(labels[part].cpu(), here.labels[rows % len(here.labels)])
    loaded = open_rows(store, 0.1, 0, memory="load", device="cuda")
    assert torch.equal(loaded.features.cpu(), here.features)
