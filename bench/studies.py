"""Puts a finished study into a results file: its table without times, its command, and the machine.

``python -m sslfast.bench.studies FOLDER OUT.json``, FOLDER being that of ``sslfast study``.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sslfast.bench.machine import machine
from sslfast.files import read_json, write_json
from sslfast.study.config import STUDIES

TIMES = ("seconds", "iteration_ms", "time_to_accuracy")
"""In the names of what differs from run to run."""


def without_times(value: Any) -> Any:
    """Give a table without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if not any(time in key for time in TIMES)}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def command(config: Mapping[str, Any], seeds: int) -> str:
    """Write the command that made a study; of checkpoints only the files' names, not where they lay."""
    default = STUDIES[config["study"]]()
    words = ["sslfast", "study", config["study"]]
    for field in fields(default):
        value = seeds if field.name == "seeds" else config[field.name]
        if value == json.loads(json.dumps(getattr(default, field.name))):
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
            continue
        words += [f"--{name}", *(_without_folder(str(one)) for one in (value if isinstance(value, list) else [value]))]
    return shlex.join(words)


def _without_folder(text: str) -> str:
    name, found, checkpoint = text.partition("=")
    return f"{name}={Path(checkpoint).name}" if found else text


def collect(folder: Path) -> dict[str, Any]:
    """Gather what a study wrote; nothing of where it lies."""
    table = read_json(folder / "table.json")
    return {
        "command": command(read_json(folder / "config.json"), len(table["seeds"])),
        "machine": machine(),
        "note": "times are left out: they are no benchmark",
        "table": without_times(table),
    }


def main(words: Sequence[str]) -> int:
    """Collect."""
    if len(words) != 2:
        print("usage: python -m sslfast.bench.studies FOLDER OUT.json", file=sys.stderr)
        return 2
    write_json(Path(words[1]), collect(Path(words[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
