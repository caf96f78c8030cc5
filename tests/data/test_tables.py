from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslfast.data import load
from sslfast.data.table import splits
from sslfast.errors import DataError, UsageError


@pytest.fixture
def table(tmp_path: Path, draw: Callable[..., np.ndarray]) -> Callable[[str], Path]:
    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.fromarray(draw()).save(tmp_path / "images" / f"{i}.png")

    def write(content: str) -> Path:
        path = tmp_path / "table.csv"
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        return path

    return write


def test_a_table_gives_images_and_labels(table: Callable[[str], Path]) -> None:
    path = table("image,label\nimages/1.png,dog\nimages/0.png,cat\n")
    dataset = load(f"csv:{path}", "train")
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels is not None and dataset.labels.tolist() == [1, 0]
    assert dataset.ids == (str(path.parent / "images/1.png"), str(path.parent / "images/0.png"))
    assert dataset.image_size == (12, 16)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffLabel;Filename\ncat;images/0.png\ndog;images/1.png\n",
        "path\tclass\r\nimages/0.png\tcat\r\nimages/1.png\tdog\r\n",
        "images/0.png,cat\nimages/1.png,dog",
        'image , label\n"images/0.png", cat\n\n , \nimages/1.png,dog\n\n',
        "id,image,label\n7,images/0.png,cat\n8,images/1.png,dog\n",
    ],
)
def test_tables_of_other_habits_are_read_too(table: Callable[[str], Path], content: str) -> None:
    dataset = load(f"csv:{table(content)}", "train")
    assert dataset.classes == ("cat", "dog") and len(dataset) == 2
    assert dataset.labels is not None and dataset.labels.tolist() == [0, 1]


def test_a_table_without_labels_has_none(table: Callable[[str], Path]) -> None:
    dataset = load(f"csv:{table('image' + chr(10) + 'images/0.png' + chr(10))}", "train")
    assert dataset.labels is None and dataset.classes is None and len(dataset) == 1


def test_bad_rows_are_left_out_with_their_line(table: Callable[[str], Path]) -> None:
    path = table(
        "image,label\nimages/0.png,cat\nimages/none.png,cat\n,cat\nimages/1.png,\nimages/0.png,cat\n"
        "./images/0.png,dog\nimages,cat\nimages/2.png,dog\n"
    )
    dataset = load(f"csv:{path}", "train")
    assert len(dataset) == 2
    reasons = {one.path.rsplit("/", 1)[1]: one.reason for one in dataset.skipped}
    assert reasons == {
        "table.csv:4": "no image",
        "table.csv:5": "no label",
        "table.csv:6": "images/0.png stands in line 2 too",
        "table.csv:7": "./images/0.png stands in line 2 too with another label, cat",
        "none.png": "No such file or directory",
        "images": "no regular file",
    }


def test_a_split_column_divides_a_table_whose_classes_stay_the_same(table: Callable[[str], Path]) -> None:
    path = table("image,label,split\nimages/0.png,10,train\nimages/1.png,9,test\nimages/2.png,10,test\n")
    train, test = load(f"csv:{path}", "train"), load(f"csv:{path}", "test")
    assert train.classes == test.classes == ("9", "10")
    assert train.labels is not None and train.labels.tolist() == [1]
    assert test.labels is not None and test.labels.tolist() == [0, 1]
    assert len(load(f"csv:{path}", "all")) == 3
    assert splits(path) == ("train", "test")
    with pytest.raises(UsageError, match="it has: train, test, all"):
        load(f"csv:{path}", "val")


def test_the_same_rows_are_never_both_train_and_test(table: Callable[[str], Path]) -> None:
    path = table("image,label\nimages/0.png,cat\n")
    with pytest.raises(UsageError, match="a column named split divides a table"):
        load(f"csv:{path}", "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,b\n1,2\n", "has no column image"),
        ("image,label\n", "no image that can be read"),
        ('image,label\n"images/0.png,cat\n', "line 2: .*; mend that line"),
        ("image,label\nnone.png,cat\n", "no image that can be read; 1 skipped, the first: .*none.png: No such file"),
        ("image,label\nnu\0l.png,cat\n", "no image that can be read|line"),
    ],
)
def test_tables_that_cannot_be_used_say_why(table: Callable[[str], Path], content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(f"csv:{table(content)}", "train")


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file or directory"):
        load(f"csv:{tmp_path / 'none.csv'}", "train")
    with pytest.raises(DataError, match="Is a directory"):
        load(f"csv:{tmp_path}", "train")


def test_names_in_another_encoding_are_kept(
    table: Callable[[str], Path], tmp_path: Path, draw: Callable[..., np.ndarray]
) -> None:
    Image.fromarray(draw()).save(tmp_path / "caf\udce9.png")
    dataset = load(
        f"csv:{table('image,label' + chr(10) + 'caf' + chr(0xDCE9) + '.png,caf' + chr(0xDCE9) + chr(10))}", "train"
    )
    assert dataset.classes == ("caf\udce9",) and dataset[0][0].shape == (12, 16, 3)
