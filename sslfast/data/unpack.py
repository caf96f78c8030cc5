"""Taking a downloaded archive apart, into place only when all of it is there."""

import os
import shutil
import tarfile
import zlib
from pathlib import Path

from sslfast.data.dataset import printable
from sslfast.errors import DataError
from sslfast.files import PARTIAL_SUFFIX, sync_folder
from sslfast.progress import bar

UNPACKED_LIMIT = 16 << 30
"""Bytes that an archive may unpack to; the largest set known here, STL-10, needs 3."""


def unpack_tar(archive: Path, folder: Path) -> None:
    """Unpack a tar archive (.tar.gz) into ``folder``; files that are there already are replaced.

    Only plain files and folders are made, with paths below ``folder``; links and devices are refused.

    Raises:
        DataError: the archive is damaged, wants to write elsewhere, or is too large; nothing is put in place then.
    """
    prefix = f".{archive.name}."
    for stale in folder.glob(f"{prefix}*{PARTIAL_SUFFIX}"):
        shutil.rmtree(stale, ignore_errors=True)  # of a run that was killed
    work = folder / f"{prefix}{os.getpid()}{PARTIAL_SUFFIX}"
    try:
        work.mkdir(parents=True)
        files = _extract(archive, work)
        for top in sorted({Path(path).parts[0] for path in files}):
            if not (folder / top).exists():
                os.replace(work / top, folder / top)  # whole, at once
        for path in files:
            if (work / path).exists():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(work / path, folder / path)
        sync_folder(folder)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{printable(str(archive))} cannot be unpacked: {reason}; remove it and try again") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _extract(archive: Path, work: Path) -> list[str]:
    files = []
    total = 0
    with (
        archive.open("rb") as raw,
        tarfile.open(fileobj=raw, mode="r:*") as tar,
        bar(f"unpacking {archive.name}", archive.stat().st_size >> 10, "KiB") as progress,
    ):
        done = 0
        for member in tar:
            parts = Path(member.name).parts
            if not (member.isreg() or member.isdir()) or Path(member.name).is_absolute() or ".." in parts:
                raise tarfile.TarError(f"{printable(member.name)!r} is no plain file below the archive's top")
            total += member.size
            if total > UNPACKED_LIMIT:
                raise tarfile.TarError(f"it unpacks to more than {UNPACKED_LIMIT >> 30} GiB")
            if member.isreg():
                target = work.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                if source is not None:
                    with source, target.open("wb") as handle:
                        shutil.copyfileobj(source, handle, 1 << 20)
                        handle.flush()
                        os.fsync(handle.fileno())
                    files.append(str(Path(*parts)))
            position = raw.tell() >> 10
            progress.advance(position - done)
            done = position
    return files
