"""The page: which sections a run has, and what stands in them."""

import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from sslfast.files import write_text
from sslfast.report.classes import SHARES, confusion, count_pairs, score_classes
from sslfast.report.contents import TUNED, Contents, Predictions, as_number, read_run
from sslfast.report.drawing import SEQUENTIAL, VERMILLION
from sslfast.report.gallery import galleries
from sslfast.report.markup import bar, card, definitions, duration, legend, percent, plot, section, shown, text
from sslfast.report.reproduce import command_of, options_of, versions_of
from sslfast.report.search_figures import accuracy_range, epochs, history, parallel_coordinates
from sslfast.report.style import SCRIPT, STYLE
from sslfast.report.time_figures import importance, over_time
from sslfast.report.training_figures import curves, probe_curves

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What a browser may do with the page: nothing from any network."""


STAGES = {"pretrain": "Pre-training", "tune": "Head search", "search": "Head search"}
"""What people call the stages of table.json's budget."""

FINGERPRINT = re.compile("[0-9a-f]{16,}")
"""What tune records in place of a data set's name, because it sees features only."""


def write_report(run_folder: Path | str, path: Path | str | None = None) -> Path:
    """Draw a run as one HTML page that needs no network and no other file.

    Args:
        run_folder: a run of the whole job, or of pretrain or tune alone; what it does not hold has no section.
        path: the page to write; by default ``report.html`` in the run folder.

    Returns:
        The page's path.

    Raises:
        SslfastError: the folder is missing, holds no run, or the page cannot be written.
        IntegrityError: a file in the folder is damaged.
    """
    folder = Path(run_folder)
    target = folder / "report.html" if path is None else Path(path)
    write_text(target, render(read_run(folder)))
    return target


def render(contents: Contents) -> str:
    """Make the page's HTML."""
    from plotly.offline import get_plotlyjs

    sections = [
        part
        for part in (
            _table(contents),
            _budgets(contents),
            _search(contents),
            _pretraining(contents),
            _probes(contents),
            _classes(contents),
            _examples(contents),
            _reproduce(contents),
        )
        if part is not None
    ]
    links = "".join(f'<a href="#{identifier}">{text(title)}</a>' for identifier, title, _ in sections)
    body = "".join(content for _, _, content in sections)
    drawn = 'class="plot"' in body
    # plotly's own text holds no closing script tag; a new version that did would end the element early.
    library = get_plotlyjs().replace("</script", "<\\/script") if drawn else ""
    scripts = f"<script>{library}</script><script>{SCRIPT}</script>" if drawn else ""
    title = _title(contents)
    written = time.strftime("%Y-%m-%d %H:%M")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>"
        f"<header><div><p class=kicker>sslfast report</p><h1>{text(title)}</h1>{_headline(contents)}"
        f"<nav>{links}</nav></div></header>\n<main>{body}"
        f"<footer>Written {written} from {text(contents.folder)}.</footer></main>"
        "<noscript><p>The figures need JavaScript; the tables do not.</p></noscript>"
        f"{scripts}</body></html>\n"
    )


def _data_name(contents: Contents) -> str:
    for holder in (contents.config, contents.table or {}, contents.pretrain_result):
        for key in ("data", "dataset", "name"):
            if isinstance(holder.get(key), str) and not FINGERPRINT.fullmatch(holder[key]):
                return str(holder[key])
    return contents.folder.resolve().name


def _rows(contents: Contents) -> list[dict[str, Any]]:
    rows = (contents.table or {}).get("rows")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _tuned(contents: Contents) -> dict[str, Any] | None:
    return next((row for row in _rows(contents) if str(row.get("name")).startswith(TUNED)), None)


def _title(contents: Contents) -> str:
    tuned = _tuned(contents)
    name = _data_name(contents)
    accuracy = as_number(tuned.get("test_accuracy")) if tuned else None
    if accuracy is not None:
        return f"{name}: {100 * accuracy:.2f} % test accuracy"
    if contents.search:
        return f"{name}: head search"
    return f"{name}: pre-training" if contents.pretrain else name


