"""A grid of trainings, one after another, each with its result in a file; a killed one goes on at the first missing."""

import hashlib
import math
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslfast.errors import DivergedError, IntegrityError
from sslfast.files import read_json, write_json
from sslfast.progress import console
from sslfast.run import Run

Value = str | int | float

LONGEST_NAME = 150
"""Characters of a cell's name; a file system takes 255 bytes, and a file that is being written has a longer name."""


@dataclass(frozen=True)
class Cell:
    """One training of a grid.

    Args:
        arm: what is compared: a method, a backbone, a fault.
        setting: under what, in words and numbers.
        seed: of everything random.
    """

    arm: str
    setting: tuple[tuple[str, Value], ...]
    seed: int

    @classmethod
    def of(cls, arm: str, seed: int, **setting: Value) -> "Cell":
        """Make a cell from its setting by name."""
        return cls(arm, tuple(setting.items()), seed)

    def __getitem__(self, name: str) -> Any:
        """Give one part of the setting."""
        return dict(self.setting)[name]

    @property
    def name(self) -> str:
        """Name the cell's file and folder: every part of the setting, in characters that any file system takes."""
        words = "_".join([self.arm, *(f"{key}-{value}" for key, value in self.setting), f"seed-{self.seed}"])
        safe = re.sub(r"[^A-Za-z0-9._+=-]", "-", words)[:LONGEST_NAME]
        # What was replaced or cut may be all that tells two cells apart.
        return safe if safe == words else f"{safe}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Done:
    """A cell and what it came to.

    Args:
        cell: which.
        result: what the training gave; empty where it diverged.
        diverged: what was said, or "".
    """

    cell: Cell
    result: dict[str, Any] = field(default_factory=dict)
    diverged: str = ""


def run_grid(run: Run, cells: Sequence[Cell], work: Callable[[Cell, Path], dict[str, Any]]) -> list[Done]:
    """Work off a grid's cells in order; those whose result is there are read.

    A result is ``cells/<name>.json`` in the study's folder, written whole or not at all. While a cell is worked on it
    has a folder ``cells/<name>``, in which its training keeps its state; the folder goes when the result is there. A
    training whose loss is no number any more is a result, too.

    Args:
        run: of the study.
        cells: all different.
        work: trains a cell, in a folder of its own, and gives what is to be kept, as JSON-able values.

    Raises:
        IntegrityError: a file that belongs to a cell holds another one's result.
    """
    folder = run.folder / "cells"
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names), "two cells share a name"
    waiting = [name for name in names if not (folder / f"{name}.json").exists()]
    done, started = [], time.monotonic()
    for cell in cells:
        path = folder / f"{cell.name}.json"
        place = folder / cell.name
        if not path.exists():
            number = waiting.index(cell.name)
            left = (time.monotonic() - started) / number * (len(waiting) - number) if number else math.nan
            text = f"{len(cells) - len(waiting) + number + 1} of {len(cells)}: {_words(cell)}"
            console.print(text + (f" (about {_clock(left)} left)" if number else ""), markup=False, soft_wrap=True)
            run.log(f"cell {cell.name}")
            content: dict[str, Any] = {"arm": cell.arm, "setting": dict(cell.setting), "seed": cell.seed}
            try:
                content["result"] = work(cell, place)
            except DivergedError as error:
                content["diverged"] = str(error)
                console.print(f"{_words(cell)}: {error}", markup=False, soft_wrap=True)
            write_json(path, content)
        if place.exists():  # a kill may have left it beside its result
            shutil.rmtree(place)
        done.append(_read(path, cell))
    return done


def _read(path: Path, cell: Cell) -> Done:
    content = read_json(path)
    expected = {"arm": cell.arm, "setting": dict(cell.setting), "seed": cell.seed}
    whole = isinstance(content, dict) and ("result" in content) != ("diverged" in content)
    if not whole or {key: content.get(key) for key in expected} != expected:
        raise IntegrityError(f"{path} is not the result of {_words(cell)}; remove it and resume")
    return Done(cell, content.get("result", {}), content.get("diverged", ""))


def _words(cell: Cell) -> str:
    return ", ".join(
        [cell.arm, *(f"{key.replace('_', ' ')} {value}" for key, value in cell.setting), f"seed {cell.seed}"]
    )


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


@dataclass(frozen=True)
class Mean:
    """A number over seeds.

    Args:
        value: the mean over those seeds that have it, or None where none has.
        deviation: standard deviation (with N - 1), or None for fewer than two.
        seeds: how many have it.
        of: how many there are.
    """

    value: float | None
    deviation: float | None
    seeds: int
    of: int

    def percent(self) -> str:
        """Show a share of one as a percentage with its deviation."""
        if self.value is None:
            return "–"
        text = f"{100 * self.value:.2f} %" + ("" if self.deviation is None else f" ± {100 * self.deviation:.2f}")
        return text + self._missing()

    def number(self, digits: int = 1) -> str:
        """Show a number with its deviation."""
        if self.value is None:
            return "–"
        text = f"{self.value:.{digits}f}" + ("" if self.deviation is None else f" ± {self.deviation:.{digits}f}")
        return text + self._missing()

    def _missing(self) -> str:
        return "" if self.seeds == self.of else f" ({self.seeds} of {self.of} seeds)"


def mean(values: Iterable[float | None]) -> Mean:
    """Put the seeds' numbers together; None is a seed without one."""
    found = list(values)
    there = [value for value in found if value is not None]
    return Mean(
        statistics.mean(there) if there else None,
        statistics.stdev(there) if len(there) > 1 else None,
        len(there),
        len(found),
    )


def grouped(done: Sequence[Done]) -> dict[tuple[str, tuple[tuple[str, Value], ...]], list[Done]]:
    """Put the seeds of each arm and setting together, in the grid's order."""
    groups: dict[tuple[str, tuple[tuple[str, Value], ...]], list[Done]] = {}
    for one in done:
        groups.setdefault((one.cell.arm, one.cell.setting), []).append(one)
    return groups


def over_seeds(same: Sequence[Done], key: str | Callable[[Mapping[str, Any]], float | None]) -> Mean:
    """Give the mean over seeds of one number of their results; a training that diverged has none."""
    get = (lambda result: result.get(key)) if isinstance(key, str) else key
    return mean(None if one.diverged else get(one.result) for one in same)
