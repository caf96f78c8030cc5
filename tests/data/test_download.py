"""Downloads from a server on this machine: broken off, continued, wrong, missing, through a proxy, two at once."""

import dataclasses
import hashlib
import io
import os
import re
import signal
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import CONTENT, MD5, Server

from sslfast.data import load, loading, unpack
from sslfast.data.download import check_recorded, fetch, locked
from sslfast.data.registry import NAMED, Download, Named
from sslfast.errors import DataError

# Later Pythons warn of any fork beside threads; these children touch none of the parent's.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_and_nothing_else_is_left(server: Server, tmp_path: Path) -> None:
    path = fetch((f"{server.url}/file.bin",), tmp_path / "new", MD5)
    assert path.read_bytes() == CONTENT
    assert left(tmp_path / "new") == ["file.bin"]


def test_a_broken_connection_is_continued_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.breaks = [300_000, 0, 200_000, 1]
    path = fetch((f"{server.url}/file.bin",), tmp_path, MD5)
    assert path.read_bytes() == CONTENT
    starts = [int(re.sub(r"\D", "", asked or "0")) for _, asked in server.seen]
    assert starts[0] == 0 and starts[1] == 300_000 and starts == sorted(starts)


def test_a_download_that_keeps_breaking_says_how_far_it_came_and_is_continued_later(
    server: Server, tmp_path: Path
) -> None:
    server.breaks = [300_000, 0, 0, 0]
    with pytest.raises(DataError, match="after 300,000 bytes, which are kept"):
        fetch((f"{server.url}/file.bin",), tmp_path, MD5)
    assert "file.bin" not in left(tmp_path)
    server.seen.clear()
    server.breaks = []
    assert fetch((f"{server.url}/file.bin",), tmp_path, MD5).read_bytes() == CONTENT
    assert server.seen == [("/file.bin", "bytes=300000-")]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.breaks = [300_000]
    assert fetch((f"{server.url}/file.bin",), tmp_path, MD5).read_bytes() == CONTENT


def test_a_file_that_changed_on_the_server_is_not_mixed(server: Server, tmp_path: Path) -> None:
    server.breaks = [300_000, 0, 0, 0]
    with pytest.raises(DataError):
        fetch((f"{server.url}/file.bin",), tmp_path, None)
    server.files["/file.bin"] = other = CONTENT[::-1]
    server.etag = '"two"'
    assert fetch((f"{server.url}/file.bin",), tmp_path, None).read_bytes() == other


@pytest.mark.parametrize("checksum", [None, "md5"])
def test_without_a_version_mark_only_a_checksum_allows_to_continue(
    server: Server, tmp_path: Path, checksum: str | None
) -> None:
    server.etag = None
    server.breaks = [300_000, 0, 0, 0]
    with pytest.raises(DataError):
        fetch((f"{server.url}/file.bin",), tmp_path, MD5 if checksum else None)
    server.files["/file.bin"] = other = CONTENT[::-1]
    known = "md5:" + hashlib.md5(other).hexdigest() if checksum else None
    assert fetch((f"{server.url}/file.bin",), tmp_path, known).read_bytes() == other


def test_a_part_that_is_whole_already_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.partial").write_bytes(CONTENT)
    assert fetch((f"{server.url}/file.bin",), tmp_path, MD5).read_bytes() == CONTENT
    (tmp_path / "file.bin.partial").write_bytes(CONTENT + b"longer than it should be")
    assert fetch((f"{server.url}/file.bin",), tmp_path, MD5).read_bytes() == CONTENT


def test_a_wrong_sum_is_refused_and_the_old_file_stays(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "file.bin").write_bytes(b"old")
    with pytest.raises(DataError, match="wrong md5, [0-9a-f]{32} instead of 0000"):
        fetch((f"{server.url}/file.bin",), folder, "md5:0000")
    assert (folder / "file.bin").read_bytes() == b"old"
    assert left(folder) == ["file.bin"]


