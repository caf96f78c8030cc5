"""Trains every method on a data set and scores it beside a random backbone and raw pixels, into one results file.

``python -m sslfast.bench.pretraining DATA FOLDER OUT.json [--png OUT.png] [--data-dir DIR] [--epochs 10]`` does what
``sslfast pretrain`` and ``sslfast evaluate`` do, one run folder after the other; stopped, the same command goes on.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslfast.bench.machine import machine
from sslfast.files import read_json, writing

METHODS = ("simclr", "swav", "barlow-twins", "self-classifier", "autoencoder", "supervised")
NETWORKS = ("resnet20", "conv-autoencoder")
"""The backbone of every method, and the autoencoder's own."""
POINTS = 100
"""Of the loss's curve, at most: each is a mean over equally many steps."""
STRENGTHS = tuple(10.0**power for power in range(-4, 2))
"""C of the logistic regression on raw pixels, which are many: every power of ten."""
ONLINE = "held_out_"


def backbone_of(method: str) -> str:
    """Name what a method trains here."""
    return NETWORKS[method == "autoencoder"]


def run_all(data: str, folder: Path, root: Path | None, epochs: int) -> None:
    """Train and score what the folder does not hold yet."""
    where = ["--data", data, *(["--data-dir", str(root)] if root else [])]
    for method in METHODS:
        options = ["--backbone", backbone_of(method), "--epochs", str(epochs), "--probe-every", "1"]
        _sslfast(["pretrain", method, *where, *options], folder / method)
        trained = ["--backbone", str(folder / method / "backbone.safetensors")]
        _evaluate([*where, *trained], folder / f"{method}-scored")
    for network in NETWORKS:
        _evaluate([*where, "--backbone", network, "--random-weights"], folder / f"{network}-random-scored")
    pixels = folder / "pixels.json"
    if not pixels.exists():
        found = raw_pixel_scores(data, root)
        with writing(pixels) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n")


def raw_pixel_scores(data: str, root: Path | None) -> list[dict[str, Any]]:
    """Score the pixels themselves by the protocols that backbones are scored by."""
    import torch

    from sslfast.data import load
    from sslfast.evaluate import ProbeConfig, knn, linear_probe
    from sslfast.recipes.rows import raw_pixels

    train, test = (load(data, split, root=root) for split in ("train", "test"))
    given = [(raw_pixels(part), torch.as_tensor(part.labels).long()) for part in (train, test)]
    begin = time.monotonic()
    rows = [{"name": score.name, "test_accuracy": score.accuracy} for score in knn(*given)]
    middle = time.monotonic()
    probe = linear_probe(*given, ProbeConfig(solver="lbfgs", strengths=STRENGTHS))
    fitted = {"name": probe.probe.name, "test_accuracy": probe.accuracy, "detail": probe.probe.detail}
    fitted["seconds"] = time.monotonic() - middle
    return [fitted, *({**row, "seconds": middle - begin} for row in rows)]


def collect(folder: Path) -> dict[str, Any]:
    """Gather what the runs of a folder wrote; nothing of where it lies."""
    runs = {}
    for method in METHODS:
        run = folder / method
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        runs[method] = {
            "pretraining": read_json(run / "result.json"),
            "loss": _curve([line["loss"] for line in lines if "loss" in line]),
            "online": [
                {key: line[key] for key in ("epoch", "step", f"{ONLINE}knn", f"{ONLINE}linear") if key in line}
                for line in lines
                if f"{ONLINE}knn" in line
            ],
            "evaluation": _scores(folder / f"{method}-scored"),
        }
    return {
        "machine": machine(),
        "data": read_json(folder / METHODS[0] / "config.json")["data"],
        "methods": runs,
        "random_backbones": {
            network: _scores(folder / f"{network}-random-scored")
            for network in dict.fromkeys(map(backbone_of, METHODS))
        },
        "raw_pixels": {"rows": read_json(folder / "pixels.json")},
    }


def _curve(losses: Sequence[float]) -> dict[str, Any]:
    part = max(1, -(-len(losses) // POINTS))
    points = [round(statistics.mean(losses[at : at + part]), 4) for at in range(0, len(losses), part)]
    return {"steps_of_a_point": part, "points": points}


def _scores(folder: Path) -> dict[str, Any]:
    result = read_json(folder / "result.json")
    return {key: result[key] for key in ("split", "rows", "seeds") if key in result}


def _evaluate(what: Sequence[str], out: Path) -> None:
    _sslfast(["evaluate", *what, "--protocols", "knn", "lbfgs", "--shared", "skip", "--examples", "0"], out)


def _sslfast(words: Sequence[str], out: Path) -> None:
    """Run a command to its end, or go on with it."""
    if (out / "result.json").exists():
        return
    again = ["--resume"] if (out / "config.json").exists() else []
    subprocess.run([sys.executable, "-P", "-m", "sslfast.cli.main", *words, "--out", str(out), *again], check=True)


def main(words: Sequence[str]) -> int:
    """Run, collect and draw."""
    parser = argparse.ArgumentParser(prog="python -m sslfast.bench.pretraining", description=run_all.__doc__)
    parser.add_argument("data", help="a data set's name")
    parser.add_argument("folder", type=Path, help="where the run folders go")
    parser.add_argument("out", type=Path, help="results file to write")
    parser.add_argument("--png", type=Path, help="picture to draw")
    parser.add_argument("--data-dir", type=Path, help="where data sets lie, before the usual places")
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args(words)
    if asked.png is not None:
        from sslfast.bench.plots import check

        check(asked.png)
    asked.folder.mkdir(parents=True, exist_ok=True)
    run_all(asked.data, asked.folder, asked.data_dir, asked.epochs)
    found = collect(asked.folder)
    with writing(asked.out) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n")
    if asked.png is not None:
        from sslfast.bench.pretraining_plot import draw

        draw(found, asked.png)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
