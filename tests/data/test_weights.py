"""Published weights: the table, and downloads of them from a server on this machine."""

import dataclasses
import hashlib
import json
import re

import pytest
from serving import CONTENT, MD5, Server

from sslfast.cli.main import main
from sslfast.data import weights
from sslfast.data.weights import PUBLISHED, Published, fetch_weights, find_weights, published
from sslfast.errors import DataError, UsageError
from sslfast.models import check_architecture
from sslfast.models.layouts import BY_NAME

SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


def entry(server: Server, checksum: str | None, name: str = "one") -> Published:
    return Published(name, "a file", f"{server.url}/file.bin", checksum, "resnet18")


@pytest.fixture
def listed(server, monkeypatch):
    """Puts one file of the local server into the table."""

    def put(checksum):
        monkeypatch.setitem(PUBLISHED, "one", entry(server, checksum))
        return server

    return put


def test_every_entry_is_whole():
    for name, one in PUBLISHED.items():
        assert name == one.name and one.url.startswith("https://") and one.what
        assert one.checksum is None or re.fullmatch(r"md5:[0-9a-f]{8,32}|sha256:[0-9a-f]{8,64}", one.checksum)
        assert one.layout is None or one.layout == "plain" or one.layout in BY_NAME
        # Whether these have a max-pool shows in no weight: with the layout given, the name decides.
        assert one.layout is not None or not one.name.startswith("bolts-")
        check_architecture(one.architecture)
    assert len({one.url for one in PUBLISHED.values()}) == len(PUBLISHED)


def test_torchvisions_files_carry_their_hash():
    one = published("torchvision:resnet50")
    assert one.url.endswith("/resnet50-0676ba61.pth") and one.checksum == "sha256:0676ba61"
    assert published("torchvision:resnet50@IMAGENET1K_V2").checksum == "sha256:11ad3fa6"
    assert (one.architecture, one.layout) == ("resnet50", "torchvision")
    for name in ("torchvision:resnet51", "torchvision:resnet50@V9", "torchvision:fcn_resnet50", "nobody's"):
        with pytest.raises(UsageError) as caught:
            published(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("checksum", [SHA, SHA[:15], MD5[:12]])
def test_a_published_checksum_is_met(listed, own_places, checksum):
    server = listed(checksum)
    server.breaks = [200_000]  # the connection breaks off once, and is continued
    path = fetch_weights("one")
    assert path == own_places / "weights" / "one" / "file.bin" and path.read_bytes() == CONTENT
    asked = len(server.seen)
    assert fetch_weights("one") == path and len(server.seen) == asked
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(DataError, match="is not the published file"):
        fetch_weights("one")


def test_another_file_than_the_published_one_is_deleted(listed, own_places):
    listed("sha256:00000000")
    with pytest.raises(DataError, match="wrong sha256"):
        fetch_weights("one")
    assert find_weights(PUBLISHED["one"]) is None


def test_without_a_published_checksum_the_first_download_is_recorded(listed, tmp_path):
    server = listed(None)
    path = fetch_weights("one", tmp_path / "d")
    assert path.with_name("file.bin.sha256").read_text().startswith(SHA.removeprefix("sha256:"))
    path.write_bytes(b"other")
    with pytest.raises(DataError, match="not the file that was downloaded first"):
        fetch_weights("one", tmp_path / "d")
    path.unlink()
    server.files["/file.bin"] = b"another file under the same address"
    with pytest.raises(DataError, match="wrong sha256"):
        fetch_weights("one", tmp_path / "d")


def test_two_files_of_one_name_do_not_meet(server, monkeypatch, own_places):
    for name in ("a", "b"):
        monkeypatch.setitem(PUBLISHED, name, entry(server, SHA, name))
    assert fetch_weights("a") != fetch_weights("b")
    assert weights.FOLDER in str(fetch_weights("a"))


def test_the_command(listed, own_places, capsys):
    listed(None)
    assert main(["data", "fetch-weights"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PUBLISHED) and "torchvision:NAME" in shown and "md5:a04e12f8" in shown
    assert main(["data", "fetch-weights", "one"]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(own_places / "weights" / "one" / "file.bin")
    assert "next: sslfast data inspect-checkpoint" in told.err and "--backbone resnet18" in told.err
    assert main(["data", "fetch-weights", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["path"] for row in rows}["one"].endswith("file.bin")
    assert main(["data", "fetch-weights", "two"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert dataclasses.asdict(PUBLISHED["one"])["checksum"] is None