def _conditions(contents: Contents) -> str:
    """Say what the accuracies were measured on, and which epoch's weights: "test split; last epoch; 1 seed"."""
    table = contents.table or {}
    words = []
    split = str(table.get("split", ""))
    if split.isalpha():
        images = f", {len(contents.predictions.labels):,} images" if contents.predictions else ""
        words.append(f"{split} split{images}")
    elif split:  # a sentence of its own
        words.append(split)
    epoch = table.get("which_epoch", table.get("epoch"))
    if epoch:
        words.append(str(epoch) if "epoch" in str(epoch) else f"{epoch} epoch")
    seeds = table.get("seeds")
    if seeds is not None:
        count = len(seeds) if isinstance(seeds, list) else seeds
        words.append(f"{count} seed{'' if count == 1 else 's'}")
    return "; ".join(words)


def _headline(contents: Contents) -> str:
    tuned = _tuned(contents)
    tiles = []
    if tuned is not None and as_number(tuned.get("test_accuracy")) is not None:
        accuracy = float(tuned["test_accuracy"])
        spread = _half_width(accuracy, contents.predictions)
        words = f"{tuned['name']}" + (f", ± {100 * spread:.2f} (95 % interval)" if spread else "")
        tiles.append(card(percent(accuracy), words, main=True))
        for row in _rows(contents):
            other = as_number(row.get("test_accuracy"))
            if other is not None and row is not tuned and str(row.get("name")).startswith("linear"):
                tiles.append(card(f"{100 * (accuracy - other):+.2f}", f"percentage points against the {row['name']}"))
                break
    if contents.search and contents.search.finished():
        best = max(trial.value or 0.0 for trial in contents.search.finished())
        whose = "" if contents.search.seed is None else f" of seed {contents.search.seed}"
        tiles.append(card(percent(best), f"best validation accuracy of {len(contents.search.trials)} trials{whose}"))
    if contents.pretrain:
        last = as_number(contents.pretrain_result.get("loss")) or as_number(contents.pretrain[-1].get("loss"))
        tiles.append(card("–" if last is None else f"{last:.3f}", f"pre-training loss after {_pretrained(contents)}"))
    budget = (contents.table or {}).get("budget")
    seconds = as_number(budget.get("seconds")) if isinstance(budget, dict) else None
    if seconds is not None:
        tiles.append(card(duration(seconds), "wall time, all stages"))
    conditions = _conditions(contents)
    sentence = f"Accuracy of the {tuned['name']}: {conditions}." if tuned and conditions else ""
    return (f"<p>{text(sentence)}</p>" if sentence else "") + (f'<div class="cards">{"".join(tiles)}</div>')


def _half_width(accuracy: float, predictions: Predictions | None) -> float:
    """Half of the 95 % interval of an accuracy: what another sample of as many test images would change."""
    count = 0 if predictions is None else len(predictions.labels)
    return 1.96 * math.sqrt(max(accuracy * (1 - accuracy), 0.0) / count) if count else 0.0


def _pretrained(contents: Contents) -> str:
    epoch = as_number(contents.pretrain[-1].get("epoch"))
    return f"{epoch:g} epochs" if epoch else f"{len(contents.pretrain):,} steps"


Section = tuple[str, str, str] | None


def _table(contents: Contents) -> Section:
    rows = _rows(contents)
    if not rows:
        return None
    tuned = _tuned(contents)
    reference = as_number(tuned.get("test_accuracy")) if tuned else None
    lines = []
    for row in rows:
        test = as_number(row.get("test_accuracy"))
        gap = "" if reference is None or test is None or row is tuned else f"{100 * (test - reference):+.2f}"
        detail = row.get("detail")
        small = f"<small>{text(shown('detail', detail))}</small>" if detail else ""
        lines.append(
            f'<tr{" class=main" if row is tuned else ""}><th scope="row">{text(row.get("name", "?"))}{small}</th>'
            f'<td class="number optional">{percent(as_number(row.get("validation_accuracy")))}</td>'
            f'<td class="number">{bar(test)}</td><td class="number">{gap.replace("-", "−")}</td>'
            f'<td class="number optional">{duration(as_number(row.get("seconds")))}</td></tr>'
        )
    head = (
        '<tr><th>what</th><th class="number optional">validation</th><th class="number">test accuracy</th>'
        '<th class="number">points</th><th class="number optional">time</th></tr>'
    )
    lead = "Every choice was made on a validation split held out of the training images, none on the test images." + (
        " Rows that do better than the tuned head stay; “points” is their distance from it." if tuned else ""
    )
    content = f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'
    return "result", "Result", section("result", "Result", content, lead=lead)