def test_a_missing_file_and_a_dead_mirror_are_each_said_and_the_next_is_tried(server: Server, tmp_path: Path) -> None:
    with Server() as gone:
        dead = gone.url
    urls = (f"{server.url}/none.bin", f"{dead}/none.bin", f"{server.url}/file.bin")
    with pytest.raises(DataError, match="HTTP 404 Not Found; .*Connection refused") as caught:
        fetch(urls[:2], tmp_path, MD5)
    assert "\n" not in str(caught.value)
    assert fetch(urls, tmp_path, MD5).name == "none.bin"
    server.status = 503
    with pytest.raises(DataError, match="HTTP 503 Service Unavailable"):
        fetch(urls[2:], tmp_path, MD5)


def test_without_a_published_sum_the_first_download_is_recorded(server: Server, tmp_path: Path) -> None:
    path = fetch((f"{server.url}/file.bin",), tmp_path, None)
    assert (tmp_path / "file.bin.sha256").read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  file.bin\n"
    check_recorded(path)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(DataError, match="is not the file that was downloaded first"):
        check_recorded(path)
    path.unlink()
    server.files["/file.bin"] = CONTENT[::-1]
    with pytest.raises(DataError, match="wrong sha256"):
        fetch((f"{server.url}/file.bin",), tmp_path, None)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_a_proxy_in_the_environment_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, server.url)
    assert fetch(("http://data.invalid/file.bin",), tmp_path, MD5).read_bytes() == CONTENT
    assert server.seen == [("http://data.invalid/file.bin", None)]
    monkeypatch.setenv("no_proxy", "data.invalid")
    with pytest.raises(DataError, match="not known|resolution|No address"):
        fetch(("http://data.invalid/file.bin",), tmp_path, MD5)


def test_a_full_disk_is_said_and_the_old_file_stays(server: Server, tmp_path: Path) -> None:
    import resource

    (tmp_path / "file.bin").write_bytes(b"old")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            fetch((f"{server.url}/file.bin",), tmp_path, MD5)
        except DataError as error:
            os._exit(0 if "cannot write below" in str(error) and "File too large" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "file.bin").read_bytes() == b"old"
    assert fetch((f"{server.url}/file.bin",), tmp_path, MD5).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_said(
    server: Server, tmp_path: Path, as_somebody: Callable[[Callable[[], None]], None]
) -> None:
    def check() -> None:
        with pytest.raises(DataError, match="Permission denied|cannot be written"):
            load("mnist", "train", readable)

    readable = tmp_path / "readable"
    readable.mkdir(mode=0o555)
    as_somebody(check)


def archive_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def served_cifar(server: Server, monkeypatch: pytest.MonkeyPatch) -> Named:
    """CIFAR-10 with two images per file, in an archive on the local server."""
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    content = archive_of({f"cifar-10-batches-bin/{file}": bytes(2 * 3073) for file in files})
    server.files["/cifar.tar.gz"] = content
    wanted = Download(
        (f"{server.url}/cifar.tar.gz",),
        "md5:" + hashlib.md5(content).hexdigest(),
        "",
        unpack=True,
        gives="cifar-10-batches-bin",
    )
    entry = dataclasses.replace(NAMED["cifar10"], downloads=(wanted,))
    monkeypatch.setitem(loading.NAMED, "cifar10", entry)
    return entry


