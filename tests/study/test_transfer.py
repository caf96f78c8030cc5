"""The transfer study and its replay, end to end on digits; backbones by name; a training is done once."""

import json

import pytest
import torch
from matplotlib.axes import Axes

from sslfast.cli.main import main
from sslfast.errors import UsageError
from sslfast.evaluate import finetune, finetuned
from sslfast.evaluate.faults import NO_FAULTS
from sslfast.models import load_backbone, save_backbone
from sslfast.study import backbones, transfer, transfer_figures
from sslfast.study.backbones import opened, parse
from sslfast.study.config import TransferConfig
from sslfast.study.images import load_images
from sslfast.study.replay import ALL, HONEST, rows_of
from sslfast.study.transfer import _cells, run_transfer

QUICK = (
    *("--data", "digits", "--images", "300", "--test-images", "100", "--dtype", "float32", "--device", "cpu"),
    *("--pretrain-epochs", "1"),
)


def test_the_whole_study(tmp_path, capsys):
    save_backbone(load_backbone("resnet-small"), tmp_path / "own.safetensors")
    out, own = tmp_path / "study", f"resnet-small={tmp_path / 'own.safetensors'}"
    words = ["--epochs", "1", "2", "--backbones", "simclr+resnet-small", own, "--sweep", "0.01", "--sweep-epochs", "1"]
    assert main(["study", "transfer", *QUICK, *words, "--out", str(out)]) == 0
    assert "own.safetensors" in capsys.readouterr().out
    table = json.loads((out / "table.json").read_text())
    rows = {(row["backbone"], row["mode"], row["learning_rate"], row["batch_size"]): row for row in table["rows"]}
    names = ("simclr+resnet-small", "resnet-small=own.safetensors")
    at = [("finetune", 3e-3, 64), ("transfer", 3e-3, 64), ("finetune", 1e-2, 64), ("finetune", 3e-3, 32)]
    assert set(rows) == {(name, *one) for name in names for one in at} | {(names[0], "finetune", 1e-2, 32)}
    assert len(table["rows"]) == 9  # a training that stands in several figures is done once
    row = rows[names[0], "finetune", 3e-3, 64]
    assert row["test_accuracy"] > 0.3 and set(row["marks"]) == {"1", "2"}
    other = rows[names[0], "finetune", 1e-2, 64]
    assert set(other["marks"]) == {"2"}  # no figure shows its earlier epochs: the test images are not looked at
    cells = {path.stem: json.loads(path.read_text())["result"] for path in (out / "cells").glob("*.json")}
    for name, result in cells.items():
        text = (out / "reports" / f"{name}.txt").read_text()
        for split, accuracy in (("validation", result["val_accuracy"]), ("test", result["test_accuracy"])):
            assert result["reports"][split]["all"]["accuracy"] == pytest.approx(accuracy)
            assert len(result["reports"][split]["classes"]) == 10
            assert f"{accuracy:.4f}" in text.partition(f"{split} images")[2]
    assert {path.name for path in out.glob("*.png")} == {
        *(f"figure{number}.png" for number in (3, 4, 5, 6)),
        "sweep.png",
    }


def test_two_files_of_one_name_are_two_backbones(tmp_path, capsys):
    for folder, seed in (("one", 1), ("two [b]", 2)):  # as two runs of pretrain leave them; rich reads [b] as bold
        torch.manual_seed(seed)
        save_backbone(load_backbone("resnet-small"), tmp_path / folder / "backbone.safetensors")
    texts = [f"resnet-small={tmp_path / folder / 'backbone.safetensors'}" for folder in ("one", "two [b]")]
    named, weights = opened(texts)
    names = ["resnet-small=one/backbone.safetensors", "resnet-small=two [b]/backbone.safetensors"]
    assert [one.label for one in named] == names == list(weights) and len({*weights.values()}) == 2
    with pytest.raises(UsageError, match="give each once"):
        opened([texts[0], texts[0].replace("/one/", "/./one/")])
    out = tmp_path / "study"
    words = ["study", "transfer", *QUICK, "--modes", "transfer", "--epochs", "1", "--learning-rates", "0.01"]
    words += ["--batch-sizes", "64", "--backbones", *texts, "--out", str(out)]
    assert main(words) == 0
    assert "[b]" in capsys.readouterr().out
    assert [row["backbone"] for row in json.loads((out / "table.json").read_text())["rows"]] == names
    # Other weights under the name of a study that was begun are not mixed into it.
    torch.manual_seed(3)
    save_backbone(load_backbone("resnet-small"), tmp_path / "one" / "backbone.safetensors")
    assert main([*words, "--resume"]) == 2
    assert "was started with weights." in capsys.readouterr().err


