"""Puts a pre-training, its curve and its evaluation beside a random backbone's into one results file.

RUN is the folder of ``sslfast pretrain``, SCORED that of ``sslfast evaluate`` of its backbone, RANDOM that of the same
evaluation with ``--random-weights``: ``python -m sslfast.bench.pretraining RUN SCORED RANDOM OUT.json``.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslfast.bench.machine import machine
from sslfast.files import read_json, writing

POINTS = 100
"""Of the loss's curve, at most: each is a mean over equally many steps."""


def collect(run: Path, scored: Path, random: Path) -> dict[str, Any]:
    """Gather what the three runs wrote; nothing of where they lie."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    part = -(-len(losses) // POINTS)
    curve = [round(statistics.mean(losses[at : at + part]), 4) for at in range(0, len(losses), part)]
    return {
        "machine": machine(),
        "data": read_json(run / "config.json")["data"],
        "pretraining": read_json(run / "result.json"),
        "loss": {"steps_of_a_point": part, "points": curve},
        "evaluation": _scores(scored),
        "random_backbone": _scores(random),
    }


def _scores(folder: Path) -> dict[str, Any]:
    result = read_json(folder / "result.json")
    return {key: result[key] for key in ("split", "rows", "seeds") if key in result}


def main(words: Sequence[str]) -> int:
    """Collect."""
    if len(words) != 4:
        print("usage: python -m sslfast.bench.pretraining RUN SCORED RANDOM OUT.json", file=sys.stderr)
        return 2
    found = collect(*map(Path, words[:3]))
    with writing(Path(words[3])) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
