"""Make another library's losses run on sslfast's kernels, in place: ``sslfast.accelerate("lightly")``.

What is swapped is the code of a function, not a name: ``function.__code__`` becomes a call into this module with the
same parameters. So every reference follows, however and whenever it was made: ``from solo.losses.simclr import
simclr_loss_func`` before the call, an instance built long ago, a subclass's ``super().forward``, a bound method in a
closure. Classes, instances and function objects stay the same objects, so ``isinstance``, ``state_dict``, ``deepcopy``
and pickles (which name classes and functions) do not notice, and putting the old code back undoes everything.
"""

import importlib
import inspect
import itertools
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any

import torch
from torch.autograd import forward_ad

from sslfast._peers import Swap, lightly, solo, warn_once
from sslfast.errors import first_line


@dataclass(frozen=True)
class _Library:
    package: str
    install: str
    swaps: tuple[Swap, ...]


_LIBRARIES = {
    "lightly": _Library("lightly", "lightly", lightly.SWAPS),
    "solo": _Library("solo", "solo-learn", solo.SWAPS),
}


@dataclass
class _Swapped:
    """A function of a library, both its codes, and how many accelerations want ours."""

    name: str
    function: FunctionType
    theirs: CodeType
    ours: CodeType
    wanted: int = 0


_swapped: dict[FunctionType, _Swapped] = {}
"""Kept for ever: code that was compiled around a swapped function serves the next acceleration too."""
_calls: dict[int, Callable[..., Any]] = {}
"""What the swapped code calls, by number."""
_accelerations: list["Acceleration"] = []
"""Those in force."""
_numbers = itertools.count()
_lock = threading.RLock()


