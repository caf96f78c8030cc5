"""Run a function of a test module in several processes that are joined by gloo.

``run(file, "function", world, *arguments)`` starts ``world`` processes, imports ``file`` by its path in each, calls
``function(rank, world, *arguments)`` and returns what each one returned (anything that ``torch.save`` stores).
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as distributed


def run(file, function, world, *arguments, timeout=120):
    """Return the results by rank; fail with a rank's output where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable,
            "-P",
            str(Path(__file__)),
            folder,
            str(file),
            function,
            str(world),
            json.dumps(arguments),
        ]
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = [
            subprocess.Popen(
                [*words, str(rank)], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for rank in range(world)
        ]
        outputs = []
        try:
            for process in started:
                outputs.append(process.communicate(timeout=timeout)[0])
        finally:
            for process in started:
                process.kill()
        for rank, process in enumerate(started):
            assert process.returncode == 0, f"rank {rank} of {world} ended with {process.returncode}:\n{outputs[rank]}"
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]


def _main():
    folder, file, function, world, arguments, rank = sys.argv[1:]
    store = distributed.FileStore(str(Path(folder) / "store"), int(world))
    distributed.init_process_group("gloo", store=store, rank=int(rank), world_size=int(world))
    # As pytest does: the module may import what stands beside this file.
    sys.path.insert(0, str(Path(__file__).parent))
    spec = importlib.util.spec_from_file_location("worker", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["worker"] = module
    spec.loader.exec_module(module)
    result = getattr(module, function)(int(rank), int(world), *json.loads(arguments))
    own = Path(folder) / f"{rank}.pt"
    torch.save(result, own.with_suffix(".part"))
    own.with_suffix(".part").rename(own)
    # Nobody leaves before all are done, and then without gloo's own end: its threads sometimes abort there.
    end = time.monotonic() + 90
    while not all((Path(folder) / f"{other}.pt").exists() for other in range(int(world))):
        if time.monotonic() > end:
            sys.exit("another rank did not finish")
        time.sleep(0.01)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _main()
