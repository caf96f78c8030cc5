"""Extraction that is killed, starved of disk, raced or refused: nothing is lost, and nothing partial is read."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from sslfast.errors import SslfastError, UsageError
from sslfast.features import FeatureStore, extract

ROWS, SHARD_ROWS = 150, 50
OPTIONS = {"rows": ROWS, "shard_rows": SHARD_ROWS, "batch_size": 16, "views": ["identity", "flip"]}
NOBODY = 65534


@pytest.fixture(scope="module")
def unbroken(children, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert children({"out": str(folder), **OPTIONS}) == [[0, ""]]
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def check_killed(children, folder, unbroken, files_of, **kill):
    """Kill an extraction, see that nothing partial opens, resume it and compare with an unbroken one."""
    [(status, _)] = children({"out": str(folder), **OPTIONS, **kill})
    if (folder / "manifest.json").exists():
        FeatureStore.open(folder).verify()
    else:
        with pytest.raises(SslfastError):
            FeatureStore.open(folder)
        assert status == -9, status
    assert children({"out": str(folder), **OPTIONS}) == [[0, ""]]
    content = files_of(folder)
    content.pop("progress.jsonl", None)  # stays when the kill came between the commit and its removal
    assert content == unbroken
    shutil.rmtree(folder)
    return status


def test_killed_at_every_lasting_call(children, tmp_path, unbroken, files_of):
    """Before each fsync, rename and removal of the whole extraction."""
    number = 1
    while check_killed(children, tmp_path / "store", unbroken, files_of, kill_at=number) == -9:
        number += 1
    assert number > 20


def check_random_kills(children, tmp_path, unbroken, files_of, count, seed):
    """Kill ``count`` extractions, each at a random moment of the time that one takes here."""
    started = time.perf_counter()
    assert children({"out": str(tmp_path / "whole"), **OPTIONS}) == [[0, ""]]
    longest = time.perf_counter() - started
    moments = np.random.default_rng(seed)
    runs = kills = 0
    while kills < count:
        delay = moments.uniform(0, longest)
        kills += check_killed(children, tmp_path / "store", unbroken, files_of, kill_after=delay) == -9
        runs += 1
        assert runs < 20 * count, "hardly a run was killed"
    return runs


def test_killed_at_random_moments(children, tmp_path, unbroken, files_of):
    check_random_kills(children, tmp_path, unbroken, files_of, 12, seed=0)


@pytest.mark.soak
def test_killed_at_two_hundred_random_moments(children, tmp_path, unbroken, files_of, record_property):
    runs = check_random_kills(children, tmp_path, unbroken, files_of, 200, seed=1)
    record_property("runs", runs)
    record_property("kills", 200)


def stopped_before_commit(cases, folder, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sslfast.features.extraction._commit", stop)
        resume(cases, folder)


def resume(cases, folder):
    return extract(cases.make_backbone(), cases.make_dataset(90), folder, shard_rows=30)


def test_only_missing_and_damaged_shards_are_computed(cases, tmp_path, monkeypatch, files_of):
    stopped_before_commit(cases, tmp_path / "store", monkeypatch)
    resume(cases, tmp_path / "other")
    times = {name: (tmp_path / "store" / name).stat().st_mtime_ns for name in files_of(tmp_path / "store")}
    with (tmp_path / "store" / "shard-00001.safetensors").open("r+b") as handle:
        handle.seek(500)
        handle.write(b"flip")
    (tmp_path / "store" / "shard-00002.safetensors.77.partial").write_bytes(b"half")
    resume(cases, tmp_path / "store").verify()
    assert files_of(tmp_path / "store") == files_of(tmp_path / "other")
    now = {name: (tmp_path / "store" / name).stat().st_mtime_ns for name in times if name.startswith("shard")}
    assert [name for name in now if now[name] != times[name]] == ["shard-00001.safetensors"]


@pytest.mark.parametrize("tail", [b'{"number":3,"na', bytes(64), b"\n", b'{"number":0} 00000000\n'])
def test_a_torn_journal_line_is_dropped(cases, tmp_path, monkeypatch, files_of, tail):
    stopped_before_commit(cases, tmp_path / "store", monkeypatch)
    resume(cases, tmp_path / "other")
    with (tmp_path / "store" / "progress.jsonl").open("ab") as handle:
        handle.write(tail)
    resume(cases, tmp_path / "store")
    assert files_of(tmp_path / "store") == files_of(tmp_path / "other")


def test_a_journal_without_a_whole_line_is_not_overwritten(cases, tmp_path, monkeypatch, files_of):
    stopped_before_commit(cases, tmp_path, monkeypatch)
    (tmp_path / "progress.jsonl").write_bytes(b'{"key"')
    before = files_of(tmp_path)
    with pytest.raises(SslfastError, match="first line"):
        resume(cases, tmp_path)
    assert files_of(tmp_path) == before


def test_a_damaged_manifest_is_not_overwritten(cases, tmp_path, files_of):
    resume(cases, tmp_path)
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes()[:-30])
    before = files_of(tmp_path)
    with pytest.raises(SslfastError, match="damaged"):
        resume(cases, tmp_path)
    assert files_of(tmp_path) == before


def check_races(children, tmp_path, unbroken, files_of, count):
    for number in range(count):
        folder = tmp_path / f"race-{number}"
        command = {"out": str(folder), **OPTIONS}
        assert children(command, command) == [[0, ""], [0, ""]]
        assert files_of(folder) == unbroken
        shutil.rmtree(folder)


def test_two_processes_at_once(children, tmp_path, unbroken, files_of):
    check_races(children, tmp_path, unbroken, files_of, 5)


@pytest.mark.soak
def test_two_processes_at_once_fifty_times(children, tmp_path, unbroken, files_of, record_property):
    check_races(children, tmp_path, unbroken, files_of, 50)
    record_property("races", 50)


def test_two_processes_with_different_keys(children, tmp_path):
    folder = str(tmp_path / "store")
    answers = children({"out": folder, **OPTIONS}, {"out": folder, **OPTIONS, "dtype": "float16"})
    assert sorted(status for status, _ in answers) == [0, 2]
    assert any("dtype" in error for _, error in answers)
    FeatureStore.open(folder).verify()


def test_one_of_two_is_killed(children, tmp_path, unbroken, files_of):
    folder = tmp_path / "store"
    answers = children({"out": str(folder), **OPTIONS, "kill_at": 9}, {"out": str(folder), **OPTIONS})
    assert [0, ""] in answers
    assert files_of(folder) == unbroken


def check_full_disk(children, folder, unbroken, files_of, error, **limit):
    """Extraction fails in one line, leaves no partial file, and goes on when there is room."""
    [(status, text)] = children({"out": str(folder), **OPTIONS, **limit})
    assert status == 1 and error in text and "\n" not in text
    assert not list(folder.glob("*.partial"))
    with pytest.raises(SslfastError):
        FeatureStore.open(folder)


@pytest.mark.parametrize("limit", np.random.default_rng(0).integers(0, 4000, 8).tolist() + [0, 1])
def test_a_limit_on_the_length_of_files(children, tmp_path, unbroken, files_of, limit):
    folder = tmp_path / "store"
    assert limit < max(map(len, unbroken.values()))
    check_full_disk(children, folder, unbroken, files_of, "File too large", limit_bytes=limit)
    assert children({"out": str(folder), **OPTIONS}) == [[0, ""]]
    assert files_of(folder) == unbroken


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 160 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here; the limit on the length of files is tested instead")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(children, small_disk, unbroken, files_of):
    """One store is there and keeps; the next one does not fit until a file is removed."""
    earlier = small_disk / "earlier"
    assert children({"out": str(earlier), **OPTIONS}) == [[0, ""]]
    content = files_of(earlier)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(1 << 18))
    os.truncate(filler, filler.stat().st_size - 8192)
    check_full_disk(children, small_disk / "store", unbroken, files_of, "No space left", features=5)
    assert files_of(earlier) == content
    FeatureStore.open(earlier).verify()
    filler.unlink()
    assert children({"out": str(small_disk / "store"), **OPTIONS}) == [[0, ""]]
    assert files_of(small_disk / "store") == unbroken


@pytest.fixture
def open_folder():
    """A folder that every user may reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written(children, open_folder, files_of):
    user = {"user": NOBODY} if os.getuid() == 0 else {}
    store = open_folder / "store"
    assert children({"out": str(store), **OPTIONS}) == [[0, ""]]
    before = files_of(store)
    for folder in (store, open_folder):
        folder.chmod(0o555)
    # A complete store is opened, another one is refused, and so is a new folder.
    assert children({"out": str(store), **OPTIONS, **user}) == [[0, ""]]
    [(status, error)] = children({"out": str(store), **OPTIONS, **user, "dtype": "float16"})
    assert status == 2 and "dtype" in error
    [(status, error)] = children({"out": str(open_folder / "new"), **OPTIONS, **user})
    assert status == 1 and "cannot write in" in error and "--out" in error
    assert files_of(store) == before
    open_folder.chmod(0o755)


def test_an_output_that_is_a_file(cases, tmp_path):
    (tmp_path / "store").write_text("notes")
    with pytest.raises(SslfastError, match="cannot"):
        resume(cases, tmp_path / "store")
    assert (tmp_path / "store").read_text() == "notes"


def test_resume_false_on_a_part(cases, tmp_path, monkeypatch):
    stopped_before_commit(cases, tmp_path, monkeypatch)
    with pytest.raises(UsageError, match="already holds"):
        extract(cases.make_backbone(), cases.make_dataset(90), tmp_path, shard_rows=30, resume=False)
