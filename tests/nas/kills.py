"""A program that searches and kills: ``python kills.py FOLDER KILLS SEED`` prints what came of it as JSON.

Every search is a fork of this process, which has imported everything and computed nothing.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from sslfast.data import load
from sslfast.nas.config import SearchConfig
from sslfast.nas.loop import search
from sslfast.run import Run

CONFIG = SearchConfig(
    s=0.5,
    balance="gradient",
    cells=(3, 3),
    operations=(8, 3),
    skip_dropout=(0.2, 0.5),
    channels=4,
    epochs=3,
    alpha_from=1,
    batch_size=8,
    projection=16,
)


def start(folder, save_seconds=0.0):
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        with Run(folder, {}, resume=True) as run:
            search(load("digits", "train").subset(range(32)), CONFIG, run, device="cpu", save_seconds=save_seconds)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def finish(child):
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "a search failed"


def result(folder):
    told = json.loads((folder / "result.json").read_text())
    told.pop("seconds")
    return (folder / "metrics.jsonl").read_text(), told


def main(folder, kills, seed):
    folder, moments = Path(folder), random.Random(int(seed))
    started = time.monotonic()
    finish(start(folder / "unbroken", 1e9))
    longest = (time.monotonic() - started) / 2
    want = result(folder / "unbroken")
    done = ended = 0
    while done < int(kills):
        broken = folder / f"broken-{ended}"
        child = start(broken)
        time.sleep(moments.uniform(0.05, longest))
        if os.waitpid(child, os.WNOHANG) != (0, 0):  # it was done before the kill: that counts as none
            assert result(broken) == want, "a search that was killed earlier ended otherwise"
            ended += 1
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
    broken = folder / f"broken-{ended}"
    finish(start(broken))
    print(json.dumps({"kills": done, "equal": result(broken) == want, "ended": ended + 1}))


if __name__ == "__main__":
    main(*sys.argv[1:])
