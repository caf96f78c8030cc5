"""The tables of docs/pretrain.md that are not of timed turns: a step's shares, and what every method came to."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sslfast.bench.machine import line
from sslfast.bench.pretrain_step import NETWORKS, PARTS
from sslfast.bench.pretraining_plot import PROTOCOLS, accuracy_of
from sslfast.files import read_json
from sslfast.pretrain.methods import NAMES


def shares(path: Path) -> Iterator[str]:
    """Make the lines of where a training step's time goes, in milliseconds and per cent."""
    if not path.exists():
        yield f"Not measured yet: `python -m sslfast.bench.pretrain_step {path.name}` writes it."
        return
    found = read_json(path)
    parts = [*PARTS, "rest"]
    yield f"| network, images, side | contender | step, ms | {' | '.join(parts)} |"
    yield f"| --- | --- | ---: |{' ---: |' * len(parts)}"
    for row in found["rows"]:
        images, side, network = row["size"]
        spent: Mapping[str, float] = row["ms"]
        cells = " | ".join(f"{spent[part]:.1f} ({100 * spent[part] / spent['step']:.0f} %)" for part in parts)
        yield f"| {NETWORKS[network - 1]}, {images}, {side} | {row['contender']} | {spent['step']:.1f} | {cells} |"
    yield ""
    yield f"Measured on {line(found['machine'])}"


def methods(path: Path) -> Iterator[str]:
    """Make the lines of what every method came to on a data set, beside random backbones and raw pixels."""
    if not path.exists():
        yield f"Not measured yet: `python -m sslfast.bench.pretraining` writes `{path.name}`."
        return
    found = read_json(path)
    yield f"| features | backbone | {' | '.join(PROTOCOLS.values())} | pre-training, s |"
    yield "| --- | --- | ---: | ---: | ---: |"
    runs = found["methods"]
    for name, run in runs.items():
        trained = run["pretraining"]
        start = f"| {NAMES[name]} | {trained['option_backbone']} | {_cells(run['evaluation'])}"
        yield f"{start} | {trained['seconds']:,.0f} |"
    for network, scores in found["random_backbones"].items():
        yield f"| random weights | {network} | {_cells(scores)} | 0 |"
    yield f"| raw pixels | none | {_cells(found['raw_pixels'])} | 0 |"
    yield ""
    first = next(iter(runs.values()))
    yield (
        f"{first['evaluation']['split'][0].upper()}{first['evaluation']['split'][1:]}; "
        f"{first['pretraining']['images']:,} images x {first['pretraining']['option_epochs']} epochs, seed "
        f"{first['pretraining']['option_seed']}, the last epoch. {line(found['machine'])}"
    )


def _cells(scores: Mapping[str, Any]) -> str:
    return " | ".join(f"{accuracy_of(scores, row):.2f} %" for row in PROTOCOLS.values())


PAGES: dict[str, Callable[[Path], Iterator[str]]] = {
    "pretrain_step_shares": shares,
    "pretrain_cifar10": methods,
    "pretrain_fashion_mnist": methods,
}
"""By the name of the results file."""
