import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sslfast.cli.main import main
from sslfast.data import load, places
from sslfast.errors import DataError

RECORD = bytes(3073)

# Later Pythons warn of any fork beside threads; these children touch none of the parent's.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def cifar_in(root: Path, count: int) -> None:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "test_batch.bin").write_bytes(RECORD * count)


def test_places_are_searched_in_their_order(tmp_path: Path, own_places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLFAST_DATA", str(tmp_path / "environment"))
    roots = [tmp_path / "option", tmp_path / "environment", own_places, tmp_path / "system"]
    for count, root in reversed(list(enumerate(roots, start=1))):
        cifar_in(root, count)
        assert len(load("cifar10", "test", tmp_path / "option", download=False)) == count


def test_a_set_that_is_nowhere_names_every_place_and_what_to_type(
    tmp_path: Path, own_places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSLFAST_DATA", str(tmp_path / "environment"))
    options = ["data", "fashion-mnist", "--data-dir", str(tmp_path / "option"), "--no-download"]
    assert main(options) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for place in (tmp_path / "option", tmp_path / "environment", own_places, tmp_path / "system"):
        assert f"{place}/fashion-mnist" in line
    assert "apt-get install dataset-fashion-mnist" in line and "--data-dir" in line
    assert not (tmp_path / "option").exists()


def test_the_cache_follows_xdg_then_home_then_the_user_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert places.cache_folder() == Path("/somewhere/sslfast/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/person")
    assert places.cache_folder() == Path("/home/person/.cache/sslfast/data")
    monkeypatch.delenv("HOME")
    assert places.cache_folder().parts[-3:] == (".cache", "sslfast", "data")

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(places.pwd, "getpwuid", nobody)
    assert places.cache_folder() == places.temporary_cache_folder()


def test_without_a_home_the_data_command_works(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-m", "sslfast.cli.main", "data", "digits", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [one["images"] for one in json.loads(done.stdout)] == [1438, 359]


def test_a_home_that_cannot_be_written_sends_downloads_to_the_temporary_folder(
    tmp_path: Path, own_places: Path, as_somebody: Callable[[Callable[[], None]], None]
) -> None:
    os.chmod(tmp_path / "temporary", 0o1777)
    (tmp_path / "readable").mkdir(mode=0o555)
    (tmp_path / "closed").mkdir(mode=0o000)

    def check() -> None:
        os.environ["XDG_CACHE_HOME"] = str(tmp_path / "readable" / "xdg")
        folder = places.writable_cache_folder()
        assert folder == places.temporary_cache_folder() and folder.parent.stat().st_mode & 0o777 == 0o700
        cifar_in(folder, 2)
        assert len(load("cifar10", "test", download=False)) == 2
        # A home that may not even be looked into is passed over.
        os.environ["XDG_CACHE_HOME"] = str(tmp_path / "closed" / "below")
        assert len(load("cifar10", "test", download=False)) == 2
        for root in (tmp_path / "readable", tmp_path / "closed", tmp_path / "closed" / "below"):
            try:
                places.download_folder(root)
            except DataError as error:
                assert "another --data-dir" in str(error)
            else:
                raise AssertionError(root)

    try:
        as_somebody(check)
    finally:
        os.chmod(tmp_path / "closed", 0o700)


def test_a_temporary_folder_that_another_user_made_is_refused(tmp_path: Path, own_places: Path) -> None:
    planted = places.temporary_cache_folder()
    planted.mkdir(parents=True)
    os.chmod(planted.parent, 0o777)
    cifar_in(planted, 1)
    with pytest.raises(DataError, match="is not in"):
        load("cifar10", "test", download=False)
    own_places.parent.parent.mkdir(parents=True)
    own_places.parent.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="no folder for data can be written"):
        places.writable_cache_folder()


def test_the_list_of_names_says_what_is_there(
    tmp_path: Path, own_places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cifar_in(own_places, 1)
    assert main(["data"]) == 0
    out = capsys.readouterr().out
    assert "some splits" in out and "imagefolder:PATH" in out and "apt-get install dataset-fashion-mnist" in out
    assert main(["data", "--json"]) == 0
    states = {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states["digits"] == "there" and states["cifar10"] == "some splits" and states["mnist"] == "not here"


def test_a_set_is_described_with_its_skipped_images(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        (tree / "train" / "dog" / f"bad{i:02d}.png").write_bytes(b"")
    assert main(["data", f"imagefolder:{tree}"]) == 0
    out = capsys.readouterr().out
    assert "6 images, 12 x 16 pixels" in out and "12 left out" in out and "bad09.png: empty file" in out
    assert "2 more; --json lists all" in out and "bad10" not in out
    assert main(["data", f"imagefolder:{tree}", "--split", "train", "--json"]) == 0
    (described,) = json.loads(capsys.readouterr().out)
    assert len(described["skipped"]) == 12 and described["classes"][1] == {"class": "dog", "images": 3}
    assert main(["data", "nothing"]) == 2
    assert main(["data", f"folder:{tree}"]) == 0
    assert "no labels" in capsys.readouterr().out
