"""Who runs: ours, the reference eager and compiled, and the peers that a case names."""

from collections.abc import Callable

import torch
from torch import Tensor

from sslfast.testing import OpCase

OURS = "sslfast"
EAGER = "reference eager"
COMPILED = "reference torch.compile"
GRAPH = "graph"
"""Ends the name of a contender whose passes are replayed as CUDA graphs: ``sslfast, graph``."""


def names(case: OpCase, compiled: bool = True) -> tuple[str, ...]:
    """Return the names of all contenders of a case, installed or not."""
    return (OURS, EAGER, *([COMPILED] if compiled else []), *case.peers)


def contenders(case: OpCase, compiled: bool = True) -> tuple[dict[str, Callable[..., Tensor]], dict[str, str]]:
    """Return the contenders by name, ours first, and the reason for each one that is missing."""
    found, missing = {}, {}
    for name in names(case, compiled):
        try:
            found[name] = contender(case, name)
        except ImportError as error:
            missing[name] = f"not installed ({error})"
    return found, missing


def contender(case: OpCase, name: str) -> Callable[..., Tensor]:
    """Return one contender of a case; a peer that is not installed raises ImportError."""
    if name == OURS:
        return case.function
    if name == EAGER:
        return case.reference
    if name == COMPILED:
        return torch.compile(case.reference)
    return case.peers[name]()


def reason(message: str) -> str:
    """Put on one line why a contender did not run."""
    if "can't allocate memory" in message or "out of memory" in message or message.strip() == "MemoryError:":
        return "not enough memory"
    return " ".join(message.split())[:200]
