"""Plans what is to be measured, has each piece measured in a process of its own, and keeps the rows.

An operator that fails its gates gets no numbers; what the file already holds for this machine and build is not
measured again.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sslfast.bench import memory, turns
from sslfast.bench.contenders import GRAPH, names, reason
from sslfast.bench.machine import MEASURED, build, machine
from sslfast.bench.registry import CASES, SCENARIOS
from sslfast.bench.results import Results, Row
from sslfast.bench.timing import DTYPES, modes
from sslfast.bench.turns import Scenario
from sslfast.errors import SslfastError
from sslfast.testing import OpCase, check_op

__all__ = ["ALLOCATORS", "CASES", "DTYPES", "SCENARIOS", "Plan", "Runner", "Unit", "correct", "units"]

ALLOCATORS = {
    # Freed memory stays in the process: what a loss costs inside a training that has warmed up.
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": "2000000000",
        "MALLOC_TRIM_THRESHOLD_": "8000000000",
        "MALLOC_TOP_PAD_": "500000000",
    },
    # glibc gives large blocks back and asks for them again: page faults are more than half of some losses.
    "default": {},
}
"""The environment variables of glibc's allocator under which the CPU is timed; the bars are held to the first."""


@dataclass(frozen=True)
class Unit:
    """One operator at one size in one type: the piece that is measured, written and resumed.

    A scenario's unit is called float32, whatever its contenders compute in.
    """

    case: OpCase | Scenario
    size: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        """Name the unit."""
        return f"{self.case.name} {'x'.join(map(str, self.size))} {self.dtype}"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        units: in this order.
        device: "cpu" or "cuda".
        allocators: keys of ``ALLOCATORS``; a GPU has its own.
        threads: of the CPU; 0 leaves it to torch.
        samples: timed turns.
        seconds: for all contenders of a unit together.
        minutes: no unit is begun that would not end within them, if it took as long as the longest one before; 0 sets
            no limit.
        compiled: whether ``torch.compile`` of the reference takes part.
        timed: whether to time.
        memory: whether to measure the peak memory.
        again: whether to measure what the file holds already.
    """

    units: tuple[Unit, ...]
    device: str = "cpu"
    allocators: tuple[str, ...] = tuple(ALLOCATORS)
    threads: int = 0
    samples: int = 50
    seconds: float = 20.0
    minutes: float = 0.0
    compiled: bool = True
    timed: bool = True
    memory: bool = True
    again: bool = False

    def contexts(self) -> tuple[str, ...]:
        """Return the values of the column ``allocator``: what a unit is timed under."""
        return ("caching",) if self.device == "cuda" else self.allocators


def units(
    ops: Sequence[str] = (),
    dtypes: Sequence[str] = ("float32",),
    sizes: Sequence[tuple[int, ...]] = (),
    sweep: bool = False,
) -> tuple[Unit, ...]:
    """List the units of operators.

    Args:
        ops: names of operators; none stands for all.
        dtypes: keys of ``DTYPES``; an operator's unit is left out where it does not know the type.
        sizes: instead of the operators' own.
        sweep: the operators' sizes of growing N, instead.
    """
    return tuple(
        Unit(case, size, dtype)
        for name, case in CASES.items()
        if not ops or name in ops
        for size in (sizes or (case.sweep_sizes if sweep else case.bench_sizes))
        for dtype in dtypes
        if DTYPES[dtype] in case.epsilon
    ) + tuple(
        Unit(scenario, size, "float32")
        for name, scenario in SCENARIOS.items()
        if "float32" in dtypes and not sweep and (name in ops if ops else not sizes)
        for size in sizes or scenario.sizes
    )


@dataclass
class Runner:
    """Measures a plan into a file.

    Args:
        plan: what to measure.
        results: where the rows go; saved after every unit.
    """

    plan: Plan
    results: Results
    refused: dict[str, str] = field(default_factory=dict)
    """Operators that failed their gates, and what the gates said."""
    failed: dict[str, str] = field(default_factory=dict)
    """Units whose own process failed, and its last line."""

    def __post_init__(self) -> None:
        """Look at the machine."""
        self.machine = {**machine(*MEASURED), "build": build()}
        if self.plan.threads:
            self.machine["threads"] = self.plan.threads
        self._gates: dict[str, str | None] = {}
        self.id = self.results.enter(self.machine, {})
        self._end = time.monotonic() + 60 * self.plan.minutes if self.plan.minutes else float("inf")

    def open(self) -> list[Unit]:
        """Return the units that the file does not hold yet."""
        return [
            unit
            for unit in self.plan.units
            if (self.plan.again or self._missing(unit))
            and not (isinstance(unit.case, Scenario) and (self.plan.device != "cpu" or not self.plan.timed))
        ]

    def run(self, units: Sequence[Unit]) -> Iterator[Unit]:
        """Measure units, and give each one that is done (or refused); ends early when the minutes are over."""
        dtypes = {one.dtype for one in units} | {
            contender.dtype
            for one in units
            if isinstance(one.case, Scenario)
            for contender in one.case.contenders(one.size)
        }
        # What is known of this machine and build is not measured again: half precision takes a CPU minutes.
        known = {} if self.plan.again else self.results.machines.get(self.id, {}).get("limits", {})
        kinds = {f"{self.plan.device} {dtype}": dtype for dtype in sorted(dtypes)}
        self.results.enter(
            self.machine, {kind: self._limits(dtype) for kind, dtype in kinds.items() if kind not in known}
        )
        longest = 0.0
        for unit in units:
            begin = time.monotonic()
            if begin + longest > self._end:
                return
            if self._allowed(unit.case):
                try:
                    rows = self._measure(unit)
                except SslfastError as error:
                    self.failed[str(unit)] = str(error)
                    rows = []
                for row in rows:
                    self.results.put(row)
            else:
                self.results.drop(unit.case.name, self.plan.device)
            self.results.save()
            longest = max(longest, time.monotonic() - begin)
            yield unit

    def _allowed(self, case: OpCase | Scenario) -> bool:
        if isinstance(case, Scenario):  # its tests hold it against plain PyTorch
            return True
        if case.name not in self._gates:
            self._gates[case.name] = reason = correct(case, self.plan.device)
            if reason is not None:
                self.refused[case.name] = reason
        return self._gates[case.name] is None

    def _missing(self, unit: Unit) -> bool:
        if isinstance(unit.case, Scenario):
            rows = list(self.results.rows(op=unit.case.name, size=list(unit.size), machine=self.id))
            return not {
                (contender.name, contender.dtype, context)
                for contender in unit.case.contenders(unit.size)
                for context in self.plan.contexts()
            } <= {(row["contender"], row["dtype"], row["allocator"]) for row in rows}
        return (self.plan.timed and self._lacks_times(unit)) or (self.plan.memory and self._lacks_memory(unit))

    def _lacks_times(self, unit: Unit) -> bool:
        every, held = set(names(unit.case, self.plan.compiled)), list(self._held(unit))
        return any(
            not every <= {row["contender"] for row in held if row["allocator"] == context}
            for context in self.plan.contexts()
        )

    def _lacks_memory(self, unit: Unit) -> bool:
        seen = ("peak_mb", "skipped", "memory_skipped")
        measured = {row["contender"] for row in self._held(unit) if any(name in row for name in seen)}
        return not set(names(unit.case, self.plan.compiled)) <= measured

    def _held(self, unit: Unit) -> Iterator[Row]:
        return self.results.rows(
            op=unit.case.name, size=list(unit.size), dtype=unit.dtype, device=self.plan.device, machine=self.id
        )

    def _measure(self, unit: Unit) -> list[Row]:
        if isinstance(unit.case, Scenario):
            found = []
            for context in self.plan.contexts():
                how = ALLOCATORS[context], self.plan.samples, self.plan.seconds, self.plan.threads
                rows = turns.measure(unit.case, unit.size, *how)
                found += [{**row, "allocator": context, "machine": self.id} for row in rows]
            return found
        case, last = unit.case, modes(unit.case)[-1]
        rows: list[Row] = []
        timed = not self.plan.again and not self._lacks_times(unit)
        if timed:
            rows = [dict(row) for row in self._held(unit)]  # memory joins them
        elif self.plan.timed:
            for context in self.plan.contexts():
                found = self._child(unit, ALLOCATORS.get(context, {}), do="time")
                rows += [{**row, "allocator": context} for row in found]
        else:
            head = {"size": list(unit.size), "options": dict(case.options[0]), "dtype": unit.dtype}
            rows = [
                {"op": case.name, "contender": name, "mode": last, **head, "device": self.plan.device, "allocator": ""}
                for name in names(case, self.plan.compiled)
            ]
        if self.plan.memory and not (timed and not self._lacks_memory(unit)):
            whole = [row for row in rows if row.get("mode") == last and not row["contender"].endswith(f", {GRAPH}")]
            peaks = self._peaks(unit, list({row["contender"]: 0 for row in whole}))
            for row in whole:
                row |= peaks[row["contender"]]
        return [self._complete(unit, row) for row in rows]

    def _peaks(self, unit: Unit, contenders: list[str]) -> dict[str, dict[str, Any]]:
        """Measure the memory of contenders: on a GPU, whose allocator counts exactly, in one process."""
        together = [contenders] if self.plan.device == "cuda" else [[name] for name in contenders]
        found: dict[str, dict[str, Any]] = {}
        for some in together:
            try:
                found |= self._child(unit, memory.VARIABLES, do="memory", contenders=some)
            except SslfastError as error:
                found |= {name: {"memory_skipped": str(error)} for name in some}
        return found

    def _complete(self, unit: Unit, row: Row) -> Row:
        """Add what a row says of the machine's limit, and the machine."""
        if "skipped" not in row and unit.case.operations is not None and unit.case.traffic is not None:
            which = {"forward": (0,), "backward": (1,), "both": (0, 1)}[row["mode"]]
            operations, numbers = unit.case.operations(unit.size), unit.case.traffic(unit.size)
            row["operations"] = sum(operations[one] for one in which)
            row["bytes"] = sum(numbers[one] for one in which) * DTYPES[unit.dtype].itemsize
        return {**row, "machine": self.id}

    def _limits(self, dtype: str) -> dict[str, float]:
        job = {"do": "limits", "device": self.plan.device, "dtype": dtype, "threads": self.plan.threads}
        found: dict[str, float] = in_process(job, ALLOCATORS["tuned"])
        return {name: float(f"{value:.4g}") for name, value in found.items()}

    def _child(self, unit: Unit, variables: dict[str, str], **job: Any) -> Any:
        where = {"op": unit.case.name, "size": unit.size, "device": self.plan.device, "dtype": unit.dtype}
        how = {"threads": self.plan.threads, "samples": self.plan.samples, "seconds": self.plan.seconds}
        return in_process({**where, **how, "compiled": self.plan.compiled, **job}, variables)


def in_process(job: dict[str, Any], variables: dict[str, str]) -> Any:
    """Do a job of ``worker`` in a process of its own, with these environment variables and none of the others' kind.

    Raises:
        SslfastError: the process failed; the message is its last line.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        # -P: in a checkout that is not installed, its own folders must not come before the package that was built.
        command = [sys.executable, "-P", "-m", "sslfast.bench.worker", json.dumps(job), str(answer)]
        run = subprocess.run(command, env={**inherited, **variables}, capture_output=True, text=True)
        if run.returncode != 0 or not answer.exists():
            said = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
            raise SslfastError(f"{job.get('op', job['do'])}: {reason(said[-1])}")
        return json.loads(answer.read_text())


def correct(case: OpCase, device: str) -> str | None:
    """Return None where the operator passes its gates on ``device``, else what they say."""
    try:
        check_op(case, device)
    except AssertionError as error:
        return str(error).splitlines()[0]
    finally:
        torch.compiler.reset()
    return None
