"""What an unfinished extraction knows of itself: its key, and the shards that are on the disk."""

import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslfast.errors import SslfastError
from sslfast.files import PARTIAL_SUFFIX, sync_folder, with_no_error, write_bytes
from sslfast.progress import console

JOURNAL_NAME = "progress.jsonl"
LOCK_NAME = ".lock"

_OWN_PARTIAL = re.compile(
    r"(shard-[0-9]+\.safetensors|index\.safetensors|manifest\.json|progress\.jsonl)\.[0-9]+" + re.escape(PARTIAL_SUFFIX)
)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Make ``folder`` and hold it while the body runs; wait for another process that holds it.

    The system releases the lock when a process dies, however it dies.

    Raises:
        SslfastError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SslfastError(f"cannot write in {folder}: {error.strerror}; choose another folder with --out") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"another process is writing {folder}; waiting for it", markup=False)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Journal:
    """An append-only file of lines, each JSON followed by a space and its CRC-32; the first holds the key.

    Attributes:
        key: what decides the result, as it was when the extraction started.
        shards: the entries of the shards that were finished, by number.
    """

    def __init__(self, folder: Path, key: dict[str, Any], shards: dict[int, dict[str, Any]]) -> None:
        self.folder = folder
        self.key = key
        self.shards = shards

    @classmethod
    def read(cls, folder: Path) -> "Journal | None":
        """Read the journal of ``folder``; lines from the first damaged one on are left out.

        Returns:
            The journal, or None where there is no file.

        Raises:
            SslfastError: the file cannot be read, or not even its first line is whole.
        """
        path = folder / JOURNAL_NAME
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SslfastError(f"cannot read {path}: {error.strerror}") from error
        lines = []
        for line in raw.split(b"\n")[:-1]:
            content = _parse(line)
            if content is None:
                break
            lines.append(content)
        if not lines or "key" not in lines[0]:
            raise SslfastError(
                f"{path} is damaged in its first line; remove that folder, or choose another one with --out"
            )
        return cls(folder, lines[0]["key"], {line["number"]: line for line in lines[1:]})

    @classmethod
    def start(cls, folder: Path, key: dict[str, Any], shards: dict[int, dict[str, Any]]) -> "Journal":
        """Write the journal of ``folder`` anew: the key, and the entries of shards that were found whole."""
        lines = [{"key": key}, *(shards[number] for number in sorted(shards))]
        write_bytes(folder / JOURNAL_NAME, b"".join(map(_render, lines)))
        return cls(folder, key, dict(shards))

    def append(self, entry: dict[str, Any]) -> None:
        """Record that a shard is finished; on return the line is on the disk.

        Args:
            entry: ``number`` of the shard and what the manifest will say of it.

        Raises:
            SslfastError: the line cannot be written.
        """
        path = self.folder / JOURNAL_NAME
        try:
            with path.open("ab") as handle:
                handle.write(_render(entry))
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise SslfastError(f"cannot write {path}: {error.strerror}; the same command continues later") from error
        self.shards[entry["number"]] = entry

    def remove(self) -> None:
        """Remove the file: the manifest says all that it said."""
        with_no_error((self.folder / JOURNAL_NAME).unlink)
        with_no_error(lambda: sync_folder(self.folder))


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed extraction was writing, and nothing else; the caller holds the folder."""
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        if _OWN_PARTIAL.fullmatch(path.name):
            with_no_error(path.unlink)


def _render(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()
    return text + f" {zlib.crc32(text):08x}\n".encode()


def _parse(line: bytes) -> dict[str, Any] | None:
    text, _, checksum = line.rpartition(b" ")
    if checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    return dict(json.loads(text))
