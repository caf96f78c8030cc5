"""Opens what remembers a study: a journal file, a database, or memory."""

import fcntl
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage

from sslfast.errors import SslfastError, UsageError, first_line
from sslfast.files import read_json
from sslfast.progress import console
from sslfast.search.journal import JournalBackend, journal_backend, repair_journal

FOLDER_JOURNAL = "journal.log"

ANSWER_SECONDS = 10.0
"""How long a database may take to answer when it is opened."""


def open_folder_journal(folder: Path) -> BaseStorage:
    """Open the journal of a run folder that this process holds, mended where it was damaged."""
    path = folder / FOLDER_JOURNAL
    _mend(path)
    return JournalStorage(journal_backend(path))


def open_storage(storage: str | BaseStorage) -> BaseStorage:
    """Open a storage that several processes may share.

    Args:
        storage: an Optuna storage, a database's URL, or the path of a journal file, which ends in ``.log``.

    Raises:
        UsageError: it cannot be opened, or does not answer within some seconds.
    """
    if isinstance(storage, BaseStorage):
        return storage
    if storage.endswith(".log") and "://" not in storage:
        return _open_shared_journal(Path(storage))
    try:
        return _answered(lambda: _open_database(storage))
    except TimeoutError:
        raise UsageError(
            f"--storage did not answer within {ANSWER_SECONDS:g} s; is the database's address right, and is it up?"
        ) from None
    except ImportError as error:
        missing = getattr(error.__cause__ or error, "name", None) or first_line(error)
        raise UsageError(f"--storage needs a database driver that is not installed: {missing}; install it") from error
    except Exception as error:  # of SQLAlchemy, of a database's module, of the database
        raise UsageError(
            f"--storage cannot be opened ({first_line(error)}); give a URL such as sqlite:///trials.db"
        ) from error


def describe(storage: str | BaseStorage | None) -> str | None:
    """Say for a file that others may read where a study is: an address without its passwords."""
    if storage is None or isinstance(storage, BaseStorage):
        return None if storage is None else type(storage).__name__
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(storage)
    except ArgumentError:  # a file
        return storage
    secret = [key for key in url.query if "pass" in key.lower()]
    return url.difference_update_query(secret).render_as_string(hide_password=True)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn an error of the disk or the database into one line."""
    try:
        yield
    except OSError as error:
        raise SslfastError(
            f"cannot write in {what}: {error.strerror or error}; make room, --resume continues"
        ) from error
    except Exception as error:
        if not _of_a_database(error):
            raise
        raise SslfastError(
            f"the storage failed ({first_line(error.__cause__ or error)}); --resume continues once it is back"
        ) from error


def _of_a_database(error: Exception) -> bool:
    if isinstance(error, optuna.exceptions.StorageInternalError):
        return True
    return any(kind.__module__.startswith("sqlalchemy.") for kind in type(error).__mro__)


def _open_database(url: str) -> BaseStorage:
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": 60}}  # a writer waits for the one before it
    for attempt in range(10):
        try:
            if url.startswith(("redis", "journal")):
                return optuna.storages.get_storage(url)
            return optuna.storages.get_storage(optuna.storages.RDBStorage(url, engine_kwargs=options))
        except Exception as error:
            # Two processes that make the tables of a new database at once.
            if attempt == 9 or "already exists" not in str(error) and "UNIQUE" not in str(error):
                raise
            time.sleep(0.1 * (attempt + 1))
    raise AssertionError


def _answered(action: Callable[[], BaseStorage]) -> BaseStorage:
    """Wait for an action in a thread of its own: drivers of databases wait minutes for a silent address."""
    answers: queue.Queue[BaseStorage | Exception] = queue.Queue()

    def work() -> None:
        try:
            answers.put(action())
        except Exception as error:
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _open_shared_journal(path: Path) -> BaseStorage:
    """Open a journal that other processes may write too; whoever comes first, alone, mends it."""
    _check_shareable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        users = os.open(path.with_name(path.name + ".users"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(f"--storage {path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _mend(path)
    except BlockingIOError:
        pass  # others read and write it, and pass over what is damaged
    fcntl.flock(users, fcntl.LOCK_SH)  # until this process ends
    return JournalStorage(JournalBackend(path))


def _check_shareable(path: Path) -> None:
    """Refuse a file that is no journal, and the journal that a run folder has to itself.

    Raises:
        UsageError: it is one of these.
    """
    config = path.parent / "config.json"
    if path.name == FOLDER_JOURNAL and config.exists() and read_json(config).get("storage") is None:
        raise UsageError(
            f"--storage {path} is the journal of the search in {path.parent}, which has it to itself; go on with it by "
            "--resume --out, or share a journal of another name"
        )
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(1 << 20)
    # Every entry begins with it, a torn one too; what a full disk left may be no more than a piece of it, or zeros.
    mark = b'{"op_code"'
    if head.strip(b"\0\n") and mark not in head and not mark.startswith(head.strip(b"\0\n")):
        raise UsageError(f"--storage {path} is not a journal of Optuna; give the path of one, or of a file to be made")


def _mend(path: Path) -> None:
    repair = repair_journal(path)
    if repair.lost:
        console.print(repair.describe(), markup=False)
