"""A program that trains and kills: ``python kills.py FOLDER METHODS KILLS SEED`` prints what came of each as JSON.

Every training is a fork of this process, which has imported everything and computed nothing, so that hundreds of kills
take seconds each and not minutes.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import quick  # noqa: E402
import torch  # noqa: E402

from sslfast.pretrain.loop import pretrain  # noqa: E402
from sslfast.run import Run  # noqa: E402
from sslfast.tensors import read_tensors  # noqa: E402

# Parts of the state that no method has by default.
CHANGES = {
    "simclr": {"ema": 0.9, "accumulate": 2, "probe_every": 1},
    "barlow-twins": {"optimizer": "lars", "learning_rate": 0.2},
    "supervised": {"optimizer": "sgd", "learning_rate": 0.05},
}


def start(folder, method, epochs, save_seconds=0.0):
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        config = quick.config(method, epochs=epochs, **CHANGES.get(method, {}))
        with Run(folder, {}, resume=True) as run:
            pretrain(quick.digits(), config, run, image_size=quick.SIZE, device="cpu", save_seconds=save_seconds)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def finish(child):
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "a training failed"


def result(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    files = []
    for name in ("backbone", "method"):  # not their bytes: the order of a file's metadata is random
        tensors, metadata = read_tensors(folder / f"{name}.safetensors")
        files.append((metadata, {key: value.numpy().tobytes() for key, value in tensors.items()}))
    return lines, files


def steps(folder):
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def kill(folder, method, kills, moments):
    epochs = 2 if kills == 1 else 12
    finish(start(folder / "unbroken", method, epochs, 1e9))
    want = result(folder / "unbroken")
    done = at_end = 0
    while done < kills:
        broken = folder / f"broken-{at_end}"
        child = start(broken, method, epochs)
        if kills == 1:  # surely in the middle
            while steps(broken) < 6:
                time.sleep(0.001)
        else:
            time.sleep(moments.uniform(0.05, 1.5))
        if os.waitpid(child, os.WNOHANG) != (0, 0):  # it was done before the kill: that counts as none
            assert result(broken) == want, "a training that was killed earlier ended otherwise"
            at_end += 1
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
    broken = folder / f"broken-{at_end}"
    kept = (broken / "training.safetensors").exists()
    finish(start(broken, method, epochs))
    return {"kills": done, "equal": result(broken) == want, "kept": kept, "lines": len(want[0])}


def main(folder, methods, kills, seed):
    moments = random.Random(int(seed))
    found = {method: kill(Path(folder) / method, method, int(kills), moments) for method in methods.split(",")}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
