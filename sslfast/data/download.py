"""Fetching files over HTTP: with progress, continued where they broke off, checked, put in place whole."""

import fcntl
import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from sslfast.data.dataset import printable
from sslfast.errors import DataError
from sslfast.files import PARTIAL_SUFFIX, sync_folder, with_no_error, write_text
from sslfast.progress import bar, console

CHUNK = 1 << 18
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""

RETRY_AFTER = (0.5, 2.0)
"""Seconds to wait before each further try that follows one without progress."""


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the right to download ``name`` into ``folder``; another process waits. A kill releases it."""
    with (folder / f".{name}.lock").open("wb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"another process is downloading {name}; waiting for it", markup=False)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def fetch(urls: tuple[str, ...], folder: Path, checksum: str | None) -> Path:
    """Download one file; what an earlier try has left is continued.

    Proxies are taken from the environment (``http_proxy``, ``https_proxy``, ``no_proxy``).

    Args:
        urls: where it can be had, tried in this order; the file is named as the first is.
        folder: where to put it; made where it is not there.
        checksum: "md5:..." or "sha256:...", perhaps only the beginning of it; None: the SHA-256 is recorded beside the
            file, and one that an earlier download recorded must be met.

    Returns:
        The file's path.

    Raises:
        DataError: no address gave it; the line says what each of them answered.
    """
    target = folder / urls[0].rsplit("/", 1)[1]
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    record = target.with_name(target.name + ".sha256")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = checksum or recorded_checksum(target)
        failures = []
        for url in urls:
            try:
                continued = partial.exists()
                _transfer(url, partial, resumable=known is not None)
                if known is not None and not _matches(partial, known) and continued:
                    # The old part may be of another version of the file.
                    partial.unlink()
                    _transfer(url, partial, resumable=True)
                _accept(partial, known, url)
            except DataError as error:
                failures.append(str(error))
                continue
            with partial.open("rb") as handle:
                os.fsync(handle.fileno())
            if known is None:
                write_text(record, f"{_digest(partial, 'sha256')}  {target.name}\n")
            os.replace(partial, target)
            sync_folder(folder)
            return target
    except OSError as error:
        raise DataError(
            f"cannot write below {printable(str(folder))}: {error.strerror}; what was downloaded is kept and continued"
        ) from error
    raise DataError("; ".join(failures))


def recorded_checksum(path: Path) -> str | None:
    """Give the "sha256:..." that the first download of ``path`` recorded, or None."""
    record = path.with_name(path.name + ".sha256")
    if not record.is_file():
        return None
    words = record.read_text(encoding="utf-8", errors="replace").split()
    return f"sha256:{words[0]}" if words else None


def check_recorded(path: Path) -> None:
    """Check a file against the SHA-256 that its first download recorded.

    Raises:
        DataError: it is another one.
    """
    known = recorded_checksum(path)
    if known is not None and not _matches(path, known):
        raise DataError(
            f"{printable(str(path))} is not the file that was downloaded first (its SHA-256 stands beside it); "
            "remove both to download it anew"
        )


def verify(path: Path, checksum: str) -> None:
    """Check a file against a published checksum ("md5:..." or "sha256:...", perhaps only the beginning of it).

    Raises:
        DataError: it is another one.
    """
    if not _matches(path, checksum):
        raise DataError(f"{printable(str(path))} is not the published file ({checksum}); remove it to download it anew")


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as handle:
        # MD5 is what the publishers give; it guards against accidents here, not against enemies.
        return hashlib.file_digest(handle, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _matches(path: Path, checksum: str) -> bool:
    algorithm, _, wanted = checksum.partition(":")
    return bool(wanted) and _digest(path, algorithm).startswith(wanted)


def _accept(partial: Path, checksum: str | None, url: str) -> None:
    if checksum is None or _matches(partial, checksum):
        return
    algorithm, _, wanted = checksum.partition(":")
    came = _digest(partial, algorithm)
    partial.unlink()
    raise DataError(f"{url}: wrong {algorithm}, {came} instead of {wanted}; what came was deleted")


def _transfer(url: str, partial: Path, resumable: bool) -> None:
    """Bring ``partial`` to the full length of ``url``, over several connections where they break."""
    validator = partial.with_name(partial.name + "-etag")
    waits = iter(RETRY_AFTER)
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        known = validator.read_text(encoding="latin-1") if before and validator.exists() else ""
        if before and not known and not resumable:
            # Nothing could tell whether the rest belongs to the part that is there.
            before = 0
        request = urllib.request.Request(url, headers={"User-Agent": "sslfast", "Accept-Encoding": "identity"})
        if before:
            request.add_header("Range", f"bytes={before}-")
            if known:
                request.add_header("If-Range", known)
        try:
            with urllib.request.build_opener().open(request, timeout=TIMEOUT) as response:
                _receive(response, partial, validator, before)
            with_no_error(validator.unlink)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before:
                if error.headers.get("Content-Range", "").endswith(f"*/{before}"):
                    return  # the part is the whole
                partial.unlink()
                continue
            raise DataError(f"{url}: HTTP {error.code} {error.reason}") from error
        except (_Broken, urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
            there = partial.stat().st_size if partial.exists() else 0
            if there > before:
                waits = iter(RETRY_AFTER)
            pause = next(waits, None)
            if pause is None:
                kept = f" after {there:,} bytes, which are kept: the same command continues" if there else ""
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                raise DataError(f"{url}: {reason or type(error).__name__}{kept}") from error
            time.sleep(pause)


class _Broken(Exception):
    """A connection that ended before the file did."""


def _receive(response: HTTPResponse, partial: Path, validator: Path, before: int) -> None:
    if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {before}-"):
        partial.unlink()
        raise _Broken("the server sent another part than was asked for")
    done = before if response.status == 206 else 0
    length = response.headers.get("Content-Length", "")
    total = done + int(length) if length.isdigit() else None
    mark = response.headers.get("ETag", "") or response.headers.get("Last-Modified", "")
    with partial.open("ab" if done else "wb") as handle:
        # A weak mark may stay when bytes change.
        validator.write_text("" if mark.startswith("W/") else mark, encoding="latin-1")
        title = f"downloading {partial.name.removesuffix(PARTIAL_SUFFIX)}"
        with bar(title, (total or 0) >> 10, "KiB", done=done >> 10) as progress:
            while chunk := response.read(CHUNK):
                handle.write(chunk)
                progress.advance(((done + len(chunk)) >> 10) - (done >> 10))
                done += len(chunk)
    if total is not None and done < total:
        raise _Broken(f"the connection broke off at {done:,} of {total:,} bytes")
