"""The transfer study and its replay, end to end on digits; backbones by name; a training is done once."""

import json

import pytest

from sslfast.cli.main import main
from sslfast.errors import UsageError
from sslfast.evaluate.faults import NO_FAULTS
from sslfast.models import load_backbone, save_backbone
from sslfast.study.backbones import found_checkpoint, parse
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
    report = next(iter(table["reports"].values()))
    assert set(report["classes"]) == set("0123456789") or len(report["classes"]) == 10
    assert {path.name for path in out.glob("*.png")} == {
        *(f"figure{number}.png" for number in (3, 4, 5, 6)),
        "sweep.png",
    }


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
    assert (out / "replay.png").exists()


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
    # Per backbone: fine-tuned, frozen, the other learning rate, the other batch size; then one more batch and 7 rates.
    assert len(cells) == len({cell.name for cell in cells}) == 7 * 4 + 1 + 7


def test_backbones_by_name():
    assert parse("resnet50=/some/where/x.pth").label == "resnet50=x.pth"
    assert parse("swav+resnet18").method == "swav" and parse("resnet18").architecture == "resnet18"
    assert parse("resnet18=torchvision:resnet18").checkpoint == "torchvision:resnet18"
    for bad in ("", "=x", "resnet50=", "byo+resnet18", "simclr+resnet18=x"):
        with pytest.raises(UsageError):
            parse(bad)
    for bad in ("no/such/file.pth", "none.pth", "no-such-weights"):
        with pytest.raises(UsageError):
            found_checkpoint(bad)


def test_a_checkpoint_that_is_not_there_is_told_before_anything_is_trained(tmp_path, capsys):
    words = ["--backbones", "resnet-small", "resnet50=none.pth", "--out", str(tmp_path / "study")]
    assert main(["study", "transfer", *QUICK, *words]) == 2
    assert "none.pth" in capsys.readouterr().err and not (tmp_path / "study").exists()
