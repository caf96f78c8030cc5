"""Run folders with made-up numbers, in the shape that the commands write."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file


def make_search(trials: int, epochs: int, seed: int) -> dict[str, Any]:
    """The content of tune/result.json: every fifth trial of a long search has failed."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(trials):
        layers = int(rng.integers(1, 4))
        rate = float(10 ** rng.uniform(-4, -1))
        params = {"layers": layers, "learning_rate": rate, "dropout": float(rng.choice([0.3, 0.4, 0.5]))}
        params |= {f"units_{layer}": int(rng.integers(2, 17)) * 64 for layer in range(layers)}
        top = 0.88 - 0.02 * (math.log10(rate) + 2) ** 2 + rng.normal() * 0.004
        curve = [round(top - 0.1 * math.exp(-epoch / 2) + rng.normal() * 0.003, 4) for epoch in range(epochs)]
        failed = trials > 20 and number % 5 == 4
        found.append(
            {
                "number": number,
                "state": "FAIL" if failed else "COMPLETE",
                "params": params,
                "value": None if failed else max(curve),
                "epoch": None if failed else curve.index(max(curve)),
                "intermediate": [] if failed else curve,
                "seconds": 3.5,
                "reason": "loss became NaN" if failed else None,
            }
        )
    best = max((trial for trial in found if trial["value"] is not None), key=lambda trial: trial["value"])
    budget = {"trials": trials, "epochs": epochs, "batch_size": 64, "train_rows": 54000, "val_rows": 6000}
    return {"best": best, "trials": found, "budget": {**budget, "seconds": 61.5}, "sampler": {"name": "TPESampler"}}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder; ``parts`` names what it holds."""

    def make(
        name: str = "run",
        *,
        classes: tuple[str, ...] = ("cat", "dog", "ship"),
        trials: int = 10,
        epochs: int = 6,
        images: int = 2000,
        side: int = 28,
        steps: int = 200,
        parts: tuple[str, ...] = ("pretrain", "tune", "table", "predictions", "examples"),
        data: str = "digits",
    ) -> Path:
        folder = tmp_path / name
        for part in ("pretrain", "tune", "tune-untrained"):
            (folder / part).mkdir(parents=True)
        rng = np.random.default_rng(0)
        config = {"command": "demo", "data": data, "trials": trials, "epochs": epochs, "seed": 3, "resume": False}
        (folder / "config.json").write_text(json.dumps(config))
        if "pretrain" in parts:
            write_pretraining(folder / "pretrain", steps)
        if "tune" in parts:
            (folder / "tune" / "result.json").write_text(json.dumps(make_search(trials, epochs, 0)))
            (folder / "tune-untrained" / "result.json").write_text(json.dumps(make_search(5, epochs, 1)))
        labels = rng.integers(0, len(classes), images)
        predicted = np.where(rng.random(images) < 0.85, labels, rng.integers(0, len(classes), images))
        if "table" in parts:
            names = ("tuned head", "linear head", "logistic regression", "untrained backbone", "raw pixels")
            rows = [
                {
                    "name": row,
                    "test_accuracy": 0.86 - 0.013 * i,
                    "validation_accuracy": 0.87 - 0.01 * i,
                    "detail": "1 FC [512], lr 0.01",
                    "seconds": 12.0,
                }
                for i, row in enumerate(names)
            ]
            budget = {"pretrain": {"images": 60000, "epochs": 10}, "search": {"trials": trials, "epochs": epochs}}
            table = {"rows": rows, "budget": budget, "seeds": 1, "split": "test", "which_epoch": "best epoch"}
            (folder / "table.json").write_text(json.dumps(table))
        if "predictions" in parts:
            probabilities = np.full((images, len(classes)), 1 / len(classes), dtype=np.float32)
            save_file(
                {"labels": labels, "predicted": predicted, "probabilities": probabilities},
                folder / "predictions.safetensors",
                metadata={"classes": json.dumps(classes)},
            )
        if "examples" in parts:
            count = min(images, 8 * len(classes))
            save_file(
                {
                    "images": rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
                    "labels": labels[:count],
                    "predicted": predicted[:count],
                    "probability": rng.uniform(0.3, 1, count).astype(np.float32),
                },
                folder / "examples.safetensors",
            )
        return folder

    return make


def write_pretraining(folder: Path, steps: int) -> None:
    """Write what pretrain writes, with a last line that a kill has torn."""
    lines = [
        json.dumps(
            {
                "step": step,
                "epoch": (step + 1) / 100,
                "loss": 4 + 3 * math.exp(-step / 50),
                "learning_rate": 1e-3,
                "images": 512,
                "images_per_second": 3000.0 + step % 7,
            }
        )
        for step in range(steps)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 2')
    result = {"method": "simclr", "option_epochs": 2, "images": 60000, "steps": steps, "loss": 4.1, "seconds": 33.0}
    (folder / "result.json").write_text(json.dumps(result))
