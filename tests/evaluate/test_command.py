"""``sslfast evaluate``: from stores, from a backbone, and what it refuses."""

import json
import statistics

import numpy as np
import pytest
from safetensors.numpy import load_file

from sslfast.cli.main import main
from sslfast.models import Preprocess, load_backbone, save_backbone
from sslfast.report.training_figures import probe_curves

QUICK = ["--epochs", "3", "--learning-rates", "0.03", "--strengths", "0.1", "--k", "20"]


def evaluate(*words):
    return main(["evaluate", *map(str, words)])


def test_stores_of_three_seeds_give_a_table_a_page_and_the_numbers(stores, tmp_path, capsys):
    train, test = stores
    out = tmp_path / "run"
    protocols = ["--protocols", "knn", "sgd", "lbfgs", "kmeans"]
    assert evaluate("--train", train.path, "--test", test.path, "--out", out, "--seeds", 3, *protocols, *QUICK) == 0
    shown = capsys.readouterr()
    assert "linear probe, SGD" in shown.out and "held out" in shown.out and "±" in shown.out
    result = json.loads((out / "result.json").read_text())
    names = [row["name"] for row in result["rows"]]
    assert names == [
        "linear probe, SGD", "linear probe, L-BFGS", "k-NN, k 20, T 0.07", "k-NN, k 20, T 0.1", "k-NN, k 20, majority",
        "k-means, 5 clusters",
    ]  # fmt: skip
    sgd, _, nearest, _, _, clusters = result["rows"]
    assert sgd["seeds"] == 3 and nearest["seeds"] == 1 and sgd["epoch_rule"] == "last epoch of 3"
    assert sgd["test_accuracy"] == pytest.approx(statistics.fmean(sgd["test_accuracies"]))
    assert sgd["test_deviation"] == pytest.approx(statistics.stdev(sgd["test_accuracies"]))
    assert set(clusters["clustering"][0]) >= {"nmi", "ami", "ari", "acc", "one_to_one_acc"}
    assert result["split"] == "test split of noise, 500 images" and result["seeds"] == [0, 1, 2]
    assert result["notes"] == ["training and test images were not compared"]  # stores hold none
    report = result["classification_report"]
    assert report["all"]["accuracy"] == pytest.approx(sgd["test_accuracies"][0])
    saved = load_file(out / "predictions.safetensors")
    assert (saved["labels"] == saved["predicted"]).mean() == pytest.approx(sgd["test_accuracies"][0])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 9 and {line["seed"] for line in lines} == {0, 1, 2}
    page = (out / "report.html").read_text()
    assert "Confusion matrix" in page and "Linear probes" in page and "The tuned head" not in page
    assert (out / "head-sgd.safetensors").exists() and "all" in (out / "report.txt").read_text()


def test_curves_of_probes_are_figures_with_a_line_per_seed():
    from plotly.graph_objects import Figure

    lines = [
        {"protocol": "sgd", "seed": seed, "epoch": epoch, "train_loss": 2 / epoch, "validation_accuracy": 0.1 * epoch}
        for seed in (0, 1)
        for epoch in (1, 2, 3)
    ]
    loss, accuracy = (Figure(figure) for _, figure, _ in probe_curves(lines))
    assert [trace.name for trace in loss.data] == ["seed 0", "seed 1"] and list(loss.data[1].y) == [2, 1, 0.666667]
    assert list(accuracy.data[0].x) == [1, 2, 3] and accuracy.data[0].y[2] == pytest.approx(30)
    assert probe_curves([]) == []


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_backbone(load_backbone("resnet-small", None, Preprocess(8, (0.3,) * 3, (0.35,) * 3)), path)
    return path


