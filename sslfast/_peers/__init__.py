"""How the losses of other libraries map to ours: one file per library, used by :func:`sslfast.accelerate`."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
        # The caller of the swapped function: above are warn_once, the fallback and the function itself.
        warnings.warn(f"accelerate: {path} {message}", stacklevel=4)
