"""Small data sets and backbones; run as a script, a server that forks children which extract and may be killed.

A child is forked from a process that has imported everything and computed nothing, so it starts within milliseconds.
"""

import json
import os
import resource
import signal
import sys
import time

import numpy as np
import torch
from torch import nn

from sslfast.data.dataset import Dataset
from sslfast.data.memory import ArrayPixels
from sslfast.errors import SslfastError
from sslfast.features import extract
from sslfast.models import Backbone, Preprocess


def make_dataset(rows, *, seed=0, labels=True, size=8, ids=None):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    return Dataset(
        "noise",
        "train",
        ArrayPixels(images),
        ids=ids or [f"train/{row:06d}" for row in range(rows)],
        labels=generator.integers(0, 3, rows) if labels else None,
        classes=("one", "two", "three") if labels else None,
    )


def make_backbone(features=5, *, seed=0, size=8):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(4 * size**2, features))
    return Backbone("tiny", network, features, Preprocess(size))


def reference_features(backbone, dataset, flip=False):
    backbone.eval()
    x = backbone.preprocess(torch.from_numpy(dataset.images(np.arange(len(dataset)))))
    with torch.no_grad():
        return backbone(x.flip(3) if flip else x)


def kill_at_call(number):
    """Die by SIGKILL just before the ``number``-th call that makes something lasting."""
    calls = 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    for name in ("fsync", "replace", "unlink", "truncate"):
        setattr(os, name, counted(getattr(os, name)))


def child(out, rows, features=5, kill_at=None, kill_after=None, limit_bytes=None, user=None, **keywords):
    torch.set_num_threads(1)
    dataset, backbone = make_dataset(rows), make_backbone(features)
    if kill_at is not None:
        kill_at_call(kill_at)
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    if user is not None:
        os.setgid(user)
        os.setuid(user)
    try:
        extract(backbone, dataset, out, **keywords)
    except SslfastError as error:
        return error.exit_code, str(error)
    return 0, ""


def start(command):
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    os.close(reader)
    try:
        status, error = child(**command)
    except BaseException as failure:
        status, error = 99, repr(failure)
    os.write(writer, error.encode())
    os._exit(status)


def serve():
    """Read lists of commands, run those of a list at the same time, and write a list of (status, error)."""
    for line in sys.stdin:
        commands = json.loads(line)
        children = [start(command) for command in commands]
        for command, (process, _) in zip(commands, children, strict=True):
            if command.get("kill_after") is not None:
                time.sleep(command["kill_after"])
                os.kill(process, signal.SIGKILL)
        answers = []
        for process, reader in children:
            with open(reader, "rb") as pipe:
                error = pipe.read().decode()
            answers.append((os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), error))
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    serve()
