"""The Self-Classifier study, end to end on digits."""

import json

import pytest

from sslfast.cli.main import main
from sslfast.evaluate import clustering_scores
from sslfast.pretrain import load_method
from sslfast.study.config import SelfClassifierStudyConfig
from sslfast.study.images import load_images
from sslfast.study.self_classifier import predicted_classes

WORDS = (
    *("study", "self-classifier", "--data", "digits", "--images", "400", "--test-images", "150", "--backbones"),
    *("resnet-small:1:3", "resnet-small:2:1", "--hidden", "64", "--probe-epochs", "2", "--dtype", "float32"),
    *("--device", "cpu"),
)


def test_the_whole_study(tmp_path, capsys):
    out = tmp_path / "study"
    assert main([*WORDS, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "87.89" in shown and "61.1" in shown and "68.7" in shown  # the paper's numbers beside ours
    table = json.loads((out / "table.json").read_text())
    first, second = table["rows"]
    assert (first["linears"], second["linears"]) == (1, 2)
    assert [point["epoch"] for point in first["curve"]] == [1, 2, 3]
    assert [epoch for epoch, _ in first["loss"]] == [1, 2, 3] and first["loss"][-1][1] < first["loss"][0][1]
    assert table["probe"]["linears"] == 1 and table["probe"]["test_accuracy"] > 0.5
    assert table["paper"][0]["acc"] == 68.7
    assert {path.name for path in out.glob("*.png")} == {"curves.png", "probe.png"}
    grids = list((out / first["examples"]).glob("*.png"))
    assert grids
    # The scores are those of the saved classifier on the test images.
    config = SelfClassifierStudyConfig(data="digits", images=400, test_images=150)
    images = load_images(config, None)
    method, backbone = load_method(out / "pretrained" / first["examples"].rpartition("/")[2])
    predicted = predicted_classes(method, backbone.preprocess, images.test)
    scores = clustering_scores(images.test.labels, predicted.numpy())
    assert first["acc"] == pytest.approx(scores.acc) and first["nmi"] == pytest.approx(scores.nmi)
    assert len(grids) == len({*scores.assigned(predicted.numpy()).tolist()})
    # A second time nothing is trained.
    assert main([*WORDS, "--out", str(out), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == table


def test_a_pretraining_that_diverges_is_a_result(tmp_path, capsys):
    out = tmp_path / "study"
    words = [*WORDS, "--optimizer", "sgd", "--learning-rate", "1e30", "--images", "100", "--test-images", "30"]
    assert main([*words, "--out", str(out)]) == 0
    assert "at step" in capsys.readouterr().err
    table = json.loads((out / "table.json").read_text())
    assert [row["diverged"] for row in table["rows"]] == [1, 1] and table["rows"][0]["acc"] is None
    assert table["probe"] is None and (out / "curves.png").exists()


def test_a_backbone_that_is_not_there_is_told_before_anything_is_trained(tmp_path, capsys):
    words = [*WORDS, "--backbones", "resnet-small:1:1", "resnet19:1:1", "--out", str(tmp_path / "study")]
    assert main(words) == 2
    assert "resnet19" in capsys.readouterr().err and not (tmp_path / "study").exists()


@pytest.mark.parametrize("name", ["label-fractions", "transfer", "self-classifier"])
@pytest.mark.parametrize("preset", [[], ["--preset", "paper"]])
def test_every_study_shows_its_options(name, preset, capsys):
    assert main(["study", name, *preset, "--help"]) == 0
    shown = capsys.readouterr().out
    paper = "oxford-pets" if name == "transfer" else "cifar10"
    assert (paper if preset else "fashion-mnist") in shown


@pytest.mark.parametrize("words", [[], ["no-such-study"], ["transfer", "--preset", "large"], ["transfer", "--resume"]])
def test_words_that_make_no_sense(words, capsys):
    assert main(["study", *words]) == 2
