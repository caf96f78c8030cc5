"""Files that are either the old one or the complete new one, whatever happens in between."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslfast.errors import SslfastError

PARTIAL_SUFFIX = ".partial"
"""Ends the name of a file that is being written; no reader takes such a file for data."""

_LEFTOVER = re.compile(r".+\.([0-9]{1,9})" + re.escape(PARTIAL_SUFFIX))

_UMASK = os.umask(0)
os.umask(_UMASK)


def sync_folder(folder: Path) -> None:
    """Flush ``folder``'s own entry list to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on leaving without an error it is flushed and takes the place of ``path``.

    An error leaves ``path`` as it was and removes the temporary file. The name holds the process id: two
    processes that write the same file do not disturb each other, and the later one wins whole.

    Raises:
        SslfastError: the disk is full, or the folder cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        # Some writers make private files; a result can be read by whom the umask lets read.
        partial.chmod(0o666 & ~_UMASK)
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except BaseException as error:
        with_no_error(partial.unlink)
        number = error.errno if isinstance(error, OSError) else _system_error(error)
        if number is not None:
            raise SslfastError(
                f"cannot write {path}: {os.strerror(number)}; what was there before is untouched"
            ) from error
        raise


def _system_error(error: BaseException) -> int | None:
    """Give the number of the system's error that safetensors tells in words."""
    found = re.search(r"\(os error ([0-9]+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed were writing anywhere below ``folder``; files of living ones stay."""
    for path in folder.rglob(f"*{PARTIAL_SUFFIX}"):
        found = _LEFTOVER.fullmatch(path.name)
        if found and not _lives(int(found[1])):
            with_no_error(path.unlink)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def with_no_error(action: Callable[[], None]) -> None:
    """Run a clean-up whose failure must not hide the error that led to it."""
    try:
        action()
    except OSError:
        return


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, atomically."""
    with writing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Replace ``path`` by ``content`` in UTF-8, atomically."""
    write_bytes(path, content.encode("utf-8", "surrogateescape"))


def write_json(path: Path, content: Any) -> None:
    """Replace ``path`` by ``content`` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        SslfastError: the file is missing, unreadable or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SslfastError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SslfastError(
            f"{path} is not the JSON file that sslfast wrote ({error}); remove it and run again"
        ) from error
