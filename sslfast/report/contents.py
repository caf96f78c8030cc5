"""What a run folder holds, read for the report; every part may be absent."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from sslfast.errors import IntegrityError, SslfastError, first_line
from sslfast.files import read_json

TUNED = "tuned head"
"""How the name of the row of table.json begins that the report's headline is about."""


@dataclass(frozen=True)
class Trial:
    """One trial of a head search.

    Attributes:
        number: its place in the search, from 0.
        state: "complete", or another word for one that gave no value.
        params: the hyperparameters that were drawn.
        value: validation accuracy in [0, 1], or None.
        epoch: the epoch of that accuracy, from 0, or None.
        intermediate: validation accuracy after each epoch.
        seconds: how long it took, or None.
        finished: seconds from the start of the first trial to its end, or None.
    """

    number: int
    state: str
    params: dict[str, Any]
    value: float | None
    epoch: int | None
    intermediate: tuple[float | None, ...]
    seconds: float | None
    finished: float | None = None


@dataclass(frozen=True)
class Search:
    """A head search: its trials, its budget, the trial that won (a number, or None), and what parameters matter.

    Of a folder with a search per seed it is the best one: ``seed`` is that one's and ``seeds`` how many there are.
    """

    trials: tuple[Trial, ...]
    budget: dict[str, Any]
    best: int | None
    sampler: Any
    importance: dict[str, float] = field(default_factory=dict)
    seed: int | None = None
    seeds: int = 1

    def finished(self) -> list[Trial]:
        """Trials that gave a value, in order."""
        return [trial for trial in self.trials if trial.value is not None]

    def winner(self) -> Trial | None:
        """The trial that won."""
        return next((trial for trial in self.trials if trial.number == self.best), None)


@dataclass(frozen=True)
class Predictions:
    """The tuned head on the test images: labels and predictions (N,), probabilities (N, classes) or None."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float32] | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Examples:
    """A sample of test images: (M, H, W, 3) uint8, with labels, predictions and the prediction's probability (M,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float32]


