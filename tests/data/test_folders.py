import os
import socket
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslfast.data import check_same_classes, load
from sslfast.data import tree as tree_module
from sslfast.data.tree import FolderTree, ZipTree
from sslfast.errors import DataError, UsageError

Draw = Callable[..., np.ndarray]

# Later Pythons warn of any fork beside threads; these children touch none of the parent's.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def zipped(top: Path, archive: Path, inner: str = "") -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path in sorted(top.rglob("*")):
            if path.is_file():
                out.write(path, inner + str(path.relative_to(top)))
    return archive


def test_a_tree_of_classes_is_what_torchvision_reads(tree: Path) -> None:
    from torchvision.datasets import ImageFolder

    theirs = ImageFolder(str(tree / "train"))
    ours = load(f"imagefolder:{tree}", "train")
    assert ours.classes == tuple(theirs.classes)
    assert ours.labels is not None and ours.labels.tolist() == theirs.targets
    assert list(ours.ids) == [path for path, _ in theirs.imgs]
    for i in range(len(ours)):
        assert np.array_equal(ours[i][0], np.asarray(theirs[i][0]))
    assert ours.image_size == (12, 16)
    assert np.array_equal(ours.images([4, 1])[0], ours[4][0])
    assert ours.decoded().fingerprint() == load(f"imagefolder:{tree}", "train").decoded().fingerprint()
    assert len(load(f"imagefolder:{tree}", "val")) == len(load(f"imagefolder:{tree}", "test")) == 6


@pytest.mark.parametrize("inner", ["", "mine/", "./"])
def test_a_zip_of_a_tree_is_the_same_set(tree: Path, tmp_path: Path, inner: str) -> None:
    archive = zipped(tree, tmp_path / "tree.zip", inner)
    inside, outside = load(f"imagefolder:{archive}", "train"), load(f"imagefolder:{tree}", "train")
    assert inside.classes == outside.classes
    assert inside.decoded(8).fingerprint() == outside.decoded(8).fingerprint()
    assert inside.ids[0] == f"{archive}/{'' if inner == './' else inner}train/cat/0.png"
    assert len(load(f"folder:{archive}", "all")) == 12


def test_a_zip_is_read_by_several_processes_and_threads(tree: Path, tmp_path: Path) -> None:
    dataset = load(f"imagefolder:{zipped(tree, tmp_path / 'tree.zip')}", "train")
    wanted = [dataset[i][0] for i in range(len(dataset))]
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            same = all(np.array_equal(dataset[i][0], wanted[i]) for _ in range(20) for i in range(len(dataset)))
            os._exit(0 if same else 1)
        children.append(child)
    assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)
    assert len(dataset.decoded(4)) == 6


def test_a_zip_cannot_name_files_outside_of_it(tmp_path: Path, draw: Draw) -> None:
    secret = tmp_path / "secret.png"
    Image.fromarray(draw()).save(secret)
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.write(secret, "train/cat/good.png")
        for name in ("../secret.png", "/etc/secret.png", "train/cat/../../../secret.png", "train//cat.png"):
            out.writestr(zipfile.ZipInfo(name), secret.read_bytes())
    dataset = load(f"imagefolder:{archive}", "train")
    assert len(dataset) == 1
    assert {one.reason for one in dataset.skipped} == {"a path out of the archive"}
    assert len(dataset.skipped) == 4


def test_a_zip_bomb_is_refused_by_its_member(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "BYTE_LIMIT", 100_000)
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("train/cat/bomb.png", bytes(50_000_000))
        Image.fromarray(draw()).save(tmp_path / "good.png")
        out.write(tmp_path / "good.png", "train/cat/good.png")
    dataset = load(f"imagefolder:{archive}", "train")
    assert len(dataset) == 1 and "unpacks to 50,000,000 bytes" in dataset.skipped[0].reason


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no archive", bytes(500)])
def test_what_is_no_zip_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.zip").write_bytes(content)
    with pytest.raises(DataError, match="no readable zip archive"):
        load(f"imagefolder:{tmp_path / 'broken.zip'}", "train")


