"""Example images per predicted class."""

import numpy as np
import pytest
from PIL import Image

from sslfast.data import Dataset
from sslfast.data.memory import ArrayPixels
from sslfast.errors import DataError
from sslfast.evaluate.grids import FRAME, GAP, RIGHT, WRONG, draw_grid, example_rows, write_example_grids


@pytest.fixture
def greys():
    """Image i is all of grey level i."""
    array = np.repeat(np.arange(60, dtype=np.uint8), 64).reshape(60, 8, 8)
    labels = np.arange(60) % 3
    return Dataset(
        "greys", "test", ArrayPixels(array), ids=list(map(str, range(60))), labels=labels, classes=("a/b", "c", "ü")
    )


def test_a_grid_per_predicted_class_shows_its_images_framed_by_what_they_are(greys, tmp_path):
    predicted = np.where(np.arange(60) < 50, 1, 0)
    paths = write_example_grids(greys, predicted, tmp_path, per_class=4)
    assert [path.name for path in paths] == ["00-a_b.png", "01-c.png"]
    with Image.open(paths[1]) as picture:
        sheet = np.asarray(picture)
    rows = example_rows(predicted, 4)[1]
    assert len(rows) == 4 and all(row < 50 for row in rows)
    cell = 48 + 2 * FRAME + GAP
    for number, row in enumerate(rows):
        top, left = GAP + number // 2 * cell, GAP + number % 2 * cell
        assert (sheet[top + FRAME : top + FRAME + 48, left + FRAME : left + FRAME + 48] == row).all()
        assert tuple(sheet[top, left]) == (RIGHT if row % 3 == 1 else WRONG)


def test_images_are_drawn_by_chance_and_repeat_by_seed():
    predicted = np.zeros(1000, dtype=int)
    one, again, other = (example_rows(predicted, 10, seed)[0].tolist() for seed in (0, 0, 1))
    assert one == again != other and max(one) > 100


def test_large_images_are_reduced_and_clusters_need_no_names(tmp_path):
    array = np.zeros((3, 300, 200, 3), dtype=np.uint8)
    dataset = Dataset("large", "all", ArrayPixels(array), ids=list("abc"))
    (path,) = write_example_grids(dataset, [12, 12, 12], tmp_path)
    with Image.open(path) as picture:
        assert path.name == "12.png" and max(picture.size) < 300
    assert draw_grid([array[0]]).size == draw_grid([array[0, :128, :128]]).size


def test_predictions_of_another_set_are_refused(greys, tmp_path):
    with pytest.raises(DataError, match="60 images, 59 predictions"):
        write_example_grids(greys, np.zeros(59, dtype=int), tmp_path)
