"""Times programs of many steps, each contender in a process of its own (or several), told turn by turn.

A loss is timed beside its peers in one process (``timing.py``). A training is not: contenders would share an allocator,
threads and what a framework has changed. Here every contender is started once, warms up and waits; a turn asks each of
them for the same work, one after another in an order that is shuffled anew.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import TracebackType
from typing import Any, Self

import torch

from sslfast.bench.contenders import reason
from sslfast.bench.timing import LEAST, summary, take_turns
from sslfast.errors import SslfastError

Turn = Callable[[], float | None]
"""Does a turn's work; returns the seconds that count, None where all of them do."""


@dataclass(frozen=True)
class Part:
    """One process of a contender.

    Args:
        make: ``module:function``; called with the keywords of ``job``, it returns a ``Turn``, or raises ImportError.
        job: what JSON can hold.
        threads: of torch; 0 leaves them to it.
        variables: of the environment.
    """

    make: str
    job: Mapping[str, Any]
    threads: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """Who does a scenario's work: all parts at once."""

    name: str
    dtype: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Scenario:
    """A program that is timed by the turn.

    Args:
        name: its one name; its page holds ``<!-- measured: NAME -->``.
        title: what its table is about.
        axes: what the numbers of a size are.
        sizes: what is measured.
        contenders: of a size; those of ours are called ``sslfast``, first.
        unit: what the times are given per.
        units: how many of them one turn does.
        operations: floating-point operations of a unit.
        traffic: numbers that a unit has to read or write at least once.
        typed: what the contenders' ``dtype`` is of.
    """

    name: str
    title: str
    axes: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]
    contenders: Callable[[tuple[int, ...]], Sequence[Contender]]
    unit: str
    units: Callable[[tuple[int, ...]], float]
    operations: Callable[[tuple[int, ...]], float]
    traffic: Callable[[tuple[int, ...]], float]
    typed: str = "products"


class Running:
    """A contender's processes; once they are ready they wait for turns."""

    def __init__(self, contender: Contender, variables: Mapping[str, str]) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        self._processes = []
        for part in contender.parts:
            job = json.dumps({"make": part.make, "job": dict(part.job), "threads": part.threads})
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "sslfast.bench.turns", job],
                    env={**kept, **variables, **part.variables},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )

    def __enter__(self) -> Self:
        """Wait until the processes are ready."""
        try:
            self.ready()
        except Missing:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the processes."""
        self.close()

    def ready(self) -> None:
        """Wait for the processes.

        Raises:
            Missing: one of them cannot do the work; the message says why.
        """
        self._answers()

    def __call__(self) -> float:
        """Have all parts do a turn at once, and return the seconds of the slowest."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("turn\n")
            process.stdin.flush()
        return max(answer["seconds"] for answer in self._answers())

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def _answers(self) -> list[dict[str, Any]]:
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            text = process.stdout.readline()
            answer = json.loads(text) if text else {"missing": f"its process ended with {process.wait()}"}
            if "missing" in answer:
                raise Missing(answer["missing"])
            answers.append(answer)
        return answers


class Missing(SslfastError):
    """Why a contender has no numbers."""


def measure(
    scenario: Scenario,
    size: tuple[int, ...],
    variables: Mapping[str, str],
    samples: int = 9,
    seconds: float = 20.0,
    threads: int = 0,
) -> list[dict[str, Any]]:
    """Time every contender at a size and return a row of each, in milliseconds per unit.

    Args:
        scenario: what.
        size: of which size.
        variables: of the environment, for all processes.
        samples: timed turns.
        seconds: for all contenders together; one that has used up its share stops early, after ``LEAST`` turns.
        threads: of each process that does not say otherwise.
    """
    head = {"op": scenario.name, "size": list(size), "options": {}, "device": "cpu"}
    names: dict[str, dict[str, Any]] = {}
    running: dict[str, Running] = {}
    rows = []
    try:
        for contender in scenario.contenders(size):
            parts = tuple(
                Part(part.make, part.job, part.threads or threads, part.variables) for part in contender.parts
            )
            label = f"{contender.name}, {contender.dtype}"
            names[label] = {**head, "contender": contender.name, "dtype": contender.dtype}
            running[label] = Running(Contender(contender.name, contender.dtype, parts), variables)
        for ask in (Running.ready, Running.__call__):  # all are started at once, but warm up one after another
            for label, one in list(running.items()):
                try:
                    ask(one)
                except Missing as missing:
                    running.pop(label).close()
                    rows.append({**names[label], "skipped": reason(str(missing))})
        times = take_turns({label: _pass(one) for label, one in running.items()}, max(samples, LEAST), seconds)
    finally:
        for one in running.values():
            one.close()
    count = scenario.units(size)
    for label, taken in times.items():
        found = summary("forward", [(seconds / count, 0.0) for seconds, _ in taken])
        work = {"operations": scenario.operations(size), "bytes": 4 * scenario.traffic(size)}
        rows.append({**names[label], "mode": scenario.unit, **found, **work})
    order = list(names)
    return sorted(rows, key=lambda row: order.index(f"{row['contender']}, {row['dtype']}"))


def _pass(one: Running) -> Callable[[], tuple[float, float]]:
    return lambda: (one(), 0.0)


def main() -> None:
    """Do the work of one part: make it, then a turn for every line that comes."""
    asked = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand among the answers

    def answer(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    if asked["threads"] > 0:
        torch.set_num_threads(asked["threads"])
    module, name = asked["make"].split(":")
    try:
        turn: Turn = getattr(import_module(module), name)(**asked["job"])
        answer(ready=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            seconds = turn()
            answer(seconds=time.perf_counter() - start if seconds is None else seconds)
    except ImportError as error:
        answer(missing=f"not installed ({error})")
    except Exception as error:  # a baseline that does not run is reported, not hidden
        answer(missing=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