def _budgets(contents: Contents) -> Section:
    """Show what each stage was given: table.json's own words, else those of the stages' results."""
    recorded = (contents.table or {}).get("budget")
    budgets: dict[str, dict[str, Any]] = {}
    if isinstance(recorded, dict):
        budgets = {name: dict(value) for name, value in recorded.items() if isinstance(value, dict)}
        rest = {name: value for name, value in recorded.items() if not isinstance(value, dict)}
        if rest:
            budgets["whole run"] = rest
    if "pretrain" in budgets and "seconds" in contents.pretrain_result:
        budgets["pretrain"].setdefault("seconds", contents.pretrain_result["seconds"])
    if not any("pre" in name for name in budgets) and contents.pretrain_result:
        kept = ("method", "images", "steps", "option_epochs", "option_batch_size", "compute_dtype", "seconds")
        result = contents.pretrain_result
        budgets["pre-training"] = {key.removeprefix("option_"): result[key] for key in kept if key in result}
    if not any("tun" in name or "search" in name for name in budgets):
        if contents.search and contents.search.budget:
            sampler = {"sampler": contents.search.sampler} if contents.search.sampler else {}
            budgets["head search"] = {**contents.search.budget, **sampler}
        if contents.search_untrained and contents.search_untrained.budget:
            budgets["head search, untrained backbone"] = contents.search_untrained.budget
    if not budgets:
        return None
    parts = "".join(
        f"<div><h3>{text(STAGES.get(name, name.replace('_', ' ').capitalize()))}</h3>{definitions(values)}</div>"
        for name, values in budgets.items()
    )
    lead = "What every stage was given to reach these numbers."
    return "budget", "Budget", section("budget", "Budget", f'<div class="pair">{parts}</div>', lead=lead)


def _search(contents: Contents) -> Section:
    search = contents.search
    if search is None or not search.finished():
        return None
    missing = len(search.trials) - len(search.finished())
    lost = f" {missing} of {len(search.trials)} trials gave no value and have no point." if missing else ""
    winner = search.winner()
    won = f" The best is trial {winner.number}." if winner else ""
    low, high = accuracy_range(search.finished())
    best = [("━", VERMILLION, f"best: trial {winner.number}")] if winner else []
    colours = legend(SEQUENTIAL, f"{low:.1f} %", f"{high:.1f} % (its best epoch)", *best)
    parts = [
        "<h3>Optimisation history</h3>"
        f'<p class="note">Each point is one trial; the line is the best value found so far.{won}{lost}</p>',
        plot(history(search, contents.search_untrained), "Validation accuracy of every trial and the best so far"),
        "<h3>Hyperparameters of every trial</h3>"
        '<p class="note">One line per trial, from its accuracy through its hyperparameters; darker is better. '
        "A trial without a second or third layer passes through “unused”.</p>",
        colours,
        plot(parallel_coordinates(search), "Parallel coordinates of all trials", least=720),
    ]
    if any(trial.intermediate for trial in search.trials):
        parts += [
            "<h3>Accuracy after each epoch</h3>"
            '<p class="note">Validation accuracy of all trials while they train; the star is the epoch that won.</p>',
            colours,
            plot(epochs(search), "Validation accuracy of every trial after each epoch"),
        ]
    if search.importance:
        parts += [
            "<h3>What the hyperparameters matter</h3>"
            '<p class="note">Share of the variance of the accuracy that each one explains (fANOVA); parameters that '
            "only some trials have are left out.</p>",
            plot(importance(search), "Importance of the hyperparameters"),
        ]
    if any(trial.finished is not None for trial in search.finished()):
        parts += [
            "<h3>Accuracy over time</h3>"
            '<p class="note">When each trial was finished: trials of a batch train at once and end together.</p>',
            plot(over_time(search), "Validation accuracy over wall-clock time"),
        ]
    lead = (
        f"{len(search.trials)} classifier heads were tried on the same frozen features; only validation images judged."
    )
    if search.seed is not None:
        lead += f" Shown is seed {search.seed}, whose winner is the best of {search.seeds} seeds; the table has all."
    return "search", "Head search", section("search", "Head search", *parts, lead=lead)