def test_a_damaged_member_is_left_out(tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "tree.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        for path in sorted((tree / "train").rglob("*.png")):
            out.write(path, str(path.relative_to(tree)))
    content = bytearray(archive.read_bytes())
    content[content.index(b"IDAT") + 30] ^= 1
    archive.write_bytes(content)
    decoded = load(f"imagefolder:{archive}", "train").decoded(8)
    assert len(decoded) == 5 and len(decoded.skipped) == 1


def test_bad_images_are_left_out_with_a_reason_and_good_ones_stay(tree: Path, draw: Draw) -> None:
    cat = tree / "train" / "cat"
    whole = (cat / "0.png").read_bytes()
    (cat / "empty.jpg").write_bytes(b"")
    (cat / "text.png").write_text("no image")
    (cat / "half.png").write_bytes(whole[: len(whole) // 2])
    (cat / "notes.txt").write_text("not looked at")
    Image.new("RGB", (1, 1)).save(cat / "one.png")
    dataset = load(f"imagefolder:{tree}", "train")
    assert len(dataset) == 8
    assert {os.path.basename(one.path): one.reason for one in dataset.skipped} == {
        "empty.jpg": "empty file",
        "text.png": "no image in a known format",
    }
    assert dataset.image_size is None
    with pytest.raises(DataError, match="differ in size"):
        dataset.images([0])
    half = dataset.ids.index(str(cat / "half.png"))
    with pytest.raises(DataError, match=r"half\.png: .*truncated"):
        dataset[half]
    decoded = dataset.decoded(8)
    assert len(decoded) == 7 and decoded.image_size == (8, 8)
    assert [os.path.basename(one.path) for one in decoded.skipped[2:]] == ["half.png"]
    assert decoded.labels is not None and decoded.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    ragged = dataset.decoded()
    assert len(ragged) == 7 and ragged.image_size is None
    assert np.array_equal(ragged[0][0], dataset[0][0])
    assert np.array_equal(ragged.decoded(8).images(np.arange(7)), decoded.images(np.arange(7)))
    assert ragged.subset([0, 1]).image_size == (12, 16)
    assert ragged.decoded() is ragged


def test_a_file_that_changed_after_loading_is_noticed(tree: Path, draw: Draw) -> None:
    dataset = load(f"imagefolder:{tree}", "train")
    before = dataset.fingerprint()
    Image.fromarray(draw(5, 5)).save(tree / "train" / "cat" / "1.png")
    with pytest.raises(DataError, match="has changed since"):
        dataset.images([1])
    assert len(dataset.decoded(4)) == 5
    (tree / "train" / "cat" / "2.png").unlink()
    with pytest.raises(DataError, match="No such file"):
        dataset[2]
    assert load(f"imagefolder:{tree}", "train").fingerprint() != before


def test_a_class_with_one_image_works_and_one_without_keeps_its_place(tree: Path, draw: Draw) -> None:
    (tree / "train" / "ant").mkdir()
    Image.fromarray(draw()).save(tree / "train" / "ant" / "only.png")
    (tree / "train" / "bee").mkdir()
    dataset = load(f"imagefolder:{tree}", "train")
    assert dataset.classes == ("ant", "bee", "cat", "dog")
    assert dataset.labels is not None and np.bincount(dataset.labels).tolist() == [1, 0, 3, 3]
    assert [(os.path.basename(one.path), one.reason) for one in dataset.skipped] == [
        ("bee", "class folder without a usable image")
    ]
    with pytest.raises(DataError, match="only train has ant, bee"):
        check_same_classes(dataset, load(f"imagefolder:{tree}", "val"))


def test_folders_that_are_no_tree_of_classes_say_what_to_do(tmp_path: Path, tree: Path, draw: Draw) -> None:
    with pytest.raises(DataError, match=r"has no train/ with one folder per class \(it has: cat, dog\)"):
        load(f"imagefolder:{tree / 'train'}", "train")
    (tmp_path / "flat" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="has no class folders"):
        load(f"imagefolder:{tmp_path / 'flat'}", "train")
    (tmp_path / "flat" / "train" / "cat").mkdir()
    with pytest.raises(DataError, match="no image that can be read"):
        load(f"imagefolder:{tmp_path / 'flat'}", "train")
    (tmp_path / "empty").mkdir()
    for name in ("folder", "imagefolder"):
        with pytest.raises(DataError):
            load(f"{name}:{tmp_path / 'empty'}", "train")
        with pytest.raises(DataError, match="No such file or directory; give the path"):
            load(f"{name}:{tmp_path / 'nothing'}", "train")
    with pytest.raises(UsageError, match="no split 'tran'.*did you mean train"):
        load(f"imagefolder:{tree}", "tran")
    Image.fromarray(draw()).save(tree / "val" / "stray.png")
    stray = load(f"imagefolder:{tree}", "val")
    assert len(stray) == 6 and stray.skipped[0].reason == "not in a class folder"


def test_a_tree_without_labels_takes_every_image_below_it(tree: Path, draw: Draw) -> None:
    (tree / ".hidden").mkdir()
    Image.fromarray(draw()).save(tree / ".hidden" / "no.png")
    Image.fromarray(draw()).save(tree / "train" / "._mac.png")
    dataset = load(f"folder:{tree}", "all")
    assert len(dataset) == 12 and dataset.labels is None and dataset.classes is None and dataset.skipped == ()
    assert dataset[0][1] == -1
    one = load(f"folder:{tree / 'train' / 'cat' / '0.png'}", "all")
    assert len(one) == 1 and np.array_equal(one[0][0], dataset[0][0])


def test_links_are_followed_loops_end_and_odd_files_are_left_out(tree: Path) -> None:
    (tree / "train" / "cat" / "up").symlink_to(tree, target_is_directory=True)
    (tree / "train" / "self").symlink_to("self")
    (tree / "train" / "gone.png").symlink_to("nowhere.png")
    (tree / "train" / "again.png").symlink_to(tree / "val" / "dog" / "0.png")
    os.mkfifo(tree / "train" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(tree / "train" / "s.png"))
    dataset = load(f"folder:{tree}", "all")
    assert len(dataset) == 13
    assert {os.path.basename(one.path): one.reason for one in dataset.skipped} == {
        "gone.png": "No such file or directory",
        "self": "Too many levels of symbolic links",
        "pipe.png": "no regular file",
        "s.png": "no regular file",
    }


def test_paths_that_are_no_utf8_work_and_print(tmp_path: Path, draw: Draw, capsys: pytest.CaptureFixture[str]) -> None:
    from sslfast.cli.main import main

    label = os.fsencode(tmp_path) + b"/top\xff/train/c\xe9t"
    os.makedirs(label)
    Image.fromarray(draw()).save(os.fsdecode(label + b"/\xfe.png"))
    with open(label + b"/bad\xfd.png", "wb") as out:
        out.write(b"x")
    name = "imagefolder:" + os.fsdecode(os.fsencode(tmp_path) + b"/top\xff")
    dataset = load(name, "train")
    assert os.path.isfile(dataset.ids[0])
    assert dataset[0][0].shape == (12, 16, 3)
    assert dataset.fingerprint()
    print(repr(dataset), dataset.skipped[0])
    assert main(["data", name]) == 0
    assert main(["data", name, "--json"]) == 0
    assert main(["data", name, "--split", "test"]) == 2
    assert main(["data", name.replace("top", "no")]) == 1
    shown = capsys.readouterr()
    assert "c\\xe9t" in shown.out and "bad\\xfd.png" in shown.out
    (shown.out + shown.err).encode("utf-8")


def test_folders_without_permission_are_left_out(
    tree: Path, tmp_path: Path, as_somebody: Callable[[Callable[[], None]], None]
) -> None:
    os.chmod(tree / "train" / "cat", 0)
    os.chmod(tree / "train" / "dog" / "1.png", 0)

    def check() -> None:
        dataset = load(f"imagefolder:{tree}", "train")
        assert dataset.classes == ("cat", "dog") and len(dataset) == 2
        reasons = {os.path.basename(one.path): one.reason for one in dataset.skipped}
        assert reasons["1.png"] == "Permission denied"
        os_error = [one.reason for one in dataset.skipped if one.path.endswith("cat")]
        assert "cannot be listed: Permission denied" in os_error
        try:
            load(f"folder:{tree / 'train' / 'cat'}", "all")
        except DataError as error:
            assert "Permission denied" in str(error)
        else:
            raise AssertionError

    try:
        as_somebody(check)
    finally:
        os.chmod(tree / "train" / "cat", 0o755)  # pytest removes its old folders


def test_a_folder_of_many_images_is_listed_without_opening_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3000):
        (tmp_path / f"{i:05d}.png").write_bytes(b"x")
    opened = []
    monkeypatch.setattr(FolderTree, "open", lambda self, path: opened.append(path))
    listing = FolderTree(tmp_path).listing()
    assert len(listing.members) == 3000 and not opened
    assert [member.path for member in listing.members] == sorted(member.path for member in listing.members)


def test_a_tree_of_names_with_odd_characters(tmp_path: Path, draw: Draw) -> None:
    names = [
        "with space.png",
        "new\nline.png",
        "tab\t.PNG",
        "\u4e2d\u6587.jpeg",
        "a" * 200 + ".png",
        "-rf.png",
        "[x].png",
    ]
    for name in names:
        Image.fromarray(draw()).save(tmp_path / name)
    dataset = load(f"folder:{tmp_path}", "all")
    assert sorted(os.path.basename(path) for path in dataset.ids) == sorted(names)
    assert sys.getsizeof(repr(dataset)) and ZipTree(zipped(tmp_path, tmp_path / "z.zip")).listing().members


def test_one_corrupt_file_in_a_hundred_is_counted_exactly(tmp_path: Path, draw: Draw) -> None:
    Image.fromarray(draw()).save(tmp_path / "00000.png")
    whole = (tmp_path / "00000.png").read_bytes()
    bad = {"header": b"", "text": b"no image", "half": whole[:300]}
    wrong = []
    for i in range(1, 2000):
        path = tmp_path / f"{i:05d}.png"
        path.write_bytes(whole if i % 100 else bad[("header", "text", "half")[i // 100 % 3]])
        wrong += [] if i % 100 else [str(path)]
    dataset = load(f"folder:{tmp_path}", "all").decoded()
    assert len(dataset) == 2000 - len(wrong)
    assert sorted(one.path for one in dataset.skipped) == wrong
    assert not set(dataset.ids) & set(wrong)
    assert (dataset.images(np.arange(len(dataset))) == dataset[0][0]).all()
