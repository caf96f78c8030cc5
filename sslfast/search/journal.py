"""The study's journal: one line per event, which a kill or a full disk may leave torn, and which is mended here."""

import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock

from sslfast.files import write_bytes
from sslfast.progress import console

# Optuna's codes of the operations; it does not export them, so a test compares.
OPERATIONS = frozenset(range(11))
CREATE_STUDY = 0
DELETE_STUDY = 1
CREATE_TRIAL = 4
REPORT = 7


@dataclass(frozen=True)
class Repair:
    """What ``repair_journal`` found.

    Args:
        lost: number of lines that were dropped.
        kept: number of lines that are left.
        copy: the journal as it was, or None where nothing was wrong.
    """

    lost: int
    kept: int
    copy: Path | None

    def describe(self) -> str:
        """Say in a line what was lost."""
        lines = "1 damaged line" if self.lost == 1 else f"{self.lost} damaged lines"
        return f"dropped {lines} of the journal ({self.kept} kept; the old file is {self.copy}); their trials run again"


def repair_journal(path: Path) -> Repair:
    """Drop the lines of a journal that Optuna could not read, and keep a copy of the file beside it.

    Optuna refuses a journal with one torn, blank or undecodable line for ever. A journal names trials by their
    position, so a lost line that others had seen make a trial would give its followers' results to others: where the
    trials that are left are not where the lines after them say, all from the first damage on is dropped (a search that
    is resumed runs those trials again, with the same result).
    """
    if not path.exists():
        return Repair(0, 0, None)
    content = path.read_bytes()
    lines = content.split(b"\n")
    tail = lines.pop()  # what follows the last newline: nothing, in a whole journal
    entries = [_entry(line) for line in lines]
    lost = sum(entry is None for entry in entries) + bool(tail)
    if not lost:
        return Repair(0, len(lines), None)
    whole = [line for line, entry in zip(lines, entries, strict=True) if entry is not None]
    if not _in_place(entries):
        first = entries.index(None) if None in entries else len(lines)
        lost, whole = len(lines) - first + bool(tail), lines[:first]
    copy = _free_name(path)
    write_bytes(copy, content)
    write_bytes(path, b"".join(line + b"\n" for line in whole))
    return Repair(lost, len(whole), copy)


class JournalBackend(BaseJournalBackend):
    """A journal file that several processes read and append to, where what a killed one left torn costs that alone.

    The file, its lock and its lines are those of Optuna's ``JournalFileBackend``, which for one torn line fails in
    every process. Here whoever appends begins a line of its own, and whoever reads passes over lines that say nothing,
    once with a report. All pass over the same ones, as a line is read only when its end is there, so trials have the
    same numbers for all.

    Args:
        path: of the file; it is made where it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._lock = JournalFileSymlinkLock(str(self._path))
        # The lock is a link to the file, by whose age Optuna tells that its owner is dead: it has to lead there, on
        # every machine. Optuna links to the name as it was given, as seen from the file's own folder.
        self._lock._lock_target_file = path.name
        self._path.open("ab").close()
        self._next = (0, 0)  # number and place of the first line that was not read
        self._seen = 0  # up to where damage was reported

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Give the lines from a number on."""
        number, place = self._next if self._next[0] <= log_number_from else (0, 0)
        lost = 0
        try:
            with self._path.open("rb") as file:
                file.seek(place)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # it is being written, or whoever appends next ends it
                    place += len(line)
                    entry = _entry(line)
                    if entry is None:
                        lost += place > self._seen
                        continue
                    number += 1
                    self._next = number, place
                    if number > log_number_from:
                        yield entry
        finally:
            self._seen = max(self._seen, place)
            if lost:
                lines = "1 line" if lost == 1 else f"{lost} lines"
                console.print(
                    f"{lines} of {self._path.name} cannot be read (a process was killed while it wrote?); "
                    "the others count, and a trial that was lost runs again",
                    markup=False,
                )

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines that are on the disk when this returns."""
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._locked(), self._path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    content = b"\n" + content
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()


def journal_backend(path: Path) -> JournalBackend:
    """Open a journal that this process alone writes; a lock that a killed process left is removed.

    Optuna would wait half a minute for that lock. The caller holds the run folder, so nobody else can own it.
    """
    # Releasing renames the lock before it goes: a kill between the two leaves the other name.
    for left in path.parent.glob(f"{glob.escape(path.name)}.lock*"):
        left.unlink(missing_ok=True)
    return JournalBackend(path)


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("op_code"), int):
        return None
    return entry if entry["op_code"] in OPERATIONS else None


def _in_place(entries: list[dict[str, Any] | None]) -> bool:
    """Say whether every trial that is left is in a study that is there, and is the one that later lines mean.

    A trial of a folder's own journal has its number in its study with it. In a shared journal two processes may take a
    number at once; but accuracies come from the process that made the trial.
    """
    names: list[str | None] = []  # of the studies
    trials: list[int] = []  # how many each has
    makers: list[str] = []
    for entry in entries:
        if entry is None:
            continue
        code, maker = entry["op_code"], str(entry.get("worker_id")).rpartition("-")[0]  # without its thread
        if code == CREATE_STUDY:
            if entry["study_name"] not in names:  # else two processes made it at once
                names.append(entry["study_name"])
                trials.append(0)
            continue
        if "study_id" in entry and entry["study_id"] >= len(names):
            return False
        if code == DELETE_STUDY:
            names[entry["study_id"]] = None
        elif code == CREATE_TRIAL:
            study = entry["study_id"]
            if entry.get("user_attrs", {}).get("number", trials[study]) != trials[study]:
                return False
            trials[study] += 1
            makers.append(maker)
        elif code == REPORT and (entry["trial_id"] >= len(makers) or makers[entry["trial_id"]] != maker):
            return False
    return True


def _free_name(path: Path) -> Path:
    number = 1
    while (copy := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return copy
