"""Real searches, made small: a store, a search on the command line, its results file, picture and table."""

import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from sslfast import data, features
from sslfast.bench import head_search, search_tables
from sslfast.cli.main import main
from sslfast.models.backbone import Backbone, Preprocess


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    backbone = Backbone("pixels", torch.nn.Flatten(), 192, Preprocess(8))
    backbone.source = "/somewhere/pixels.pth"
    digits = data.load("digits", "train")
    for split, rows in (("train", range(600)), ("test", range(600, 900))):
        part = digits.subset(rows)
        part.split = split
        features.extract(backbone, part, folder / split, ("identity", "flip"))
    words = ["--features", folder / "train", "--test-features", folder / "test", "--out", folder / "run"]
    assert main(["tune", *map(str, words), "--trials", "5", "--epochs", "2", "--parallel", "5"]) == 0
    words = [folder / "run", folder / "train", folder / "test", folder / "result.json"]
    assert head_search.main(["collect", *map(str, words)]) == 0
    return folder


def test_everything_that_was_found_is_in_one_file(found):
    content = json.loads((found / "result.json").read_text())
    assert list(content["searches"]) == ["tpe", "random"]
    for search in content["searches"].values():
        assert len(search["trials"]) == 5 and all(len(trial["intermediate"]) == 2 for trial in search["trials"])
        best = max(search["trials"], key=lambda trial: (trial["value"], -trial["number"]))
        assert search["best"] == best["number"]
    assert content["features"]["backbone"]["source"] == "pixels.pth" and "/" not in json.dumps(content["features"])
    assert content["features"]["rows"] == {"train": 600, "test": 300}
    assert content["features"]["views"] == ["identity", "flip"] and content["machine"]["processor"]
    assert (found / "result.png").read_bytes().startswith(b"\x89PNG")


def test_its_table_has_a_line_for_every_classifier(found, tmp_path):
    content = json.loads((found / "result.json").read_text())
    lines = list(search_tables.page(found / "result.json"))
    rows = content["table"]["rows"]
    assert [line.split(" | ")[0] for line in lines[2 : 2 + len(rows)]] == [f"| {row['name']}" for row in rows]
    assert f"{100 * rows[0]['test_accuracy']:.2f} %" in lines[2] and len(rows) == 5
    assert any("600 + 300 images, 192 features, views identity and flip; 5 trials x 2 epochs" in line for line in lines)
    assert any(line.startswith("TPE minus random search") for line in lines)
    assert "Not measured yet" in next(search_tables.page(tmp_path / "head_search_none.json"))


def test_kerass_resnet_is_given_what_it_was_trained_on(tmp_path):
    """Blocks shrink in their first convolution, BN's epsilon is 1e-3, and images are BGR in 0..255 minus a mean."""
    torch.manual_seed(0)
    plain = torchvision.models.resnet50(weights=None).eval()
    save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    for stage in (plain.layer2, plain.layer3, plain.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    plain.fc = torch.nn.Identity()
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    blue_first = images.flip(3).permute(0, 3, 1, 2).float() - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    backbone = head_search.keras_resnet50(tmp_path / "weights.safetensors", 64).eval()
    with torch.inference_mode():
        ours = backbone(backbone.preprocess(images))
        assert torch.allclose(ours, plain(blue_first), rtol=1e-3, atol=1e-3 * float(ours.abs().max()))
    assert ours.shape == (2, 2048) and "weights.safetensors" in backbone.source


def test_features_are_extracted_of_both_splits_and_views(tmp_path, monkeypatch):
    pixels = Backbone("pixels", torch.nn.Flatten(), 192, Preprocess(8))
    monkeypatch.setitem(head_search.BACKBONES, "resnet20", (lambda weights, size: pixels, 8, 64, 500))
    digits = data.load("digits", "train")
    monkeypatch.setattr(data, "load", lambda name, split, root: digits)
    words = ["extract", "resnet20", "weights", str(tmp_path), "--compute-dtype", "bfloat16"]
    assert head_search.main(words) == 0
    for split in ("train", "test"):
        store = features.FeatureStore.open(tmp_path / split)
        assert store.views == ("identity", "flip") and store.manifest["compute_dtype"] == "bfloat16"
