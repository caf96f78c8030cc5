"""Importing a foreign checkpoint: what fits, what is left out, and a report of all that was found."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sslfast.errors import SslfastError
from sslfast.models.architectures import outline
from sslfast.models.checkpoint import Foreign
from sslfast.models.layouts import State
from sslfast.models.preprocess import Preprocess
from sslfast.models.recognition import COUNTER, SHOWN, Match, looks_like


@dataclass(frozen=True)
class ImportReport:
    """What was recognised in a checkpoint, and what it means.

    Args:
        path: the file.
        layout: the layout's name; several joined by " | " where they mean the same; None where none fits.
        what: the same in words.
        container: where the weights lie in the file ("" is its top level).
        prefix: what preceded the network's names.
        architecture: the network that was built.
        preprocess: the images it wants.
        convention: how well that is known: "recorded" in the file, "known layout" or "default".
        missing: weights of the network that the file does not have, and that were allowed.
        unexpected: weights of the file that the network does not have: heads, queues.
        dropped: classes and functions that the file names and that were neither run nor rebuilt.
        notes: what else a person should know.
    """

    path: str
    layout: str | None
    what: str
    container: str
    prefix: str
    architecture: str
    preprocess: Preprocess
    convention: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Tell it in a few lines."""
        where = f" (weights in {self.container!r}" if self.container else " (weights at the top level"
        where += f", names after {self.prefix!r})" if self.prefix else ")"
        told = [
            f"checkpoint: {self.what}{where}",
            f"network: {self.architecture}",
            f"input: {self.preprocess.describe()} ({self.convention})",
            f"weights: {len(self.missing)} missing{_some(self.missing)}, "
            f"{len(self.unexpected)} not of the backbone{_some(self.unexpected)}",
        ]
        if self.dropped:
            told.append(f"not rebuilt and not run: {', '.join(self.dropped[:SHOWN])}{_more(self.dropped)}")
        return [*told, *(f"note: {note}" for note in self.notes)]


def _some(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:SHOWN])}{_more(names)})" if names else ""


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""


def check_fit(match: Match, path: Path, name: str, allow_missing: Sequence[str]) -> tuple[State, tuple[str, ...]]:
    """Check the weights of a match against its architecture.

    Args:
        match: what `recognise` gave.
        path: the file, for errors.
        name: the architecture that was asked for, for errors.
        allow_missing: names of weights, or of modules, that the file need not have.

    Returns:
        The weights that the network takes, and the names that are missing although they are allowed.

    Raises:
        SslfastError: weights are missing, of another shape or type, not finite, or belong to a larger network.
    """
    wanted = outline(match.architecture).shapes
    state = {key: value for key, value in match.state.items() if key in wanted}
    needed = [key for key in wanted if not key.endswith(COUNTER)]
    missing = [key for key in needed if key not in state]
    if len(missing) == len(needed):
        keys = ", ".join(list(match.state)[:SHOWN])
        raise SslfastError(f"{path} holds no weight of a {name}: its keys look like {keys}")
    if any(".main_conv." in key for key in match.state):
        raise SslfastError(f"{path} is a SimCLR v2 with selective kernels (sk1), which is not built here; take an sk0")
    looks = looks_like(match.state)
    hint = f"; it looks like a {looks}: ask for that" if looks and looks != name else ""
    other = [
        f"{key} is {_shape(state[key].shape)}, not {_shape(wanted[key])}"
        for key in state
        if state[key].shape != wanted[key]
    ]
    if other:
        raise SslfastError(f"{path} does not fit a {name}: {'; '.join(other[:SHOWN])}{_more(other)}{hint}")
    modules = {key.partition(".")[0] for key in wanted}
    beyond = [
        key for key in match.state if key not in wanted and key.partition(".")[0] in modules and not _is_head(key)
    ]
    if beyond:
        raise SslfastError(f"{path} holds more than a {name}: {', '.join(beyond[:SHOWN])}{_more(beyond)}{hint}")
    unexplained = [key for key in missing if not any(key == one or key.startswith(f"{one}.") for one in allow_missing)]
    if unexplained:
        raise SslfastError(
            f"{path} has {len(needed) - len(missing)} of the {len(needed)} weights of a {name}; "
            f"missing: {', '.join(unexplained[:SHOWN])}{_more(unexplained)}"
            f"{hint or '; allow_missing names what may stay random'}"
        )
    for key, value in state.items():
        if key.endswith(COUNTER):
            continue
        if not value.is_floating_point() or value.is_quantized or value.is_meta or value.layout is not torch.strided:
            raise SslfastError(f"{path} does not fit a {name}: {key} holds {str(value.dtype).removeprefix('torch.')}")
        if not bool(torch.isfinite(value.float()).all()):
            raise SslfastError(f"{path} is damaged or its training diverged: {key} holds values that are not finite")
    return state, tuple(missing)


def _is_head(key: str) -> bool:
    return re.match(r"(fc|head|heads|classifier|linear)\.", key) is not None


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def report(
    match: Match,
    layout: str | None,
    what: str,
    notes: Sequence[str],
    missing: tuple[str, ...],
    foreign: Foreign,
    path: Path,
) -> ImportReport:
    """Put what was found into one record."""
    return ImportReport(
        path=str(path),
        layout=layout,
        what=what,
        container=match.container,
        prefix=match.prefix,
        architecture=match.architecture,
        preprocess=match.preprocess,
        convention="known layout" if match.known else "default",
        missing=missing,
        unexpected=match.heads,
        dropped=foreign.dropped,
        notes=tuple(notes),
    )