def test_a_backbone_and_a_data_set_need_nothing_else(backbone, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--backbone", backbone, "--data", "digits", "--out", out, "--protocols", "lbfgs", "knn", *QUICK, "--json"]
    assert evaluate(*words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"][0]["test_accuracy"] > 0.8
    assert (
        result["notes"][0].startswith("no test image is a training image")
        or "training images as well" in result["notes"][0]
    )
    assert len(list((out / "examples").glob("*.png"))) == 10
    assert load_file(out / "examples.safetensors")["images"].dtype == np.uint8
    assert (out / "features/train/manifest.json").exists()
    # What is there is not computed again, and comes out the same.
    stored = (out / "features/train/manifest.json").stat().st_mtime_ns
    assert evaluate(*words, "--resume") == 0
    again = json.loads(capsys.readouterr().out)
    assert (out / "features/train/manifest.json").stat().st_mtime_ns == stored
    assert [row["test_accuracy"] for row in again["rows"]] == [row["test_accuracy"] for row in result["rows"]]
    # Images that are not those of the training features would be compared in vain.
    words = ["--train", out / "features/train", "--test", out / "features/test", "--data", "digits"]
    assert evaluate(*words, "--train-split", "test", "--shared", "tell") == 1
    assert "the features of" in (told := capsys.readouterr().err) and "are not those of digits (test)" in told


def test_the_dense_probe_stands_beside_a_random_backbone(backbone, tmp_path, capsys):
    words = ["--backbone", backbone, "--protocols", "dense", "--masks", "shapes-on-texture", "--mask-images", "40"]
    assert evaluate(*words, "--dense-epochs", "1", "--out", tmp_path / "run") == 0
    assert "random initialisation" in capsys.readouterr().out
    content = json.loads((tmp_path / "run/dense.json").read_text())
    assert [row["name"] for row in content["rows"]] == [str(backbone), "random initialisation"]
    assert (content["train_images"], content["test_images"], content["size"]) == (40, 4, 8)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--train", "{train}"], 2, "give --train and --test"),
        ([], 2, "give --train and --test"),
        (["--backbone", "{backbone}"], 2, "--data is missing"),
        (
            ["--train", "{train}", "--test", "{test}", "--backbone", "{backbone}"],
            2,
            "already hold features",
        ),
        (["--train", "{train}", "--test", "{test}", "--protocols", "dense"], 2, "needs --backbone"),
        (["--train", "{train}", "--test", "{test}", "--seeds", "0"], 2, "--seeds must be"),
        (["--train", "{train}", "--test", "{test}", "--k", "5000"], 1, "k is 5000, but there are 1200 training rows"),
        (["--train", "{train}", "--test", "{train}"], 1, "the same images"),
        (["--train", "{test}", "--test", "{train}"], 1, "the split test was given to choose by"),
        (["--train", "{train}", "--test", "{test}", "--val-fraction", "1.5"], 2, "--val-fraction"),
        (
            ["--train", "{train}", "--test", "{test}", "--clusters", "5000", "--protocols", "sgd", "kmeans"],
            1,
            "5000 clusters",
        ),
        (["--train", "{train}", "--test", "{test}", "--data", "digits"], 1, "not those of digits"),
        (
            ["--backbone", "{backbone}", "--data", "digits", "--test-split", "train"],
            1,
            "test images are training images",
        ),
        (["--backbone", "weights.safetensors", "--data", "digits"], 1, "there is no checkpoint weights.safetensors"),
        (
            ["--backbone", "resnet-small", "--checkpoint", "x.pth", "--data", "digits"],
            1,
            "there is no checkpoint x.pth",
        ),
        (["--checkpoint", "x.pth", "--data", "digits"], 2, "--backbone is missing"),
        (["--backbone", "a", "--checkpoint", "b", "--random-weights", "--data", "digits"], 2, "not both"),
        (["--backbone", "resnet18", "--random-weights", "--layout", "swav", "--data", "digits"], 2, "--layout is for"),
        (["--train", "{train}", "--test", "{test}", "--layout", "swav"], 2, "--layout is for"),
        (["--train", "{train}", "--test", "{test}", "--resume"], 2, "--resume needs --out"),
    ],
)
def test_what_makes_no_sense_is_one_line(words, code, said, stores, backbone, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"train": stores[0].path, "test": stores[1].path, "backbone": backbone}
    assert evaluate(*(word.format(**places) for word in words), "--epochs", 1) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sslfast evaluate: ")]
    assert len(errors) == 1 and said in errors[0]


def test_help_is_light():
    import subprocess
    import sys

    code = "import sslfast.cli.evaluate, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "sslfast.cli.evaluate" in loaded and not loaded & {"torchvision", "numba", "sklearn", "scipy"}, done.stderr
