"""Trains the trials of a batch side by side: worker processes of one thread each that share one copy of the rows."""

import dataclasses
import json
import mmap
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sslfast.errors import SslfastError
from sslfast.models.head import HeadSpec
from sslfast.search.train import Recipe, Rows, Trained, train_head
from sslfast.tensors import read_tensors

Job = tuple[int, HeadSpec]
"""A trial's number and its head."""

Message = dict[str, Any]
"""``{number, epoch, accuracy}`` after an epoch; ``{number, trained, seconds}`` at the end; ``{number, error, seconds}``
where training raised."""

ALLOCATOR = {
    # Freed activations stay in the process: by default each above 128 KiB is mapped and paged in anew in every step.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch to one thread: sums are then in the same order on every machine, whatever its number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_here(jobs: Sequence[Job], rows: Rows, recipe: Recipe) -> Iterator[Message]:
    """Train jobs one after another in this process; yields messages, those of an epoch after the job has ended."""
    for number, spec in jobs:
        epochs: list[Message] = []
        start = time.monotonic()

        def on_epoch(epoch: int, accuracy: float, number: int = number, epochs: list[Message] = epochs) -> None:
            epochs.append({"number": number, "epoch": epoch, "accuracy": accuracy})

        try:
            with one_thread():
                trained = train_head(spec, rows, recipe, number, on_epoch)
            end: Message = {"trained": trained}
        except (RuntimeError, MemoryError) as error:  # out of memory, say: the trial fails, the search goes on
            end = {"error": f"{type(error).__name__}: {error}"}
        yield from epochs
        yield {"number": number, "seconds": time.monotonic() - start, **end}


class Workers:
    """Processes that train heads; they end when they are closed and when this process dies.

    Each runs ``python -m sslfast.search.worker``, so that a script without an ``if __name__ == "__main__"`` works. The
    features lie in a memory file without a name, which all of them map: no copy, and none of /dev/shm, which
    containers keep small.

    Args:
        count: number of processes.
        rows: what they train on; on the CPU.
        recipe: how.
        folder: an existing folder where they put weights for a moment.
    """

    def __init__(self, count: int, rows: Rows, recipe: Recipe, folder: Path) -> None:
        self._folder = folder
        descriptor, layout = share({name: getattr(rows, name) for name in TENSORS})
        task = {
            "layout": layout,
            "classes": rows.classes,
            "recipe": dataclasses.asdict(recipe),
            "folder": os.fsdecode(folder),
        }
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._replies: list[int] = []
        try:
            for _ in range(count):
                reply, send = os.pipe()
                self._replies.append(reply)
                try:
                    process = subprocess.Popen(
                        # -P: a file in the working folder that is called as a module is not imported in its place.
                        [sys.executable, "-P", "-m", "sslfast.search.worker", str(descriptor), str(send)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.DEVNULL,
                        pass_fds=(descriptor, send),
                        env=environment,
                    )
                finally:
                    os.close(send)
                self._processes.append(process)
                _send(process, task)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(descriptor)

    def train(self, jobs: Sequence[Job]) -> Iterator[Message]:
        """Train jobs, the costliest first; yields messages as they come, of all jobs mixed.

        Raises:
            SslfastError: a worker died.
        """
        waiting = sorted(jobs, key=lambda job: (cost(job[1]), job[0]))
        pending = len(waiting)
        texts = [b""] * len(self._processes)
        working: dict[int, int] = {}
        with selectors.DefaultSelector() as selector:
            for index, reply in enumerate(self._replies):
                selector.register(reply, selectors.EVENT_READ, index)
                self._next(index, waiting, working)
            while pending:
                for key, _ in selector.select():
                    index = key.data
                    content = os.read(key.fd, 65536)
                    if not content:
                        code = self._processes[index].wait()
                        how = f"was killed by signal {-code} (memory?)" if code < 0 else f"ended with code {code}"
                        trial = f" in trial {working[index]}" if index in working else ""
                        raise SslfastError(
                            f"a worker process {how}{trial}; --resume continues, fewer workers need less"
                        )
                    *lines, texts[index] = (texts[index] + content).split(b"\n")
                    for line in lines:
                        message = json.loads(line)
                        if "stop" in message:
                            raise SslfastError(
                                f"a worker process cannot write in {self._folder}: {message['stop']}; "
                                "make room, --resume continues"
                            )
                        if "epoch" not in message:
                            pending -= 1
                            working.pop(index, None)
                            self._next(index, waiting, working)
                        yield self._with_weights(message)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        for reply in self._replies:
            os.close(reply)
        self._processes, self._replies = [], []

    def _next(self, index: int, waiting: list[Job], working: dict[int, int]) -> None:
        if waiting:
            number, spec = waiting.pop()
            working[index] = number
            _send(self._processes[index], {"number": number, "spec": dataclasses.asdict(spec)})

    def _with_weights(self, message: Message) -> Message:
        if "value" not in message:
            return message
        path = weights_path(self._folder, message["number"])
        weights = tuple(weight for _, weight in sorted(read_tensors(path)[0].items()))
        path.unlink()
        trained = Trained(
            tuple(message["accuracies"]),
            message["best_epoch"],
            float("nan") if message["value"] is None else message["value"],
            weights,
        )
        return {"number": message["number"], "trained": trained, "seconds": message["seconds"]}


TENSORS = ("features", "labels", "validation_features", "validation_labels", "mean", "std")
"""The fields of ``Rows`` that are tensors."""


def cost(spec: HeadSpec) -> int:
    """Give the number of multiplications per row up to the last hidden layer, without the first: enough to sort by."""
    return sum(a * b for a, b in zip(spec.units, spec.units[1:], strict=False)) + sum(spec.units)


def weights_path(folder: Path, number: int) -> Path:
    """Name the file in which a worker hands over the weights of a trial."""
    return folder / f"trial-{number}.safetensors.partial"


def save_weights(trained: Trained, path: Path) -> None:
    """Write weights in their order; the file lives for a moment only, so it is not flushed to the disk."""
    save_file({f"{index:04}": weight.contiguous() for index, weight in enumerate(trained.weights)}, path)


def share(tensors: dict[str, Tensor]) -> tuple[int, dict[str, Any]]:
    """Copy tensors into a memory file; gives its descriptor and what ``attach`` needs to find them again."""
    layout: dict[str, Any] = {}
    size = 0
    for name, tensor in tensors.items():
        layout[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "at": size}
        size += -(-tensor.numel() * tensor.element_size() // 64) * 64
    descriptor = os.memfd_create("sslfast-rows")
    try:
        os.ftruncate(descriptor, size)
        for name, view in attach(descriptor, layout).items():
            view.copy_(tensors[name])
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, layout


def attach(descriptor: int, layout: dict[str, Any]) -> dict[str, Tensor]:
    """Give the tensors of a memory file that ``share`` filled, without a copy."""
    memory = mmap.mmap(descriptor, 0)
    tensors = {}
    for name, entry in layout.items():
        dtype = getattr(torch, entry["dtype"])
        count = 1
        for length in entry["shape"]:
            count *= length
        tensors[name] = torch.frombuffer(memory, dtype=dtype, count=count, offset=entry["at"]).view(entry["shape"])
    return tensors


def _send(process: subprocess.Popen[bytes], content: Message) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(content).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return  # it has died: its reply pipe says so, with more to tell
