"""The file of measured rows: JSON lines, a line per machine first, then a line per contender, pass and allocator."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sslfast.bench.limits import better, floor_ms
from sslfast.errors import DataError
from sslfast.files import writing

Row = dict[str, Any]
KEY = ("op", "contender", "mode", "size", "options", "dtype", "device", "allocator")
FIELDS = (
    *KEY,
    *("samples", "median_ms", "p20_ms", "p80_ms", "fastest_ms", "peak_mb", "rss_mb", "memory_skipped", "skipped"),
    *("operations", "bytes", "floor_ms", "fraction", "machine"),
)
"""A row's entries in the order in which they are written; a row holds those that apply."""
CHANGING = ("load", "limits", "commit")
"""What a machine's line holds beside what its id is made of; a build is one whatever the commit is called."""


def identify(machine: Mapping[str, Any]) -> str:
    """Return the id of a machine: of its hardware, versions and build."""
    stable = {name: value for name, value in machine.items() if name not in CHANGING}
    return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:10]


class Results:
    """Rows by what was measured; a new measurement takes the place of the old one, whatever machine that ran on.

    Args:
        path: of the file, which may be missing; None keeps everything in memory.

    Raises:
        DataError: the file holds something else.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.machines: dict[str, dict[str, Any]] = {}
        self._rows: dict[tuple[Any, ...], Row] = {}
        if path is not None and path.exists():
            try:
                for text in path.read_text().splitlines():
                    row = json.loads(text)
                    if "op" in row:
                        self._rows[_key(row)] = row
                    else:
                        self.machines[row.pop("machine")] = row
            except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
                raise DataError(f"{path} holds no benchmark rows, JSON lines are expected: {error}") from None
            lost = {str(row.get("machine")) for row in self.rows()} - set(self.machines)
            if lost:
                raise DataError(f"{path} has rows of machine {min(lost)}, which no line describes")

    def rows(self, **wanted: Any) -> Iterator[Row]:
        """Go through the rows whose entries are as given."""
        for row in self._rows.values():
            if all(row.get(name) == value for name, value in wanted.items()):
                yield row

    def enter(self, machine: Mapping[str, Any], limits: Mapping[str, Mapping[str, float]]) -> str:
        """Add a machine, or what was measured of it again, and return its id."""
        key = identify(machine)
        old = self.machines.get(key, {}).get("limits", {})
        joined = {name: better(old.get(name, {}), limits.get(name, {})) for name in {**old, **limits}}
        self.machines[key] = {**machine, "limits": joined}
        for row in self.rows(machine=key):
            self._floor(row)
        return key

    def put(self, row: Row) -> None:
        """Add a row, or replace the one of the same contender, pass, size and so on."""
        place = {**row, "mode": ""}
        for key, old in list(self._rows.items()):  # a contender either has numbers or a reason why not
            if ("skipped" in old) != ("skipped" in row) and _key({**old, "mode": ""}) == _key(place):
                del self._rows[key]
        self._floor(row)
        self._rows[_key(row)] = row

    def drop(self, op: str, device: str) -> None:
        """Forget an operator's rows on a device."""
        self._rows = {key: row for key, row in self._rows.items() if (row["op"], row["device"]) != (op, device)}

    def save(self) -> None:
        """Write the file, whole or not at all; machines without rows are left out."""
        if self.path is None:
            return
        used = {row["machine"] for row in self._rows.values()}
        lines = [{"machine": key, **line} for key, line in self.machines.items() if key in used]
        lines += [{name: row[name] for name in FIELDS if name in row} for row in self._rows.values()]
        with writing(self.path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def _floor(self, row: Row) -> None:
        limit = self.machines[row["machine"]]["limits"].get(f"{row['device']} {row['dtype']}")
        if limit and "operations" in row and row.get("median_ms"):
            floor = floor_ms(row["operations"], row["bytes"], limit)
            row |= {"floor_ms": round(floor, 5), "fraction": round(floor / row["median_ms"], 4)}


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(json.dumps(row.get(name), sort_keys=True) for name in KEY)
