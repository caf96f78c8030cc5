"""The study's journal: one line per event, which a kill or a full disk may leave torn, and which is mended here."""

import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from sslfast.files import write_bytes

# Optuna's codes of the operations; it does not export them, so a test compares.
OPERATIONS = frozenset(range(11))
CREATE_STUDY = 0
CREATE_TRIAL = 4


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

    Optuna refuses a journal with one torn, blank or undecodable line for ever, and appends to a line without its end.
    A journal names trials by their position, so a lost line that made a trial would give its followers' results to
    others: where the trials that are left are not numbered without a gap, all from the first damage on is dropped (a
    search that is resumed runs those trials again, with the same result).
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
    if not _numbered(entries):
        first = entries.index(None)
        lost, whole = len(lines) - first + bool(tail), lines[:first]
    copy = _free_name(path)
    write_bytes(copy, content)
    write_bytes(path, b"".join(line + b"\n" for line in whole))
    return Repair(lost, len(whole), copy)


def journal_backend(path: Path) -> BaseJournalBackend:
    """Open a journal that this process alone writes; a lock that a killed process left is removed.

    Optuna would wait half a minute for that lock. The caller holds the run folder, so nobody else can own it.
    """
    # Releasing renames the lock before it goes: a kill between the two leaves the other name.
    for left in path.parent.glob(f"{glob.escape(path.name)}.lock*"):
        left.unlink(missing_ok=True)
    return JournalFileBackend(str(path))


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and entry.get("op_code") in OPERATIONS else None


def _numbered(entries: list[dict[str, Any] | None]) -> bool:
    """Say whether the study is made first and trials follow one another with the numbers that they were given."""
    left = [entry for entry in entries if entry is not None]
    if left and left[0]["op_code"] != CREATE_STUDY:
        return False
    made = [entry for entry in left if entry["op_code"] == CREATE_TRIAL]
    return all(entry.get("user_attrs", {}).get("number") == number for number, entry in enumerate(made))


def _free_name(path: Path) -> Path:
    number = 1
    while (copy := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return copy