def test_pictures_say_what_was_trained(tmp_path, monkeypatch):
    row = {"backbone": "a$b", "mode": "transfer", "learning_rate": 0.1, "batch_size": 8, "epochs": 2}
    row |= {"test_accuracy": 0.5, "test_accuracy_deviation": None, "marks": {"2": {"value": 0.5, "deviation": None}}}
    reference = {key: row[key] for key in ("mode", "learning_rate", "batch_size", "epochs")}
    sweep = {"backbone": "a$b", "epochs": 2, "batch_size": 8, "learning_rates": [0.1]}
    table = {"rows": [row], "reference": reference, "seeds": [0], "images": "folder:$x$y$", "sweep": sweep}
    said = []
    picture = transfer_figures.picture

    def watched(path, width, height, note):
        said.append(note)
        return picture(path, width, height, note)

    monkeypatch.setattr(transfer_figures, "picture", watched)
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **_: said.append(text))
    assert len(transfer_figures.draw(table, tmp_path)) == 5
    titles, notes = said[1::2], said[::2]
    assert titles[:3] == ["Figure 3: learning rates, frozen", "Figure 4: batch sizes, frozen", "Figure 5: frozen"]
    assert not any("fine-tuned" in title for title in titles)
    # What a figure varies does not stand below it as fixed.
    assert "learning rate" not in notes[0] and "batches" not in notes[1] and "epochs" not in notes[3]


def test_every_epoch_of_a_figure_is_scored_in_the_same_products(tmp_path, monkeypatch):
    used = []
    predict = finetuned.predict_logits

    def watched(model, dataset, batch_size=64, faults=NO_FAULTS, compute=torch.float32):
        used.append(compute)
        return predict(model, dataset, batch_size, faults, compute)

    for place in (transfer, finetune):
        monkeypatch.setattr(place, "predict_logits", watched)
    config = TransferConfig(
        data="digits", images=60, test_images=20, backbones=("resnet-small",), modes=("finetune",), epochs=(1, 2),
        learning_rates=(1e-3,), batch_sizes=(32,), dtype="bfloat16",
    )  # fmt: skip
    run_transfer(config, load_images(config, None), tmp_path, device="cpu")
    assert len(used) >= 4 and set(used) == {torch.bfloat16}


def test_the_first_epochs_of_a_long_training_are_a_short_one(tmp_path):
    base = {"data": "digits", "images": 200, "test_images": 80, "backbones": ("resnet-small",), "modes": ("finetune",)}
    base |= {"learning_rates": (1e-3,), "batch_sizes": (32,), "dtype": "float32"}
    marks = []
    for epochs in ((1, 3), (1,)):
        config = TransferConfig(**base, epochs=epochs)
        table = run_transfer(config, load_images(config, None), tmp_path / str(len(epochs)), device="cpu")
        marks.append(table["rows"][0]["marks"]["1"]["value"])
    assert marks[0] == marks[1]


