"""What extraction computes, and what it refuses."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sslfast.data import load
from sslfast.device import resolve_device
from sslfast.errors import DataError, SslfastError, UsageError
from sslfast.features import FeatureStore, extract
from sslfast.models import Preprocess

EPSILON = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}


@pytest.mark.parametrize("views", [("identity",), ("flip",), ("identity", "flip"), ("flip", "identity")])
@pytest.mark.parametrize("dtype", EPSILON)
def test_round_trip(cases, tmp_path, dtype, views):
    dataset, backbone = cases.make_dataset(70), cases.make_backbone()
    extract(backbone, dataset, tmp_path / "store", views, dtype=dtype, shard_rows=32, batch_size=16)
    store = FeatureStore.open(
        tmp_path / "store", backbone_fingerprint=backbone.fingerprint(), preprocess=backbone.preprocess
    )
    assert len(store) == store.rows == 70
    assert store.views == views and store.features == 5 and store.dtype == getattr(torch, dtype)
    assert store.classes == dataset.classes and store.ids == dataset.ids
    assert store.labels.dtype == torch.int64 and store.labels.numpy().tolist() == dataset.labels.tolist()
    for view in views:
        expected = cases.reference_features(backbone, dataset, flip=view == "flip")
        loaded = store.load(view)
        assert loaded.dtype == torch.float32
        torch.testing.assert_close(loaded, expected, rtol=EPSILON[dtype], atol=EPSILON[dtype])
        rows = [69, 0, 31, 32, 31, 5]
        assert torch.equal(store.batch(rows, view), loaded[rows])
        assert torch.equal(store.batch(torch.arange(33, 40), view), loaded[33:40])
        assert store.batch(np.array([], dtype=np.int64), view).shape == (0, 5)
    assert store.verify().files == 5


@pytest.mark.parametrize("batch_size", [8, 64])
@pytest.mark.parametrize("rows", [1, 31, 257])
def test_every_image_once(cases, tmp_path, rows, batch_size):
    dataset, backbone = cases.make_dataset(rows), cases.make_backbone()
    store = extract(backbone, dataset, tmp_path / "store", batch_size=batch_size, shard_rows=100)
    assert store.ids == dataset.ids
    torch.testing.assert_close(store.load(), cases.reference_features(backbone, dataset), rtol=1e-5, atol=1e-5)


def test_safetensors_reads_the_files(cases, tmp_path):
    store = extract(cases.make_backbone(), cases.make_dataset(70), tmp_path, ("identity", "flip"), dtype="bfloat16")
    shard = load_file(tmp_path / "shard-00000.safetensors")
    assert torch.equal(shard["flip"].float(), store.load("flip"))
    assert torch.equal(load_file(tmp_path / "index.safetensors")["labels"], store.labels)


def test_without_labels(cases, tmp_path):
    store = extract(cases.make_backbone(), cases.make_dataset(9, labels=False), tmp_path)
    assert store.labels is None and store.classes is None and len(store.ids) == 9
    store.verify()


def test_the_backbone_is_left_as_it_was(cases, tmp_path):
    backbone = cases.make_backbone()
    backbone.train()
    backbone.network[1].eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    first = extract(backbone, cases.make_dataset(40), tmp_path / "one", batch_size=8)
    second = extract(backbone, cases.make_dataset(40), tmp_path / "two", batch_size=8)
    assert torch.equal(first.load(), second.load())
    assert backbone.training and backbone.network[0].training and not backbone.network[1].training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert backbone.network[0].weight.is_contiguous()


def test_computing_in_bfloat16(cases, tmp_path):
    dataset, backbone = cases.make_dataset(40), cases.make_backbone()
    store = extract(backbone, dataset, tmp_path, compute_dtype="bfloat16")
    expected = cases.reference_features(backbone, dataset)
    torch.testing.assert_close(store.load(), expected, rtol=5e-2, atol=5e-2)
    assert not torch.equal(store.load(), expected)


def test_images_are_resized_to_the_backbone(cases, tmp_path):
    dataset, backbone = cases.make_dataset(10, size=13), cases.make_backbone(size=8)
    store = extract(backbone, dataset, tmp_path)
    torch.testing.assert_close(store.load(), cases.reference_features(backbone, dataset), rtol=1e-5, atol=1e-5)


def test_a_complete_store_is_opened_without_work(cases, tmp_path, monkeypatch):
    dataset, backbone = cases.make_dataset(20), cases.make_backbone()
    extract(backbone, dataset, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(type(backbone), "forward", None)
    assert len(extract(backbone, dataset, tmp_path, batch_size=3)) == 20
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    with pytest.raises(UsageError, match="already holds features"):
        extract(backbone, dataset, tmp_path, resume=False)


STALE = {
    "backbone fingerprint": lambda cases: (cases.make_backbone(seed=1), cases.make_dataset(20), {}),
    "preprocess mean": lambda cases: (_with_mean(cases.make_backbone()), cases.make_dataset(20), {}),
    "views": lambda cases: (cases.make_backbone(), cases.make_dataset(20), {"views": ("flip",)}),
    "dtype": lambda cases: (cases.make_backbone(), cases.make_dataset(20), {"dtype": "float16"}),
    "compute_dtype": lambda cases: (cases.make_backbone(), cases.make_dataset(20), {"compute_dtype": "bfloat16"}),
    "dataset fingerprint": lambda cases: (cases.make_backbone(), cases.make_dataset(20, seed=1), {}),
    "dataset fingerprint of another order": lambda cases: (
        cases.make_backbone(),
        cases.make_dataset(20).subset(range(19, -1, -1)),
        {},
    ),
    "shard_rows": lambda cases: (cases.make_backbone(), cases.make_dataset(20), {"shard_rows": 7}),
}


def _with_mean(backbone):
    backbone.preprocess = Preprocess(8, mean=(0.5, 0.5, 0.5))
    return backbone


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("difference", STALE)
def test_a_stale_store_is_never_reused(cases, tmp_path, files_of, monkeypatch, difference, complete):
    if not complete:
        monkeypatch.setattr("sslfast.features.extraction._commit", _interrupted)
    try:
        extract(cases.make_backbone(), cases.make_dataset(20), tmp_path, shard_rows=10)
    except KeyboardInterrupt:
        assert not complete
    monkeypatch.undo()
    before = files_of(tmp_path)
    backbone, dataset, options = STALE[difference](cases)
    with pytest.raises(UsageError, match=f"{difference.split(' of ')[0]}.* now it is"):
        extract(backbone, dataset, tmp_path, **{"shard_rows": 10, **options})
    assert files_of(tmp_path) == before


def _interrupted(*arguments):
    raise KeyboardInterrupt


def test_features_that_are_not_finite(cases, tmp_path):
    backbone = cases.make_backbone()
    dataset = cases.make_dataset(50)
    forward = backbone.forward

    class Broken(type(backbone)):
        def forward(self, x):
            features = forward(x)
            features[torch.arange(len(x)) == 3 if len(x) < 8 else torch.zeros(len(x), dtype=torch.bool)] = torch.nan
            return features

    backbone.__class__ = Broken
    with pytest.raises(SslfastError, match=r"image 43 \(train/000043, view identity\) are not finite"):
        extract(backbone, dataset, tmp_path / "store", batch_size=8, shard_rows=47)  # the sixth batch has 7 rows
    with pytest.raises(SslfastError, match="not finished"):
        FeatureStore.open(tmp_path / "store")


def test_features_beyond_float16(cases, tmp_path):
    backbone = cases.make_backbone()
    with torch.no_grad():
        backbone.network[-1].bias += 1e5
    with pytest.raises(SslfastError, match="image 0 .*bfloat16"):
        extract(backbone, cases.make_dataset(5), tmp_path, dtype="float16")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"views": ()}, "views must be"),
        ({"views": ("identity", "identity")}, "views must be"),
        ({"views": ("mirror",)}, "views must be"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"shard_rows": -1}, "shard_rows must be at least 1"),
        ({"device": "tpu"}, "unknown device"),
        ({"device": "cuda:99"}, "--device cuda:99 was asked for"),
    ],
)
def test_options_that_make_no_sense(cases, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        extract(cases.make_backbone(), cases.make_dataset(5), tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_no_images(cases, tmp_path):
    with pytest.raises(DataError, match="no images"):
        extract(cases.make_backbone(), cases.make_dataset(5).subset([]), tmp_path / "store")


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "film.partial", "notes.txt"])
def test_a_folder_with_other_files_is_refused(cases, tmp_path, name):
    (tmp_path / name).write_text("holiday")
    with pytest.raises(UsageError, match=f"holds other files \\({name}"):
        extract(cases.make_backbone(), cases.make_dataset(5), tmp_path)
    assert (tmp_path / name).read_text() == "holiday"


def test_images_of_files(cases, tmp_path):
    """Different sizes, unreadable ones in between and a name that is not UTF-8."""
    generator = np.random.default_rng(0)
    folder = os.fsencode(tmp_path) + b"/images"
    os.mkdir(folder)
    for number in range(40):
        name = folder + b"/%02d-\xff.png" % number
        size = 20 + number % 3
        Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(os.fsdecode(name))
        if number in (3, 38, 39):
            with open(name, "r+b") as handle:
                handle.truncate(200)
    dataset = load(f"folder:{os.fsdecode(folder)}", "train")
    backbone = cases.make_backbone()
    store = extract(backbone, dataset, tmp_path / os.fsdecode(b"store-\xfe"), batch_size=8, shard_rows=38)
    assert len(store) == 37
    assert len(store.manifest["skipped"]) == 3
    assert len(store.manifest["shards"]) == 1  # the two images of the second shard cannot be read
    assert all("\udcff" in name for name in store.ids)
    good = [index for index, name in enumerate(dataset.ids) if name in set(store.ids)]
    assert len(good) == 37
    expected = torch.cat([backbone.eval()(backbone.preprocess(torch.from_numpy(dataset[i][0])[None])) for i in good])
    torch.testing.assert_close(store.load(), expected.detach(), rtol=1e-5, atol=1e-5)
    store.verify()


def test_resolve_device():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("nonsense", "meta", "cuda:77"):
        with pytest.raises(UsageError):
            resolve_device(name)
