"""What checkpoints hold besides weights: a project's own objects, and what somebody means harm with."""

import argparse
import os
from typing import Any

import torch


class Bomb:
    """What a malicious file runs: it leaves a file behind."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch exploded",))


class Queue:
    """An object of a project's own class, as Self-Classifier's NNQueue, with weights inside."""

    rebuilt = 0

    def __init__(self) -> None:
        self.queue = torch.zeros(3, 4)
        self.full = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        Queue.rebuilt += 1
        self.__dict__.update(state)


def strays() -> dict[str, Any]:
    """What public files hold besides weights, and what a malicious one would."""
    return {"args": argparse.Namespace(lr=0.1, arch="resnet50"), "nn_queue": Queue(), "bomb": Bomb()}