def test_the_replay_has_a_row_per_fault_and_all_together(tmp_path, capsys):
    out = tmp_path / "replay"
    words = ["--replay", "paper003", "--epochs", "2", "--backbones", "simclr+resnet-small", "--wrong-size", "16"]
    words += ["--wrong-data", "digits"]
    assert main(["study", "transfer", *QUICK, *words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    table = json.loads((out / "table.json").read_text())
    names = [row["fault"] for row in table["rows"]]
    assert names == [HONEST, "wrong checkpoint", "random layer", "wrong input", "swapped splits",
                     "training mode at test", "frozen statistics move", ALL]  # fmt: skip
    assert all(name in shown for name in names) and "stands in for" in table["wrong_checkpoint"]
    honest, frozen = table["rows"][0], table["rows"][6]
    assert honest["finetune"]["points"] == 0 and frozen["finetune"] is None and frozen["transfer"] is not None
    for row in table["rows"]:
        one = row["transfer"]
        assert one["points"] == pytest.approx(100 * (one["accuracy"] - honest["transfer"]["accuracy"]))
    # 30 of 300 images are held out of train; where the splits are swapped, those are what is reported.
    counts = {row["fault"]: row["transfer"]["images"] for row in table["rows"]}
    assert {name for name, count in counts.items() if count == 30} == {"swapped splits", ALL}
    assert {count for count in counts.values()} == {30, 100} and (out / "replay.png").exists()


def test_the_faults_are_six_and_each_stands_alone():
    rows = rows_of(TransferConfig.paper())
    alone = [row for row in rows if row.name not in (HONEST, ALL)]
    assert len(alone) == 6
    switched = [
        [name for name in vars(NO_FAULTS) if getattr(row.faults, name) != getattr(NO_FAULTS, name)]
        + ["wrong_checkpoint"] * row.wrong_checkpoint
        for row in alone
    ]
    assert all(len(one) == 1 for one in switched) and len({one[0] for one in switched}) == 6
    together = rows[-1]
    assert together.wrong_checkpoint and not rows[0].wrong_checkpoint and rows[0].faults == NO_FAULTS
    assert all(getattr(together.faults, name) != getattr(NO_FAULTS, name) for name in vars(NO_FAULTS))


def test_the_papers_grid_trains_nothing_twice():
    config = TransferConfig.paper()
    cells = _cells(config, [parse(text) for text in config.backbones])
    assert len({cell.arm for cell in cells}) == 7
    # Per backbone: fine-tuned, frozen, the other learning rate, the other batch size; then one more batch and 7 rates.
    assert len(cells) == len({cell.name for cell in cells}) == 7 * 4 + 1 + 7


def test_backbones_by_name():
    assert parse("resnet50=/some/where/x.pth").label == "resnet50=x.pth"
    assert parse("swav+resnet18").method == "swav" and parse("resnet18").architecture == "resnet18"
    assert parse("resnet18=torchvision:resnet18").checkpoint == "torchvision:resnet18"
    bad = ("", "=x", "resnet50=", "byo+resnet18", "simclr+resnet18=x", "resnet19", "simclr+resnet19")
    for text in (*bad, "autoencoder+resnet18", "resnet19=x"):
        with pytest.raises(UsageError):
            parse(text)
    for checkpoint in ("no/such/file.pth", "none.pth", "no-such-weights"):
        with pytest.raises(UsageError):
            opened([f"resnet50={checkpoint}"])


def test_published_weights_are_looked_for_where_the_data_lies(tmp_path, monkeypatch):
    save_backbone(load_backbone("resnet20"), tmp_path / "own.safetensors")
    asked = []

    def fetched(name, root=None):
        asked.append((name, root))
        return tmp_path / "own.safetensors"

    monkeypatch.setattr(backbones, "fetch_weights", fetched)
    opened(["resnet20=cifar10-resnet20"], tmp_path / "data")
    assert asked == [("cifar10-resnet20", tmp_path / "data")]


@pytest.mark.parametrize("what", ["not there", "another network's"])
def test_a_checkpoint_that_is_of_no_use_is_told_before_anything_is_trained(tmp_path, capsys, what):
    path = tmp_path / "other.safetensors"
    if what != "not there":
        save_backbone(load_backbone("resnet20"), path)
    words = ["--backbones", "resnet-small", f"resnet50={path}", "--out", str(tmp_path / "study")]
    assert main(["study", "transfer", *QUICK, *words]) == 2
    assert "other.safetensors" in capsys.readouterr().err and not (tmp_path / "study").exists()
