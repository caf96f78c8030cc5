"""A process that trains heads for a search: jobs come on standard input, messages go to a pipe, one JSON per line."""

import json
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sslfast.errors import first_line
from sslfast.models.head import HeadSpec
from sslfast.search.pool import attach, save_weights, weights_path
from sslfast.search.train import Recipe, Rows, train_head


def main() -> None:
    """Read the task, then train one job after another until standard input ends."""
    memory, reply = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    lines = _lines()
    task = json.loads(next(lines))
    rows = Rows(**attach(memory, task["layout"]), classes=task["classes"])
    recipe = Recipe(**task["recipe"])
    folder = Path(task["folder"])

    def send(**content: Any) -> None:
        os.write(reply, json.dumps(content).encode() + b"\n")

    for line in lines:
        job = json.loads(line)
        number = job["number"]
        spec = HeadSpec(tuple(job["spec"]["units"]), job["spec"]["dropout"], job["spec"]["learning_rate"])
        start = time.monotonic()

        def on_epoch(epoch: int, accuracy: float, number: int = number) -> None:
            send(number=number, epoch=epoch, accuracy=accuracy)

        try:
            trained = train_head(spec, rows, recipe, number, on_epoch)
        except (RuntimeError, MemoryError) as error:
            send(number=number, error=f"{type(error).__name__}: {error}", seconds=time.monotonic() - start)
            continue
        try:
            save_weights(trained, weights_path(folder, number))
        except Exception as error:  # safetensors raises its own kinds; a full disk is no fault of the trial
            send(number=number, stop=first_line(error))
            return
        send(
            number=number,
            accuracies=trained.accuracies,
            best_epoch=trained.epoch,
            value=trained.value if math.isfinite(trained.value) else None,
            seconds=time.monotonic() - start,
        )


def _lines() -> Iterator[str]:
    """Give the lines of standard input; the process ends at once when it closes, in the middle of a trial too.

    A thread of its own reads, so that a search that was killed leaves no worker behind.
    """
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


if __name__ == "__main__":
    main()