def test_a_set_is_downloaded_unpacked_and_found_again(server: Server, served_cifar: Named, own_places: Path) -> None:
    assert len(load("cifar10", "train")) == 10
    assert left(own_places) == [".cifar10.lock", "cifar-10-batches-bin"]
    assert len(load("cifar10", "test", download=False)) == 2
    assert len(server.seen) == 1
    (own_places / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    assert len(load("cifar10", "test")) == 2
    assert len(server.seen) == 2


def test_a_set_goes_where_the_person_said(
    served_cifar: Named, tmp_path: Path, own_places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(load("cifar10", "test", tmp_path / "mine")) == 2
    monkeypatch.setenv("SSLFAST_DATA", str(tmp_path / "environment"))
    assert len(load("cifar10", "test")) == 2
    assert (tmp_path / "mine" / "cifar-10-batches-bin").is_dir()
    assert (tmp_path / "environment" / "cifar-10-batches-bin").is_dir() and not own_places.exists()


def test_a_failed_download_is_one_line_with_places_and_cause(
    server: Server, served_cifar: Named, own_places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sslfast.cli.main import main

    server.files.clear()
    assert main(["data", "cifar10"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "HTTP 404 Not Found" in line and str(own_places) in line and "--data-dir FOLDER" in line


def test_idx_files_are_fetched_one_by_one_and_kept(
    server: Server, own_places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    def packed(rank: int) -> bytes:
        shape = (2, 1, 1)[:rank]
        header = bytes((0, 0, 8, rank)) + b"".join(n.to_bytes(4, "big") for n in shape)
        return gzip.compress(header + bytes(2), mtime=0)

    wanted = []
    for old in NAMED["mnist"].downloads:
        content = packed(3 if "images" in old.file else 1)
        server.files[f"/{old.file}"] = content
        sum_ = "md5:" + hashlib.md5(content).hexdigest()
        wanted.append(dataclasses.replace(old, urls=(f"{server.url}/{old.file}",), checksum=sum_))
    monkeypatch.setitem(loading.NAMED, "mnist", dataclasses.replace(NAMED["mnist"], downloads=tuple(wanted)))
    last = server.files.pop("/t10k-labels-idx1-ubyte.gz")
    with pytest.raises(DataError, match="404"):
        load("mnist", "test")
    server.files["/t10k-labels-idx1-ubyte.gz"] = last
    assert len(load("mnist", "test")) == 2
    assert len(server.seen) == 5


def test_two_processes_download_a_set_once_and_a_killed_one_leaves_no_lock(
    server: Server, served_cifar: Named, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/cifar.tar.gz"] += bytes(1_000_000)  # gzip ignores zeros behind the end
    sum_ = "md5:" + hashlib.md5(server.files["/cifar.tar.gz"]).hexdigest()
    wanted = dataclasses.replace(served_cifar.downloads[0], checksum=sum_)
    monkeypatch.setitem(loading.NAMED, "cifar10", dataclasses.replace(served_cifar, downloads=(wanted,)))
    server.delay = 0.02

    def start() -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if len(load("cifar10", "train", tmp_path)) == 10 else 2
            finally:
                os._exit(code)
        return child

    killed = start()
    partial = tmp_path / "cifar.tar.gz.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    kept = partial.stat().st_size
    assert 0 < kept < len(server.files["/cifar.tar.gz"])
    children = [start(), start()]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert [asked for _, asked in server.seen] == [None, f"bytes={kept}-"]


def test_a_second_holder_waits_for_the_lock(tmp_path: Path) -> None:
    order = []

    def hold() -> None:
        with locked(tmp_path, "set"):
            order.append("second")

    with locked(tmp_path, "set"):
        thread = threading.Thread(target=hold)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def _link() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo("set/link")
        info.type = tarfile.SYMTYPE
        info.linkname = "/etc/passwd"
        tar.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive_of({"set/a": b"1", "../outside": b"2"}), "no plain file below"),
        (archive_of({"/outside": b"2"}), "no plain file below"),
        (_link(), "no plain file below"),
        (archive_of({"set/a": os.urandom(5000)})[:2000], "cannot be unpacked"),
        (b"no archive", "cannot be unpacked"),
        (archive_of({"set/a": bytes(2000)}), "more than"),
    ],
)
def test_a_bad_archive_puts_nothing_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    if message == "more than":
        monkeypatch.setattr(unpack, "UNPACKED_LIMIT", 1000)
    archive = tmp_path / "below" / "bad.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(content)
    with pytest.raises(DataError, match=message):
        unpack.unpack_tar(archive, archive.parent)
    assert left(archive.parent) == ["bad.tar.gz"] and left(tmp_path) == ["below"]


def test_unpacking_completes_what_is_there_and_clears_what_a_killed_run_left(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "own").write_bytes(b"mine")
    (tmp_path / ".a.tar.gz.7.partial").mkdir()
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(archive_of({"./set/a": b"1", "set/deep/b": b"2", "top/c": b"3"}))
    unpack.unpack_tar(archive, tmp_path)
    assert left(tmp_path) == ["a.tar.gz", "set", "top"]
    assert left(tmp_path / "set") == ["a", "deep", "own"]
