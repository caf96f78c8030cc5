import json
import math
import os
import re
import resource
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from safetensors.numpy import save_file

from sslfast.cli.main import main
from sslfast.errors import IntegrityError, SslfastError
from sslfast.report import write_report

MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """The parts of a page that the tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[dict[str, Any]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = "json" if dict(attrs).get("type") == "application/json" else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "json":
            self.figures.append(json.loads(data))
        elif self._inside not in ("script", "style"):
            self.text += data

    def sections(self) -> list[str]:
        return [str(attrs["id"]) for tag, attrs in self.tags if tag == "section"]


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_full_run_has_every_section_and_valid_figures(make_run: MakeRun) -> None:
    page = read(write_report(make_run()))
    assert page.sections() == ["result", "budget", "search", "pretraining", "classes", "examples", "reproduce"]
    assert len(page.figures) == 3 + 3 + 1
    for figure in page.figures:
        go.Figure(figure)  # raises on a name or a value that plotly does not know


def test_page_asks_no_network(make_run: MakeRun) -> None:
    page = read(write_report(make_run()))
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data"):
            target = attributes.get(name) or ""
            assert target.startswith(("data:image/", "#")) or not target, (tag, name, target[:80])
        assert tag not in ("link", "iframe", "object", "embed")
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None and "default-src 'none'" in policy and "http" not in policy


def test_headline_and_table_name_split_seeds_epoch_and_keep_losing_rows(make_run: MakeRun) -> None:
    text = read(write_report(make_run())).text
    assert "digits: 86.00 % test accuracy" in text
    assert "test split, 2,000 images; best epoch; 1 seed" in text
    for row in ("tuned head", "linear head", "logistic regression", "untrained backbone", "raw pixels"):
        assert row in text
    assert "+1.30" in text and "−5.20" in text
    command = "sslfast demo --data digits --trials 10 --epochs 6 --seed 3 --no-resume"
    assert command in text.replace(" \\\n  ", " ")


def test_a_row_that_beats_the_tuned_head_stays(make_run: MakeRun) -> None:
    folder = make_run()
    table = json.loads((folder / "table.json").read_text())
    table["rows"][2]["test_accuracy"] = 0.91
    (folder / "table.json").write_text(json.dumps(table))
    text = read(write_report(folder)).text
    assert "91.00\xa0%" in text and "+5.00" in text


def test_history_points_and_best_so_far(make_run: MakeRun) -> None:
    folder = make_run(trials=30)
    history = read(write_report(folder)).figures[0]
    by_name = {trace["name"]: trace for trace in history["data"]}
    trials = json.loads((folder / "tune" / "result.json").read_text())["trials"]
    values = [100 * trial["value"] for trial in trials if trial["value"] is not None]
    assert by_name["one trial"]["y"] == pytest.approx(values)
    assert by_name["best so far"]["y"][:-1] == pytest.approx(np.maximum.accumulate(values))
    assert by_name["one trial"]["x"] == [trial["number"] for trial in trials if trial["value"] is not None]
    assert "6 of 30 trials gave no value" in read(folder / "report.html").text


def test_parallel_coordinates_show_unused_layers_and_decades(make_run: MakeRun) -> None:
    folder = make_run()
    figure = read(write_report(folder)).figures[1]
    titles = figure["layout"]["xaxis"]["ticktext"]
    assert titles[1:] == [
        "layers",
        "units of<br>layer 1",
        "units of<br>layer 2",
        "units of<br>layer 3",
        "learning<br>rate (log)",
        "dropout",
    ]
    third = titles.index("units of<br>layer 3")
    notes = [note for note in figure["layout"]["annotations"] if note["x"] == third]
    assert [note["y"] for note in notes if note["text"] == "unused"] == [0.0]
    trials = json.loads((folder / "tune" / "result.json").read_text())["trials"]
    lines = {trace["name"].split()[-1]: trace["y"] for trace in figure["data"] if trace.get("name")}
    rate = titles.index("learning<br>rate (log)")
    for trial in trials:
        y = lines[str(trial["number"])]
        assert (y[third] == 0.0) == (trial["params"]["layers"] < 3)
        assert y[rate] == pytest.approx((math.log10(trial["params"]["learning_rate"]) + 4) / 3)
    assert {note["text"] for note in figure["layout"]["annotations"] if note["x"] == rate} >= {"1e-4", "1e-1"}


def test_epochs_figure_has_every_trial(make_run: MakeRun) -> None:
    folder = make_run()
    figure = read(write_report(folder)).figures[2]
    trials = json.loads((folder / "tune" / "result.json").read_text())["trials"]
    drawn = {trace["name"].split()[-1]: trace for trace in figure["data"] if "trial" in trace.get("name", "")}
    for trial in trials:
        assert drawn[str(trial["number"])]["y"] == pytest.approx([100 * value for value in trial["intermediate"]])
    assert sum(trace["name"].startswith("best") for trace in drawn.values()) == 1


def test_confusion_matrix_and_scores_agree_with_scikit_learn(make_run: MakeRun) -> None:
    from safetensors.numpy import load_file
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    from sslfast.report.classes import score_classes
    from sslfast.report.contents import read_run

    folder = make_run(classes=tuple("abcdefg"))
    trace = read(write_report(folder)).figures[-1]["data"][0]
    arrays = load_file(folder / "predictions.safetensors")
    expected = confusion_matrix(arrays["labels"], arrays["predicted"])
    assert np.array_equal(trace["text"], expected)
    scores = score_classes(trace["text"], read_run(folder).classes)
    precision, recall, f1, support = precision_recall_fscore_support(arrays["labels"], arrays["predicted"])
    assert [score.precision for score in scores] == pytest.approx(precision)
    assert [score.recall for score in scores] == pytest.approx(recall)
    assert [score.f1 for score in scores] == pytest.approx(f1)
    assert [score.images for score in scores] == support.tolist()


def test_class_that_is_never_predicted_and_class_without_images(make_run: MakeRun) -> None:
    folder = make_run(parts=())
    labels = np.array([0, 0, 1, 1])
    save_file(
        {"labels": labels, "predicted": np.zeros(4, dtype=np.int64)},
        folder / "predictions.safetensors",
        metadata={"classes": json.dumps(["seen", "never predicted", "no image"])},
    )
    text = read(write_report(folder)).text
    assert "never predicted" in text and "no image" in text and "–" in text and "nan" not in text.lower()


def test_examples_mark_wrong_ones_with_their_true_label(make_run: MakeRun) -> None:
    folder = make_run(parts=("predictions",))
    save_file(
        {
            "images": np.zeros((3, 8, 9, 3), dtype=np.uint8),
            "labels": np.array([0, 1, 2]),
            "predicted": np.array([0, 0, 2]),
            "probability": np.array([0.9, 0.51, np.nan], dtype=np.float32),
        },
        folder / "examples.safetensors",
    )
    page = read(write_report(folder))
    marks = [attrs for tag, attrs in page.tags if tag == "figure"]
    assert [attrs["class"] for attrs in marks] == ["right", "wrong", "right"]
    assert "✗ dog, 51\xa0%" in page.text and "✓ 90\xa0%" in page.text and "nan" not in page.text


@pytest.mark.parametrize(
    ("parts", "sections"),
    [
        (("pretrain",), ["budget", "pretraining", "reproduce"]),
        (("tune",), ["budget", "search", "reproduce"]),
        (("predictions",), ["classes", "reproduce"]),
        ((), ["reproduce"]),
    ],
)
def test_partial_runs_have_the_sections_they_have_data_for(
    make_run: MakeRun, parts: tuple[str, ...], sections: list[str]
) -> None:
    assert read(write_report(make_run(parts=parts))).sections() == sections


def test_folders_of_pretrain_and_tune_alone(make_run: MakeRun) -> None:
    folder = make_run()
    assert read(write_report(folder / "pretrain")).sections() == ["budget", "pretraining", "reproduce"]
    assert read(write_report(folder / "tune")).sections() == ["budget", "search", "reproduce"]


def test_one_trial_of_one_epoch_and_equal_values(make_run: MakeRun) -> None:
    for figure in read(write_report(make_run(trials=1, epochs=1, steps=1))).figures:
        go.Figure(figure)


@pytest.mark.parametrize("word", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script>", "a & b"])
def test_class_names_and_data_names_cannot_break_out(make_run: MakeRun, word: str) -> None:
    folder = make_run(classes=(word, "dog", "<b>ship</b>"), data=word)
    page = read(write_report(folder))
    clean = read(write_report(make_run("clean")))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in clean.tags]
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert word in page.text
    ticks = page.figures[-1]["layout"]["xaxis"]["ticktext"]
    assert all("<" not in tick for tick in ticks)


def test_hundred_classes_and_two_hundred_trials_are_quick_and_small(make_run: MakeRun) -> None:
    folder = make_run(
        classes=tuple(f"a class with a rather long name {i}" for i in range(100)),
        trials=200,
        epochs=30,
        images=10_000,
        side=96,
        steps=20_000,
    )
    started = time.monotonic()
    path = write_report(folder)
    assert time.monotonic() - started < 10
    assert path.stat().st_size < 8_000_000 + 400 * 96 * 96 * 3 * 4 // 3  # noise does not compress; photographs do


def test_report_of_photographs_stays_small(make_run: MakeRun) -> None:
    folder = make_run(
        classes=tuple(f"class {i}" for i in range(100)), trials=200, epochs=30, parts=("tune", "predictions")
    )
    ramp = np.linspace(0, 255, 224, dtype=np.uint8)
    images = np.broadcast_to(ramp[None, :, None, None], (800, 224, 224, 3)).copy()
    labels = np.arange(800) % 100
    save_file(
        {"images": images, "labels": labels, "predicted": labels, "probability": np.ones(800, dtype=np.float32)},
        folder / "examples.safetensors",
    )
    assert write_report(folder).stat().st_size < 8_000_000


def test_missing_folder_and_no_run_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 1
    assert main(["report", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "there is no run folder" in lines[0] and "holds no run" in lines[1]


@pytest.mark.parametrize("name", ["table.json", "tune/result.json", "predictions.safetensors", "examples.safetensors"])
def test_damaged_file_is_named_and_the_old_page_stays(make_run: MakeRun, name: str) -> None:
    folder = make_run()
    before = write_report(folder).read_bytes()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(SslfastError, match=re.escape(name)):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


def test_numbers_of_another_kind_are_refused(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "tune" / "result.json").write_text('{"trials": [{"number": 1}]}')
    with pytest.raises(IntegrityError, match="not the result that tune writes"):
        write_report(folder)


def test_command_writes_where_it_is_told(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    out = make_run() / "elsewhere" / "page.html"
    assert main(["report", str(out.parent.parent), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.stat().st_size > 4_000_000


def test_nan_in_metrics_and_not_utf8_path(make_run: MakeRun) -> None:
    folder = make_run(os.fsdecode(b"run-\xff"))
    metrics = folder / "pretrain" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss": 7.0', '"loss": NaN', 1))
    assert "run-\\xff" in read(write_report(folder)).text


def test_full_disk_keeps_the_old_page(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run()
    before = write_report(folder).read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
    try:
        assert main(["report", str(folder)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "cannot write" in message
    assert (folder / "report.html").read_bytes() == before
    assert not list(folder.glob("*.partial"))


def test_importance_and_accuracy_over_time_are_drawn_where_they_are_known(make_run: MakeRun) -> None:
    folder = make_run(trials=12, parts=("tune",))
    path = folder / "tune" / "result.json"
    result = json.loads(path.read_text())
    result["importance"] = {"learning_rate": 0.7, "layers": 0.2, "dropout": 0.1}
    for trial in result["trials"]:
        trial["finished"] = 100.0 * (1 + trial["number"] // 4)
    path.write_text(json.dumps(result))
    page = read(write_report(folder))
    assert "What the hyperparameters matter" in page.text and "Accuracy over time" in page.text
    bars, time_line = page.figures[3:5]
    assert bars["data"][0]["x"] == pytest.approx([10, 20, 70]) and bars["data"][0]["y"][-1] == "learning rate"
    by_name = {trace["name"]: trace for trace in time_line["data"]}
    assert by_name["one trial"]["x"] == pytest.approx([100 / 60] * 4 + [200 / 60] * 4 + [300 / 60] * 4)
    values = [100 * trial["value"] for trial in result["trials"]]
    assert by_name["best so far"]["y"] == pytest.approx(np.maximum.accumulate(values))
    for figure in page.figures:
        go.Figure(figure)


def test_of_several_seeds_the_best_search_is_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    result = json.loads((make_run("one", parts=("tune",)) / "tune" / "result.json").read_text())
    folder = tmp_path / "run"
    for seed, value in ((0, 0.9), (2, 0.95), (10, 0.93)):
        result["trials"][seed % 10]["value"] = value
        result["best"] = result["trials"][seed % 10]
        (folder / f"seed-{seed}").mkdir(parents=True)
        (folder / f"seed-{seed}" / "result.json").write_text(json.dumps(result))
    page = write_report(folder).read_text()
    assert "Optimisation history" in page and "Accuracy after each epoch" in page
    assert "Shown is seed 2, whose winner is the best of 3 seeds" in page
    assert "of 10 trials of seed 2" in page