class Acceleration:
    """What :func:`accelerate` returns: ``restore()`` puts the library's own code back, as leaving ``with`` does.

    Where several are in force, the library's code returns with the last one, in whatever order they end. One that has
    ended begins again with the next ``with``.
    """

    def __init__(self, library: str) -> None:
        self.library = library
        self._begin()

    def _begin(self) -> None:
        with _lock:
            self._entries = _begin(self.library)
            self._in_force = True
            _accelerations.append(self)

    @property
    def swapped(self) -> tuple[str, ...]:
        """The full names of what was swapped."""
        return tuple(entry.name for entry in self._entries)

    def restore(self) -> None:
        """End this acceleration; a second call does nothing."""
        with _lock:
            if not self._in_force:
                return
            self._in_force = False
            _accelerations.remove(self)
            for entry in self._entries:
                entry.wanted -= 1
                if entry.wanted == 0:
                    entry.function.__code__ = entry.theirs

    def restore_all(self) -> None:
        """End every acceleration of this library, those too whose results nobody kept, wherever they were begun."""
        with _lock:
            for acceleration in [one for one in _accelerations if one.library == self.library]:
                acceleration.restore()

    def __enter__(self) -> "Acceleration":
        """Hold it: it is in force already, or begins again."""
        with _lock:
            if not self._in_force:
                self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it, after an error too."""
        self.restore()

    def __repr__(self) -> str:
        """Say what was swapped and whether it still is."""
        state = "in force" if self._in_force else "ended"
        return f"<sslfast.accelerate({self.library!r}), {state}: {', '.join(self.swapped)}>"


def accelerate(library: str) -> Acceleration:
    """Let the losses of an installed library call sslfast's, until the result's ``restore()`` or the end of ``with``.

    ``"lightly"``: NTXentLoss, BarlowTwinsLoss, SwaVLoss, and the ``sinkhorn`` of the last. ``"solo"`` (solo-learn):
    ``simclr_loss_func``, ``barlow_loss_func``, ``swav_loss_func`` and SinkhornKnopp, those of them whose modules can be
    imported. Objects that exist already, and names imported already, are swapped too. What sslfast does not compute the
    same way goes to the library's own code, with one warning per reason; docs/losses.md lists it.

    Args:
        library: ``"lightly"`` or ``"solo"``.

    Raises:
        ValueError: another name.
        ImportError: the library is not installed, cannot be imported, or has nothing that is known here.
    """
    if not isinstance(library, str) or library not in _LIBRARIES:
        known = " or ".join(map(repr, _LIBRARIES))
        raise ValueError(f"accelerate: library must be {known}, got {library!r}")
    return Acceleration(library)


def _begin(library: str) -> tuple[_Swapped, ...]:
    peer = _LIBRARIES[library]
    modules, failures = _import(peer)
    with _lock:
        found = _find(peer, modules)
        if not found:
            why = "; ".join(failures) or "its functions have other parameters than those known here"
            raise ImportError(f"accelerate: no loss of {peer.install} to swap: {why}", name=peer.package)
        return tuple(_swap(function, swap) for function, swap in found.items())


def _import(peer: _Library) -> tuple[dict[str, ModuleType], list[str]]:
    """Import the modules that hold the losses; say which could not be imported, and why."""
    if peer.package not in sys.modules and find_spec(peer.package) is None:
        raise ImportError(
            f"accelerate: {peer.install} is not installed; install it with: pip install {peer.install}",
            name=peer.package,
        )
    modules, failures = {}, []
    # A package whose own import fails half-way (solo-learn 1.0.2 needs packages that the losses do not) leaves behind
    # those of its modules that were imported by then.
    for name in dict.fromkeys([peer.package, *(swap.module for swap in peer.swaps)]):
        try:
            modules[name] = importlib.import_module(name)
        except Exception as error:  # anything that another package's import meets
            failures.append(f"{name} cannot be imported ({first_line(error)})")
    return modules, failures


def _find(peer: _Library, modules: dict[str, ModuleType]) -> dict[FunctionType, Swap]:
    """Match the functions of the installed version with the swaps, by name and parameters."""
    found: dict[FunctionType, Swap] = {}
    unknown: dict[str, str] = {}
    for swap in peer.swaps:
        if swap.module not in modules:
            continue
        outer: Any = modules[swap.module]
        for name in swap.name.split("."):
            outer = getattr(outer, name, None)
        # Beneath decorators such as torch.no_grad(), which stay in force.
        function = inspect.unwrap(outer) if callable(outer) else None
        if not isinstance(function, FunctionType):
            unknown[swap.path] = "not a function"
        elif tuple(inspect.signature(function).parameters) == swap.parameters and not function.__code__.co_freevars:
            found[function] = swap
        else:
            unknown[swap.path] = f"parameters {inspect.signature(function)}"
    for path, what in unknown.items():
        if path not in {swap.path for swap in found.values()}:
            warn_once(path, f"is unlike what is known here ({what}); left as it is")
    return found


def _swap(function: FunctionType, swap: Swap) -> _Swapped:
    entry = _swapped.get(function)
    if entry is None or (entry.wanted == 0 and entry.theirs is not function.__code__):
        number = next(_numbers)
        _calls[number] = _with_fallback(swap, _copy(function))
        entry = _swapped[function] = _Swapped(swap.path, function, function.__code__, _trampoline(swap, number))
    function.__code__ = entry.ours
    entry.wanted += 1
    return entry


def _copy(function: FunctionType) -> FunctionType:
    """Return a function that keeps the present code."""
    copy = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _trampoline(swap: Swap, number: int) -> CodeType:
    """Return code with the function's own parameters, so that its signature and defaults stay, that calls ours.

    It runs with the globals of the other library's module: it has to import what it names.
    """
    name, arguments = swap.name.rpartition(".")[2], ", ".join(swap.parameters)
    source = (
        f"def {name}({arguments}):\n from sslfast.accelerate import _calls\n return _calls[{number}]({arguments})\n"
    )
    namespace: dict[str, Any] = {}
    exec(compile(source, f"<sslfast.accelerate: {swap.path}>", "exec"), namespace)
    code: CodeType = namespace[name].__code__
    return code


def _with_fallback(swap: Swap, original: FunctionType) -> Callable[..., Any]:
    """Call sslfast's loss; where it refuses an argument, say so once and call the library's own code."""

    def call(*arguments: Any) -> Any:
        if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
            reason = "a forward-mode derivative is wanted"
        else:
            try:
                return swap.call(*arguments)
            except (TypeError, ValueError) as refusal:
                reason = str(refusal)
        warn_once(swap.path, f"runs {swap.module.partition('.')[0]}'s own code: {reason}")
        return original(*arguments)

    return call
