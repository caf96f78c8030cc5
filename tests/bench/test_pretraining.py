"""What pre-trainings came to: trained, scored, gathered and drawn."""

import json

import pytest

from sslfast.bench import pretrain_tables, pretraining
from sslfast.bench.pretrain_step import PARTS
from sslfast.bench.pretraining import METHODS, collect, main


def _ended(folder, accuracy, **more):
    folder.mkdir()
    rows = [
        {"name": "linear probe, L-BFGS", "test_accuracy": accuracy},
        {"name": "k-NN, k 20, T 0.1", "test_accuracy": accuracy - 0.1},
    ]
    (folder / "result.json").write_text(json.dumps({"rows": rows, "seeds": [0], "backbone": str(folder), **more}))


@pytest.fixture
def folder(tmp_path):
    """Every run, ended."""
    for method in METHODS:
        run = tmp_path / method
        run.mkdir()
        (run / "config.json").write_text(json.dumps({"data": "digits"}))
        (run / "result.json").write_text(json.dumps({"method": method, "option_epochs": 2, "option_seed": 0}))
        lines = [{"step": step, "loss": float(step)} for step in range(250)]
        lines += [
            {"step": 124, "epoch": 1, "held_out_knn": 0.5, "held_out_linear": 0.6},
            {"step": 249, "epoch": 2, "held_out_knn": 0.7, "held_out_linear": 0.8},
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        _ended(tmp_path / f"{method}-scored", 0.9)
    for network in ("resnet20", "conv-autoencoder"):
        _ended(tmp_path / f"{network}-random-scored", 0.4)
    rows = [{"name": name, "test_accuracy": 0.35} for name in ("linear probe, L-BFGS", "k-NN, k 20, T 0.1")]
    (tmp_path / "pixels.json").write_text(json.dumps(rows))
    return tmp_path


def test_run_folders_make_one_file_that_does_not_say_where_they_lay(folder):
    found = collect(folder)
    assert list(found["methods"]) == list(METHODS) and found["data"] == "digits"
    swav = found["methods"]["swav"]
    assert swav["loss"]["steps_of_a_point"] == 3 and swav["loss"]["points"][:2] == [1.0, 4.0]
    assert swav["loss"]["points"][-1] == 249.0 and len(swav["loss"]["points"]) == 84
    assert [line["held_out_linear"] for line in swav["online"]] == [0.6, 0.8]
    assert swav["evaluation"]["rows"][0]["test_accuracy"] == 0.9
    assert found["random_backbones"]["resnet20"]["rows"][0]["test_accuracy"] == 0.4
    assert str(folder) not in json.dumps(found)


def test_what_has_ended_is_not_done_again(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(
        pretraining, "machine", lambda: {"processor": "x", "threads": 1, "versions": {"torch": "2"}, "commit": "c"}
    )
    monkeypatch.setattr(pretraining.subprocess, "run", lambda *words, **more: pytest.fail(f"ran {words}"))
    picture = tmp_path / "out.png"
    assert main(["digits", str(folder), str(tmp_path / "out.json"), "--png", str(picture)]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["methods"]["simclr"]["online"][1]["epoch"] == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_is_done_and_what_was_broken_off_goes_on(folder, monkeypatch, tmp_path):
    (folder / "swav" / "result.json").unlink()
    (folder / "swav-scored" / "result.json").unlink()
    (folder / "swav-scored").rmdir()
    asked = []

    def run(words, check):
        asked.append(words[4:])
        out = folder / words[words.index("--out") + 1]
        out.mkdir(exist_ok=True)
        (out / "result.json").write_text("{}")

    monkeypatch.setattr(pretraining.subprocess, "run", run)
    pretraining.run_all("digits", folder, None, 2)
    (train, score) = asked
    assert train[:2] == ["pretrain", "swav"] and train[-1] == "--resume" and "--epochs" in train
    assert score[0] == "evaluate" and "--resume" not in score and str(folder / "swav" / "backbone.safetensors") in score


def test_the_tables_of_the_page(folder, tmp_path):
    missing = list(pretrain_tables.methods(tmp_path / "none.json")) + list(
        pretrain_tables.shares(tmp_path / "none.json")
    )
    assert len(missing) == 2 and all("Not measured yet" in one for one in missing)
    found = collect(folder)
    for run in found["methods"].values():
        run["pretraining"] |= {"option_backbone": "resnet20", "images": 45000, "seconds": 700.4}
        run["evaluation"]["split"] = "test split of digits, 10 images"
    (tmp_path / "out.json").write_text(json.dumps(found))
    lines = list(pretrain_tables.methods(tmp_path / "out.json"))
    assert "| SwAV | resnet20 | 80.00 % | 90.00 % | 700 |" in lines
    assert "| random weights | conv-autoencoder | 30.00 % | 40.00 % | 0 |" in lines
    assert "| raw pixels | none | 35.00 % | 35.00 % | 0 |" in lines
    assert lines[-1].startswith("Test split of digits, 10 images; 45,000 images x 2 epochs, seed 0, the last epoch.")
    spent = {**dict.fromkeys((*PARTS, "rest"), 5.0), "forward": 20.0, "step": 50.0}
    rows = [{"size": [256, 32, 2], "network": "resnet20", "contender": "lightly, float32", "ms": spent}]
    (tmp_path / "shares.json").write_text(json.dumps({"machine": found["machine"], "rows": rows}))
    lines = list(pretrain_tables.shares(tmp_path / "shares.json"))
    assert lines[2].startswith("| resnet20, 256, 32 | lightly, float32 | 50.0 | 5.0 (10 %) | 20.0 (40 %) |")