def _pretraining(contents: Contents) -> Section:
    drawn = curves([*contents.pretrain, *contents.online])
    if not drawn:
        return None
    parts = "".join(
        f'<div><h3>{text(title)}</h3><p class="note">{text(caption)}</p>{plot(figure, title)}</div>'
        for title, figure, caption in drawn
    )
    result = contents.pretrain_result
    seconds, images = (
        as_number(result.get("seconds")),
        sum(as_number(row.get("images")) or 0 for row in contents.pretrain),
    )
    rate = f", {images / seconds:,.0f} images per second" if seconds and images else ""
    labels = "labels were used" if result.get("method") == "supervised" else "no label was used"
    lead = f"{len(contents.pretrain):,} steps, {_pretrained(contents)}{rate}; {labels}."
    return (
        "pretraining",
        "Pre-training",
        section("pretraining", "Pre-training", f'<div class="triple">{parts}</div>', lead=lead),
    )


def _probes(contents: Contents) -> Section:
    drawn = probe_curves(contents.probes)
    if not drawn:
        return None
    parts = "".join(
        f'<div><h3>{text(title)}</h3><p class="note">{text(caption)}</p>{plot(figure, title)}</div>'
        for title, figure, caption in drawn
    )
    lead = "Linear classifiers on frozen features while they are trained, a line per seed."
    return (
        "probes",
        "Linear probes",
        section("probes", "Linear probes", f'<div class="triple">{parts}</div>', lead=lead),
    )


def _classes(contents: Contents) -> Section:
    predictions = contents.predictions
    if predictions is None or len(predictions.labels) == 0:
        return None
    counts = count_pairs(predictions)
    many = len(predictions.classes)
    scores = score_classes(counts, predictions.classes)
    right = int(np.trace(np.array(counts)))
    lines = "".join(
        f'<tr><th scope="row">{text(score.name)}</th><td class="number optional">{score.images:,}</td>'
        f'<td class="number">{percent(score.precision, 1)}</td><td class="number">{percent(score.recall, 1)}</td>'
        f'<td class="number">{bar(score.f1, 1)}</td></tr>'
        for score in scores
    )
    head = (
        '<tr><th>class</th><th class="number optional">images</th><th class="number">precision</th>'
        '<th class="number">recall</th><th class="number">F1</th></tr>'
    )
    tall = " tall" if many > 20 else ""
    width = 54 * many + 220 if many <= 20 else max(9, 640 // many) * many + 240
    hint = "" if many <= 20 else " With this many classes the counts are in the text under the pointer."
    parts = (
        f'<h3>Confusion matrix</h3><p class="note">Rows are true classes, columns what was predicted.{hint}</p>',
        legend(SHARES, "0 %", "100 % of the true class"),
        plot(confusion(counts, predictions.classes), "Confusion matrix", least=min(width, 640), most=max(width, 420)),
        "<h3>Precision, recall and F1</h3>"
        f'<div class="scroll{tall}"><table><thead>{head}</thead><tbody>{lines}</tbody></table></div>',
    )
    whose = (contents.table or {}).get("predictions", "The tuned head")
    lead = f"{whose} on the test images: {right:,} of {len(predictions.labels):,} are right."
    return "classes", "Classes", section("classes", "Classes", *parts, lead=lead)


def _examples(contents: Contents) -> Section:
    if contents.examples is None or len(contents.examples.images) == 0:
        return None
    lead = "Test images by what they were taken for, with the probability; a red border and a ✗ mark the wrong ones."
    content = galleries(contents.examples, contents.classes)
    return "examples", "Examples", section("examples", "Examples by predicted class", content, lead=lead)


def _reproduce(contents: Contents) -> Section:
    command = command_of(contents)
    shown_command = text(command.replace(" --", " \\\n  --"))  # one option per line: a browser breaks at any hyphen
    parts = [f"<h3>Command</h3><pre>{shown_command}</pre>"] if command else []
    options = options_of(contents.config)
    if options:
        parts.append(f"<h3>Configuration</h3>{definitions(options)}")
    title, versions = versions_of(contents)
    columns = "".join(f"<div>{part}</div>" for part in (*parts[1:], f"<h3>{text(title)}</h3>{definitions(versions)}"))
    lead = "The same seed, data and versions on the same kind of machine give the same result."
    content = (parts[0] if command else "") + f'<div class="pair">{columns}</div>'
    return "reproduce", "Reproduce", section("reproduce", "How to reproduce this", content, lead=lead)
