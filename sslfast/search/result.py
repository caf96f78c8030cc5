"""What a head search found, in memory and as ``result.json``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sslfast.files import read_json, write_json
from sslfast.models.head import Head, load_head
from sslfast.search.space import HeadSpace


@dataclass(frozen=True)
class TrialResult:
    """One trial.

    Args:
        number: its number, from 0.
        state: Optuna's name of its state, ``"COMPLETE"``, ``"PRUNED"`` or ``"FAIL"``.
        params: its point of the search space.
        value: best validation accuracy over the epochs, in [0, 1]; None where it is not complete.
        epoch: the epoch, from 0, that the value is of; None where it is not complete.
        intermediate: validation accuracy after each epoch.
        seconds: time spent on training.
        reason: why it failed or was pruned, or None.
        finished: seconds from the beginning of the search's first trial to this one's end, pauses included.
    """

    number: int
    state: str
    params: dict[str, Any]
    value: float | None
    epoch: int | None
    intermediate: tuple[float, ...]
    seconds: float
    reason: str | None = None
    finished: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Args:
        folder: where ``result.json`` and ``head.safetensors`` are.
        best: the trial of the highest value, the first of equals.
        trials: all trials, in order.
        budget: trials, epochs, batch_size, train_rows, val_rows, seconds.
        sampler: name and options of the sampler.
        recipe: how each head was trained.
        importance: share of the differences between trials that each parameter explains; empty for few trials.
    """

    folder: Path
    best: TrialResult
    trials: tuple[TrialResult, ...]
    budget: dict[str, Any]
    sampler: dict[str, Any]
    recipe: dict[str, Any]
    importance: dict[str, float] = field(default_factory=dict)

    def head(self) -> Head:
        """Load the winner, with the weights of its best epoch."""
        return load_head(self.folder / "head.safetensors")[0]

    def save(self) -> None:
        """Write ``result.json``, atomically."""
        content = asdict(self)
        del content["folder"]
        write_json(self.folder / "result.json", content)

    @classmethod
    def load(cls, folder: Path) -> "SearchResult":
        """Read ``result.json``.

        Raises:
            SslfastError: it is missing or no JSON.
        """
        content = read_json(folder / "result.json")
        trials = tuple(_trial(entry) for entry in content["trials"])
        return cls(
            folder,
            _trial(content["best"]),
            trials,
            content["budget"],
            content["sampler"],
            content.get("recipe", {}),
            content.get("importance", {}),
        )


def gather(current: Mapping[int, FrozenTrial], space: HeadSpace) -> tuple[TrialResult, ...]:
    """Give the results of all slots; a trial's number is its slot, whichever attempt it was."""
    began = min((trial.datetime_start for trial in current.values() if trial.datetime_start), default=None)
    results = []
    for slot, trial in current.items():
        complete = trial.state == TrialState.COMPLETE
        ended = trial.datetime_complete
        results.append(
            TrialResult(
                slot,
                trial.state.name,
                space.used(trial.params),
                trial.value if complete else None,
                trial.user_attrs.get("epoch") if complete else None,
                tuple(trial.intermediate_values[step] for step in sorted(trial.intermediate_values)),
                trial.user_attrs.get("seconds", 0.0),
                None if complete else trial.user_attrs.get("reason"),
                (ended - began).total_seconds() if began and ended else None,
            )
        )
    return tuple(results)


def _trial(entry: dict[str, Any]) -> TrialResult:
    return TrialResult(**{**entry, "intermediate": tuple(entry["intermediate"])})
