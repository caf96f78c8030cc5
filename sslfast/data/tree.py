"""Trees of files: folders and zip archives under one interface; an archive is read in place, never unpacked."""

import errno
import lzma
import os
import stat
import threading
import zipfile
import zlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from sslfast.data.dataset import Skipped, printable
from sslfast.data.image import BYTE_LIMIT, EXTENSIONS, UnreadableImage
from sslfast.errors import DataError


class Member(NamedTuple):
    """A file of a tree.

    Args:
        path: from the tree's top, with "/"; bytes that are no UTF-8 are surrogate escapes.
        size: in bytes.
        time: of the last change, in any unit, for fingerprints.
    """

    path: str
    size: int
    time: int


class Listing(NamedTuple):
    """What is below a folder of a tree.

    Args:
        members: the images, sorted by path.
        folders: folders directly below, sorted by name.
        skipped: images and folders that cannot be used, full paths.
    """

    members: list[Member]
    folders: list[str]
    skipped: list[Skipped]


class Tree(Protocol):
    """A folder or an archive."""

    def listing(self, under: str = "") -> Listing:
        """List the images anywhere below ``under``, by name alone, opening none of them."""

    def folders(self, under: str = "") -> list[str]:
        """List the folders directly below ``under``, sorted."""

    def full_path(self, path: str) -> str:
        """Give the path that a person would use."""

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading; OSError or UnreadableImage where that fails."""

    def read(self, path: str) -> BinaryIO:
        """Give a file's whole content, at most `BYTE_LIMIT` bytes of it."""


def _hidden(name: str) -> bool:
    # __MACOSX holds an archiver's notes, files with the names of images among them.
    return name.startswith(".") or name == "__MACOSX"


def is_image_name(name: str) -> bool:
    """Say whether a file of this name is taken for an image."""
    return name.lower().endswith(EXTENSIONS)