@dataclass(frozen=True)
class Contents:
    """Everything that the report draws; a part that the run does not have is None or empty."""

    folder: Path
    config: dict[str, Any]
    pretrain: list[dict[str, Any]]
    pretrain_result: dict[str, Any]
    search: Search | None
    search_untrained: Search | None
    probes: list[dict[str, Any]]
    table: dict[str, Any] | None
    predictions: Predictions | None
    examples: Examples | None
    online: list[dict[str, Any]] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where the run has predictions."""
        return self.predictions.classes if self.predictions else ()


def read_run(folder: Path) -> Contents:
    """Read a run folder: that of the whole job, or that of pretrain or tune alone.

    Raises:
        SslfastError: the folder is missing or holds no run.
        IntegrityError: one of its files is not what was written.
    """
    if not folder.is_dir():
        raise SslfastError(f"there is no run folder {folder}; give one that a command has written, runs/...")
    config = _object(folder / "config.json")
    own_result = _object(folder / "result.json")
    pretrain_folder = folder / "pretrain" if (folder / "pretrain").is_dir() else folder
    lines = _lines(pretrain_folder / "metrics.jsonl")
    pretrain = [line for line in lines if "loss" in line and "step" in line]
    contents = Contents(
        folder=folder,
        config=config,
        pretrain=pretrain,
        pretrain_result=_object(pretrain_folder / "result.json") if pretrain else {},
        online=[line for line in lines if "held_out_knn" in line],
        search=_search(folder / "tune" / "result.json", own_result) or _best_seed(folder),
        search_untrained=_search(folder / "tune-untrained" / "result.json", {}),
        probes=[line for line in _lines(folder / "metrics.jsonl") if "protocol" in line and "train_loss" in line],
        table=_object(folder / "table.json") or None,
        predictions=_predictions(folder / "predictions.safetensors"),
        examples=_examples(folder / "examples.safetensors"),
    )
    if not any((config, pretrain, contents.search, contents.table, contents.predictions)):
        raise SslfastError(f"{folder} holds no run: no config.json, metrics.jsonl, result.json or table.json in it")
    return contents


def as_number(value: Any) -> float | None:
    """Give ``value`` as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise IntegrityError(f"{path} holds a {type(content).__name__}, not the object that sslfast wrote")
    return content


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line without its end is that of a run that was killed, or still runs."""
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = []
    for count, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise IntegrityError(f"line {count} of {path} is no JSON ({error}); remove it and try again") from error
        if isinstance(value, dict):
            lines.append(value)
    return lines


def _search(path: Path, own_result: dict[str, Any]) -> Search | None:
    result = _object(path) or own_result
    if not isinstance(result.get("trials"), list):
        return None
    try:
        trials = tuple(
            Trial(
                number=int(trial["number"]),
                state=str(trial["state"]).rpartition(".")[2].lower(),
                params=dict(trial["params"]),
                value=as_number(trial["value"]),
                epoch=trial.get("epoch"),
                intermediate=tuple(as_number(value) for value in trial.get("intermediate") or ()),
                seconds=as_number(trial.get("seconds")),
                finished=as_number(trial.get("finished")),
            )
            for trial in result["trials"]
        )
        best = (result.get("best") or {}).get("number")
        shares = {str(name): float(share) for name, share in (result.get("importance") or {}).items()}
        return Search(trials, dict(result.get("budget") or {}), best, result.get("sampler"), shares)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is not the result that tune writes: {type(error).__name__} {error}") from error


def _best_seed(folder: Path) -> Search | None:
    """Read the searches of ``tune --seeds`` and give the one whose winner is best, the first of equals."""
    found: list[tuple[float, int, Search]] = []
    for path in folder.glob("seed-*/result.json"):
        search, seed = _search(path, {}), path.parent.name.removeprefix("seed-")
        winner = search.winner() if search else None
        if search and seed.isdecimal() and winner and winner.value is not None:
            found.append((-winner.value, int(seed), search))
    if not found:
        return None
    _, best, search = min(found, key=lambda one: one[:2])
    return replace(search, seed=best, seeds=len(found))


def _tensors(path: Path, names: Sequence[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read the tensors that are there, without torch."""
    try:
        with safe_open(path, framework="numpy") as handle:
            there = [name for name in names if name in handle.keys()]  # noqa: SIM118 (not a mapping)
            return {name: handle.get_tensor(name) for name in there}, handle.metadata() or {}
    except Exception as error:  # safetensors raises its own kinds
        raise IntegrityError(f"{path} is not a readable safetensors file: {first_line(error)}") from error


def _predictions(path: Path) -> Predictions | None:
    if not path.exists():
        return None
    tensors, metadata = _tensors(path, ("labels", "predicted", "probabilities"))
    try:
        labels, predicted = tensors["labels"].astype(np.int64), tensors["predicted"].astype(np.int64)
        if labels.shape != predicted.shape or labels.ndim != 1:
            raise ValueError(f"labels are {labels.shape}, predictions are {predicted.shape}")
        count = int(max(labels.max(initial=-1), predicted.max(initial=-1))) + 1
        if min(labels.min(initial=0), predicted.min(initial=0)) < 0:
            raise ValueError("a label is negative")
        classes = tuple(str(name) for name in json.loads(metadata.get("classes", "[]")))
        if len(classes) < count:
            classes += tuple(f"class {index}" for index in range(len(classes), count))
        return Predictions(labels, predicted, tensors.get("probabilities"), classes)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is not the predictions that sslfast wrote: {error}") from error


def _examples(path: Path) -> Examples | None:
    if not path.exists():
        return None
    tensors, _ = _tensors(path, ("images", "labels", "predicted", "probability"))
    try:
        images = tensors["images"]
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 (M, H, W, 3)")
        others = [tensors[name] for name in ("labels", "predicted", "probability")]
        if any(other.shape != (len(images),) for other in others):
            raise ValueError(f"{len(images)} images with {', '.join(str(other.shape) for other in others)} values")
        return Examples(images, others[0].astype(np.int64), others[1].astype(np.int64), others[2].astype(np.float32))
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{path} is not the examples that sslfast wrote: {error}") from error
