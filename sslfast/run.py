"""A run folder: everything that one command made, in a form that survives any kill."""

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sslfast.errors import SslfastError, UsageError
from sslfast.files import read_json, remove_leftovers, with_no_error, write_json, write_text

DERIVED = ("data", "images", "pixels", "sampler")
"""Entries of a config that follow from files and from other options."""


class Run:
    """A folder ``runs/<time>-<name>/`` with config.json, metrics.jsonl, log.txt and whatever the command adds.

    One process at a time holds a run (a lock on ``.lock``, released by the system when the process dies). A run
    that is resumed must be asked for the configuration it was started with.

    Args:
        folder: the run's own folder.
        config: the options that decide the result, as JSON-able values.
        resume: continue the run that is there, if there is one; without it a folder that holds a run is refused.

    Raises:
        UsageError: the folder holds a run and ``resume`` is not asked for, or one with another configuration.
        SslfastError: another process holds the run, or the folder cannot be written.
    """

    def __init__(self, folder: Path, config: dict[str, Any], *, resume: bool = False) -> None:
        self.folder = folder
        self.metrics_path = folder / "metrics.jsonl"
        self._is_new = False
        config = json.loads(json.dumps(config))  # as a reader of config.json sees it
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SslfastError(
                f"cannot write in {folder}: {error.strerror}; choose another folder with --out"
            ) from error
        try:
            self._begin(config, resume)
        except BaseException:
            os.close(self._lock)
            raise

    def _begin(self, config: dict[str, Any], resume: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SslfastError(
                f"{self.folder} is in use by another sslfast process; wait for it, or choose another --out"
            ) from None
        config_path = self.folder / "config.json"
        if not config_path.exists():
            write_json(config_path, config)
            self._is_new = True
            return
        if not resume:
            raise UsageError(f"{self.folder} already holds a run; add --resume to continue it, or choose another --out")
        _check_same_config(self.folder, read_json(config_path), config)
        remove_leftovers(self.folder)
        _drop_torn_line(self.metrics_path)

    def __enter__(self) -> Self:
        """Hold the run."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the run go; one that failed before it made anything leaves its folder free for another try."""
        if self._is_new and isinstance(error, Exception):
            with_no_error(self._forget)
        os.close(self._lock)

    def _forget(self) -> None:
        if {path.name for path in self.folder.iterdir()} <= {".lock", "config.json", "log.txt"}:
            (self.folder / "config.json").unlink(missing_ok=True)

    def metric(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        self._append(self.metrics_path, json.dumps(values))

    def metrics(self) -> list[dict[str, Any]]:
        """Read every line of metrics.jsonl."""
        if not self.metrics_path.exists():
            return []
        return [json.loads(line) for line in self.metrics_path.read_text(encoding="utf-8").splitlines()]

    def keep_metrics(self, wanted: Any) -> None:
        """Drop the lines for which ``wanted(line)`` is false: those of steps that a resumed run does again."""
        lines = [line for line in self.metrics() if wanted(line)]
        write_text(self.metrics_path, "".join(json.dumps(line) + "\n" for line in lines))

    def log(self, text: str) -> None:
        """Append one line, with the time, to log.txt."""
        self._append(self.folder / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def _append(self, path: Path, line: str) -> None:
        try:
            with path.open("a", encoding="utf-8", errors="surrogateescape") as handle:
                handle.write(line + "\n")
        except OSError as error:
            raise SslfastError(f"cannot write {path}: {error.strerror}; --resume continues this run") from error


def new_run_folder(name: str, root: Path = Path("runs")) -> Path:
    """Name a run that is about to start: ``runs/<time>-<name>``."""
    return root / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


def _check_same_config(folder: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    different = first_difference(found, asked)
    if different is not None:
        key, old, new = different
        raise UsageError(
            f"{folder} was started with {key}={old!r}, now it is {new!r}; "
            "resume with the same options, or choose another --out"
        )


def first_difference(found: dict[str, Any], asked: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Find an option that differs: its name (``recipe.seed`` within ``recipe``) and both values.

    What is derived from options and files (a hash, ``data``) is named last: it says nothing to a reader.
    """
    asked = json.loads(json.dumps(asked))  # as a file gives it back
    for key in sorted({*found, *asked}, key=lambda key: (key in DERIVED, key)):
        old, new = found.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            within = first_difference(old, new)
            if within is not None:
                return f"{key}.{within[0]}", *within[1:]
        elif old != new:
            return key, old, new
    return None


def _drop_torn_line(path: Path) -> None:
    """Cut a last line that a kill or a full disk left without its end."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