class FolderTree:
    """A folder with all that is below it; symbolic links are followed, loops among them noticed.

    Args:
        top: the folder.

    Raises:
        DataError: it is no folder, or cannot be listed.
    """

    def __init__(self, top: Path | str) -> None:
        self.top = os.fspath(Path(top).expanduser())
        try:
            with os.scandir(self.top):
                pass
        except OSError as error:
            raise DataError(
                f"cannot list the folder {printable(self.top)}: {error.strerror}; give the path of a folder of images"
            ) from error

    def full_path(self, path: str) -> str:
        """Give the path from the working folder, or from the root."""
        return os.path.join(self.top, path)

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading."""
        return open(self.full_path(path), "rb")

    def read(self, path: str) -> BinaryIO:
        """Give a file; its length was limited when the tree was listed."""
        return self.open(path)

    def folders(self, under: str = "") -> list[str]:
        """List the folders directly below ``under``, sorted."""
        with os.scandir(self.full_path(under)) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not _hidden(entry.name))

    def listing(self, under: str = "") -> Listing:
        """List the images anywhere below ``under``, by name alone, opening none of them."""
        members: list[Member] = []
        skipped: list[Skipped] = []
        top_folders: list[str] = []
        seen: set[tuple[int, int]] = set()
        waiting = [under]
        while waiting:
            folder = waiting.pop()
            try:
                status = os.stat(self.full_path(folder))
                if (status.st_dev, status.st_ino) in seen:
                    continue  # a link to a folder that was listed already: its images count once
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(self.full_path(folder)) as entries:
                    found = list(entries)
            except OSError as error:
                skipped.append(Skipped(self.full_path(folder), f"cannot be listed: {error.strerror}"))
                continue
            below = []
            for entry in found:
                if _hidden(entry.name):
                    continue
                path = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    if entry.is_dir():
                        below.append(path)
                        continue
                    if is_image_name(entry.name):
                        members.append(self._member(path))
                except UnreadableImage as error:
                    skipped.append(Skipped(self.full_path(path), str(error)))
                except OSError as error:
                    skipped.append(Skipped(self.full_path(path), error.strerror or "cannot be read"))
            # Sorted, so that of two links to one folder the same one counts every time.
            below.sort()
            if folder == under:
                top_folders = [path.rpartition("/")[2] for path in below]
            waiting += reversed(below)
        return Listing(sorted(members), top_folders, sorted(skipped))

    def _member(self, path: str) -> Member:
        status = os.stat(self.full_path(path))
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("no regular file")
        if status.st_size > BYTE_LIMIT:
            raise UnreadableImage(f"{status.st_size:,} bytes, more than {BYTE_LIMIT:,}")
        if not status.st_size:
            raise UnreadableImage("empty file")
        return Member(path, status.st_size, status.st_mtime_ns)

    def members(self, paths: Iterable[str]) -> tuple[list[Member | None], list[Skipped]]:
        """Look at each of ``paths``; None, with the reason, for one that cannot be used."""
        found: list[Member | None] = []
        skipped = []
        for path in paths:
            try:
                found.append(self._member(path))
            except (OSError, UnreadableImage, ValueError) as error:
                reason = error.strerror or "cannot be read" if isinstance(error, OSError) else str(error)
                skipped.append(Skipped(self.full_path(path), reason))
                found.append(None)
        return found, skipped


class ZipTree:
    """A zip archive, read in place.

    Args:
        archive: the file. Where all of it lies in one folder, the tree begins inside that.

    Raises:
        DataError: it is missing, or no sound zip archive.
    """

    def __init__(self, archive: Path | str) -> None:
        self.archive = os.fspath(Path(archive).expanduser())
        self._lock = threading.Lock()
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        try:
            infos = self._zip().infolist()
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise DataError(f"{printable(self.archive)} is no readable zip archive: {reason}") from error
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self._skipped: list[Skipped] = []
        for info in infos:
            name = info.filename.removeprefix("./")
            parts = name.split("/")
            if info.is_dir() or any(_hidden(part) for part in parts if part != ".."):
                continue
            if not is_image_name(name) and not name.endswith(".txt"):
                continue
            if ".." in parts or "" in parts or name in self._infos:
                reason = "twice in the archive" if name in self._infos else "a path out of the archive"
                self._skipped.append(Skipped(f"{self.archive}/{name}", reason))
                continue
            self._infos[name] = info
        first = {name.split("/")[0] for name in self._infos}
        inner = next(iter(first)) if len(first) == 1 and all("/" in name for name in self._infos) else ""
        # A tree that begins with its splits is not moved into its only split.
        self.prefix = f"{inner}/" if inner and inner not in SPLIT_FOLDERS else ""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind: another process opens its own."""
        return {**self.__dict__, "_lock": None, "_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state without an open file."""
        self.__dict__.update(state, _lock=threading.Lock())

    def _zip(self) -> zipfile.ZipFile:
        with self._lock:
            # After a fork the file's position would be shared with the parent, and both would read nonsense.
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), zipfile.ZipFile(self.archive))
            return self._opened[1]

    def full_path(self, path: str) -> str:
        """Give the archive's path with the member's behind it."""
        return f"{self.archive}/{self.prefix}{path}"

    def open(self, path: str) -> BinaryIO:
        """Open a member for reading."""
        info = self._infos.get(self.prefix + path)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.full_path(path))
        try:
            return cast(BinaryIO, self._zip().open(info))
        except OSError:
            raise
        except Exception as error:  # encrypted, an unknown method, a damaged entry: zipfile raises all kinds
            raise UnreadableImage(f"cannot be taken out of the archive: {error}") from error

    def read(self, path: str) -> BinaryIO:
        """Give a member's content, at most `BYTE_LIMIT` bytes of it."""
        try:
            with self.open(path) as stream:
                content = stream.read(BYTE_LIMIT + 1)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise UnreadableImage(f"damaged in the archive: {error}") from error
        if len(content) > BYTE_LIMIT:
            raise UnreadableImage(f"unpacks to more than {BYTE_LIMIT:,} bytes")
        return BytesIO(content)

    def _below(self, under: str) -> list[str]:
        start = self.prefix + (f"{under}/" if under else "")
        return [name[len(self.prefix) :] for name in self._infos if name.startswith(start)]

    def folders(self, under: str = "") -> list[str]:
        """List the folders directly below ``under``, sorted."""
        skip = len(under) + 1 if under else 0
        return sorted({path[skip:].split("/")[0] for path in self._below(under) if "/" in path[skip:]})

    def listing(self, under: str = "") -> Listing:
        """List the images anywhere below ``under``, by name alone."""
        members, skipped = [], list(self._skipped)
        for path in self._below(under):
            info = self._infos[self.prefix + path]
            if not is_image_name(path):
                continue
            if info.file_size > BYTE_LIMIT:
                reason = f"unpacks to {info.file_size:,} bytes, more than {BYTE_LIMIT:,}"
                skipped.append(Skipped(self.full_path(path), reason))
            elif not info.file_size:
                skipped.append(Skipped(self.full_path(path), "empty file"))
            else:
                members.append(Member(path, info.file_size, info.CRC))
        return Listing(sorted(members), self.folders(under), sorted(skipped))


SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")
"""Names of folders that hold a split."""


def open_tree(path: Path | str) -> FolderTree | ZipTree:
    """Give the tree of a folder or of a zip archive.

    Raises:
        DataError: it is neither.
    """
    target = Path(path).expanduser()
    return ZipTree(target) if os.path.isfile(target) else FolderTree(target)
