"""Where data sets lie: the folders that are searched, in order, and the one that downloads go to."""

import os
import pwd
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

from sslfast.data.dataset import printable
from sslfast.errors import DataError

SYSTEM_FOLDERS = (Path("/usr/share/datasets"), Path("/usr/local/share/datasets"))
"""Where packages of the system put data sets."""


class Place(NamedTuple):
    """A folder that may hold data sets.

    Args:
        path: the folder; it need not exist.
        origin: how it came to be searched: "--data-dir", "$SSLFAST_DATA", "cache" or "system".
    """

    path: Path
    origin: str


def _home() -> Path | None:
    """Give the home folder: ``$HOME``, else the one in the user database; None where there is neither."""
    home = os.environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return Path(home) if os.path.isabs(home) else None


def cache_folder() -> Path:
    """Give the user's cache folder for data sets, whether or not it exists.

    ``$XDG_CACHE_HOME/sslfast/data``, else ``~/.cache/sslfast/data``, else, for a user without a home,
    ``sslfast-<user id>/data`` in the folder for temporary files.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):
        return Path(configured) / "sslfast" / "data"
    home = _home()
    return temporary_cache_folder() if home is None else home / ".cache" / "sslfast" / "data"


def temporary_cache_folder() -> Path:
    """Give the folder that stands in for the cache where no home can be written."""
    return Path(tempfile.gettempdir()) / f"sslfast-{os.getuid()}" / "data"


def _private(folder: Path) -> bool:
    """Say whether ``folder`` is a real folder of this user that nobody else can write."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def writable_cache_folder() -> Path:
    """Make and give the cache folder, or the temporary one where that cannot be written.

    Raises:
        DataError: neither can be written.
    """
    wanted = cache_folder()
    fallback = temporary_cache_folder()
    for folder in (wanted, fallback):
        try:
            if folder == fallback:
                # Anyone may have made this name in the shared folder before us.
                folder.parent.mkdir(mode=0o700, exist_ok=True)
                if not _private(folder.parent):
                    continue
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise DataError(
        f"no folder for data can be written (tried {printable(str(wanted))} and {printable(str(fallback))}); "
        "give --data-dir, or set SSLFAST_DATA or XDG_CACHE_HOME"
    )


def searched(root: Path | str | None) -> list[Place]:
    """List the folders in which a data set is looked for, first to last.

    Args:
        root: the folder that the caller gave (``--data-dir``), searched first.
    """
    found: list[Place] = []
    if root is not None:
        found.append(Place(Path(root).expanduser(), "--data-dir"))
    configured = os.environ.get("SSLFAST_DATA", "")
    if configured:
        found.append(Place(Path(configured).expanduser(), "$SSLFAST_DATA"))
    found.append(Place(cache_folder(), "cache"))
    temporary = temporary_cache_folder()
    if temporary != found[-1].path and _private(temporary.parent):
        found.append(Place(temporary, "cache"))
    found += [Place(folder, "system") for folder in SYSTEM_FOLDERS]
    return found


def download_folder(root: Path | str | None) -> Path:
    """Make and give the folder that a download goes to: ``root``, else ``$SSLFAST_DATA``, else the cache.

    Raises:
        DataError: it cannot be written.
    """
    configured = root if root is not None else os.environ.get("SSLFAST_DATA") or None
    if configured is None:
        return writable_cache_folder()
    folder = Path(configured).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{printable(str(folder))} cannot be made: {error.strerror}; give another --data-dir"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{printable(str(folder))} cannot be written; give another --data-dir")
    return folder
