"""How the losses of other libraries map to ours: one file per library, used by :func:`sslfast.accelerate`."""

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_warned: set[tuple[str, str]] = set()


class Uncovered(ValueError):
    """What was asked for is not what sslfast computes: the library's own code has to."""


@dataclass(frozen=True)
class Swap:
    """A function or method of a library and what is called in its place.

    Attributes:
        module: where it is defined.
        name: its name there; ``Class.method`` for a method.
        parameters: the names of its parameters, in order; a function with others is left alone.
        call: takes the same arguments, all of them by position. It raises TypeError or ValueError, before it has
            changed anything, where the library's own code has to run.
    """

    module: str
    name: str
    parameters: tuple[str, ...]
    call: Callable[..., Any]

    @property
    def path(self) -> str:
        """The full name."""
        return f"{self.module}.{self.name}"


def warn_once(path: str, message: str) -> None:
    """Warn about a swapped function; once in a process for each rule, whatever the value that broke it."""
    rule = message.partition(", got ")[0]
    if (path, rule) not in _warned:
        _warned.add((path, rule))
        warnings.warn(f"accelerate: {path} {message}", stacklevel=_level_of_the_user())


# torch.compile cannot look into a warning: it is given while the code is compiled. This is what
# torch.compiler.assume_constant_result does, without its import of the compiler.
warn_once._dynamo_marked_constant = True  # type: ignore[attr-defined]

_MACHINERY = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}", "<sslfast.accelerate: ")


def _level_of_the_user() -> int:
    """Return how many frames above its caller the first one is that belongs to neither PyTorch nor sslfast."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_MACHINERY):
        level, frame = level + 1, frame.f_back
    return level
