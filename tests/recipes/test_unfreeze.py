"""Both readings of "the entire model at epoch ten only", on digits and a small network."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

from sslfast.cli.main import main
from sslfast.data import holdout, load
from sslfast.errors import DataError, UsageError
from sslfast.features import extract
from sslfast.models import load_backbone, save_backbone
from sslfast.models.head import HeadSpec, load_head
from sslfast.recipes.unfreeze import Images, Unfreezing, matching_images, unfreeze
from sslfast.recipes.unfrozen import UNFROZEN
from sslfast.search.sources import standardised
from sslfast.search.train import Recipe, train_head

SPEC = HeadSpec((64,), 0.3, 0.02)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(0)
    backbone = load_backbone("resnet-small").train()
    dataset = load("digits", "train").subset(range(400))
    for start in range(0, 400, 40):  # a trained network's batch normalisation knows its images
        backbone(backbone.preprocess(torch.from_numpy(dataset.images(range(start, start + 40)))))
    backbone.eval()
    store = extract(backbone, dataset, tmp_path_factory.mktemp("stores") / "digits", ("identity", "flip"))
    rest, held_out = (torch.as_tensor(rows) for rows in holdout(store.labels.numpy(), 0.2, 0))
    return backbone, store, dataset, Images(matching_images(dataset, store, 32), store.labels, rest, held_out, True)


def run(made, out, unfreezing, epochs=4, **options):
    backbone, store, _, images = made
    recipe = Recipe(epochs, 32, seed=1)
    return unfreeze(
        backbone, images, store, SPEC, recipe, unfreezing, out=out, classes=tuple("0123456789"), number=7, **options
    )


def test_epochs_before_it_are_those_of_the_search_and_the_files_belong_together(made, tmp_path):
    backbone, store, _, images = made
    found = run(made, tmp_path / "run", Unfreezing(2, 1))
    assert found["learning"] == [2, 3] and len(found["accuracies"]) == 4
    views = [store.load(view)[images.rest] for view in ("identity", "flip")]
    rest, held_out = images.labels[images.rest], images.labels[images.held_out]
    rows = standardised((torch.stack(views), rest), (store.load()[images.held_out], held_out), 10)
    frozen = train_head(SPEC, rows, Recipe(4, 32, seed=1), 7)
    assert tuple(found["accuracies"][:2]) == frozen.accuracies[:2]
    head, _, fingerprint = load_head(tmp_path / "run" / "head.safetensors")
    kept = load_backbone("resnet-small", tmp_path / "run" / "backbone.safetensors").eval()
    assert kept.fingerprint() == fingerprint
    assert (fingerprint == backbone.fingerprint()) == (found["epoch"] < 2)
    with torch.no_grad():
        pixels = torch.from_numpy(images.dataset.images(images.held_out.numpy()))
        right = head(kept(kept.preprocess(pixels))).argmax(1) == held_out
    assert float(right.double().mean()) == pytest.approx(found["value"], abs=1.5 / len(held_out))
    assert found["value"] == max(found["accuracies"])
    assert run(made, tmp_path / "run", Unfreezing(2, 1), resume=True) == found


def test_to_the_end_extracts_nothing_anew_and_the_same_seed_gives_the_same(made, tmp_path):
    before = made[0].fingerprint()
    found = run(made, tmp_path / "a", Unfreezing(1, None), epochs=3)
    assert found["learning"] == [1, 3] and not (tmp_path / "a" / "features").exists()
    again = run(made, tmp_path / "b", Unfreezing(1, None), epochs=3)
    assert found["accuracies"] == again["accuracies"] and made[0].fingerprint() == before


def test_learning_helps_a_network_that_knows_nothing(made, tmp_path):
    frozen = run(made, tmp_path / "late", Unfreezing(7, 1), epochs=8)["accuracies"][:7]
    assert run(made, tmp_path / "early", Unfreezing(0, None), epochs=8)["value"] > max(frozen)


@pytest.mark.parametrize(("at", "epochs"), [(4, 1), (-1, 1), (0, 0)])
def test_an_epoch_that_is_not_there_is_refused(made, tmp_path, at, epochs):
    with pytest.raises(UsageError, match="unfreeze"):
        run(made, tmp_path / "run", Unfreezing(at, epochs))


def test_other_images_and_another_optimizer_are_refused(made, tmp_path, monkeypatch):
    _, store, dataset, _ = made
    with pytest.raises(DataError, match="is not what"):
        matching_images(dataset.subset(range(399)), store, 32)
    monkeypatch.setattr(__name__ + ".SPEC", dataclasses.replace(SPEC, optimizer="adam"))
    with pytest.raises(UsageError, match="optimizer is adam"):
        run(made, tmp_path / "run", Unfreezing(1, 1))


def test_a_stage_that_was_killed_begins_anew_whatever_its_features_were(made, tmp_path):
    whole = run(made, tmp_path / "whole", Unfreezing(1, 1), epochs=3)
    # As a kill leaves it: features of a network whose training need not end at the same bits again.
    _, _, dataset, _ = made
    extract(load_backbone("resnet-small").eval(), dataset, tmp_path / "run" / "features", ("identity", "flip"))
    found = run(made, tmp_path / "run", Unfreezing(1, 1), epochs=3, resume=True)
    assert found["accuracies"] == whole["accuracies"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Whole stores of digits, as the command finds their images again, and the backbone's file."""
    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    backbone = load_backbone("resnet-small").eval()
    save_backbone(backbone, folder / "backbone.safetensors")
    save_backbone(load_backbone("resnet20").eval(), folder / "other.safetensors")
    for split in ("train", "test"):
        extract(backbone, load("digits", split), folder / split)
    return folder


def tune(stores, out, *more):
    return main(
        ["tune", "--features", str(stores / "train"), "--out", str(out), "--trials", "1", "--epochs", "2",
         "--no-baselines", "--dtype", "float32", "--unfreeze-at", "1", *more]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--backbone", "nothing.safetensors"], "there is no checkpoint"),
        (["--backbone", "other.safetensors"], "is not the backbone"),
        (["--backbone", "backbone.safetensors", "--data", "no-such-set"], "no-such-set"),
        (["--backbone", "backbone.safetensors", "--data", "folder:."], "is not what"),
        (["--backbone", "backbone.safetensors", "--optimizers", "sgd", "adam"], "with SGD only"),
    ],
)
def test_what_unfreezing_needs_is_looked_at_before_the_search(stores, tmp_path, capsys, monkeypatch, more, says):
    monkeypatch.chdir(stores)
    Image.new("RGB", (8, 8)).save(stores / "image.png")
    assert tune(stores, tmp_path / "run", *more) != 0
    said = capsys.readouterr().err
    assert says in " ".join(said.split()) and not (tmp_path / "run").exists(), said


@pytest.mark.slow
def test_the_row_of_the_command_says_that_it_is_one_seed(stores, tmp_path, capsys):
    out, more = tmp_path / "run", ["--backbone", str(stores / "backbone.safetensors"), "--seeds", "2"]
    assert tune(stores, out, *more, "--test-features", str(stores / "test"), "--json") == 0
    row = json.loads(capsys.readouterr().out)["table"]["rows"][-1]
    assert row["name"] == f"{UNFROZEN}, best of 2 seeds" and row["detail"].startswith("seed ")
    assert row["test_deviation"] is None and 0 < row["test_accuracy"] <= 1
