"""The dense probe, images with masks, and the intersection over union."""

import numpy as np
import pytest
import torch
from PIL import Image

from sslfast.data import Dataset, pets, shapes
from sslfast.data.masks import IGNORED, MaskedImages, load_masks, nearest
from sslfast.data.memory import ArrayPixels
from sslfast.errors import DataError, UsageError
from sslfast.evaluate import DenseConfig, dense, dense_probe
from sslfast.models import Preprocess, load_backbone

SMALL = Preprocess(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SHORT = DenseConfig(epochs=5, batch_size=8, learning_rate=0.03)


def test_generated_images_are_a_function_of_their_numbers():
    one, again = (load_masks("shapes-on-texture", "train", 32, count=20) for _ in range(2))
    assert np.array_equal(one.images(range(20)), again.images(range(20))) and np.array_equal(one.masks, again.masks)
    more = load_masks("shapes-on-texture", "train", 32, count=30)
    assert np.array_equal(more.masks[:20], one.masks)
    for other in (
        load_masks("shapes-on-texture", "test", 32, count=20),
        load_masks("shapes-on-texture", "train", 32, count=20, seed=1),
    ):
        assert not np.array_equal(other.images(range(20)), one.images(range(20)))
    assert set(np.unique(more.masks)) == {0, 1, 2, 3} and more.dataset.name == "shapes-on-texture"


def test_a_generated_mask_lies_where_its_shape_is():
    """The image changes at the mask's edges more than elsewhere, and a mirrored mask has its edges elsewhere."""
    made = load_masks("shapes-on-texture", "train", 48, count=150)
    change = np.abs(np.diff(made.images(range(150)).astype(int), axis=2)).sum(3)
    ratios = []
    for masks in (made.masks, made.masks[:, :, ::-1], made.masks.transpose(0, 2, 1)):
        edge = np.diff(masks.astype(int), axis=2) != 0
        ratios.append(change[edge].mean() / change[~edge].mean())
    assert ratios[0] > 1.5 > 1.2 > max(ratios[1:])


@pytest.mark.parametrize(
    ("kind", "area"), [(1, np.pi), (2, 2.0), (3, 3 * 3**0.5 / 4)], ids=["disc", "square", "triangle"]
)
def test_a_shape_has_the_area_of_its_kind(kind, area):
    """Of the circle around it: pi, 2 and 1.3 times its squared radius."""
    places = (np.arange(800) + 0.5) / 400 - 0.5
    y, x = np.meshgrid(places, places, indexing="ij")
    for seed in range(5):
        inside = shapes._inside(np.random.default_rng(seed), kind, x, y)
        centre = np.array([x[inside].mean(), y[inside].mean()])
        radius = np.hypot(x[inside] - centre[0], y[inside] - centre[1]).max()
        assert inside.sum() / 400**2 / radius**2 == pytest.approx(area, rel=0.08)


def write_pets(folder, count=6):
    """A folder like the Oxford-IIIT Pets': photographs of several sizes and trimaps."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations/trimaps").mkdir(parents=True)
    random = np.random.default_rng(0)
    lines = ["#Image CLASS-ID SPECIES BREED ID"]
    for number in range(count):
        shape = (40 + number, 60)
        trimap = np.full(shape, 2, dtype=np.uint8)
        trimap[10:30, 20:50] = 1
        trimap[8:10] = 3
        Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / f"images/cat_{number}.jpg")
        Image.fromarray(trimap).save(folder / f"annotations/trimaps/cat_{number}.png")
        lines.append(f"cat_{number} 1 1 1")
    for split in ("trainval", "test"):
        (folder / f"annotations/{split}.txt").write_text("\n".join(lines) + "\n")


def test_trimaps_of_pets_are_read_beside_their_photographs(tmp_path):
    write_pets(tmp_path / "oxford-iiit-pet")
    made = load_masks("oxford-pets", "train", 20, root=tmp_path)
    assert made.classes == ("background", "pet") and len(made) == 6 and made.size == 20
    assert made.images([0]).shape == (1, 20, 20, 3)
    # Rows 10 to 29 of 40 and columns 20 to 49 of 60 are the pet; rows 8 and 9 are undecided.
    wanted = np.zeros((20, 20), dtype=np.uint8)
    wanted[5:15, 7:17] = 1
    wanted[4] = IGNORED
    assert (made.masks[0] == wanted).mean() > 0.97
    assert set(np.unique(made.masks)) == {0, 1, IGNORED}


def test_pets_without_a_trimap_or_with_a_strange_one_are_left_out(tmp_path):
    folder = tmp_path / "oxford-iiit-pet"
    write_pets(folder)
    (folder / "annotations/trimaps/cat_0.png").unlink()
    (folder / "annotations/trimaps/cat_1.png").write_bytes(b"no image")
    Image.fromarray(np.full((40, 60), 7, dtype=np.uint8)).save(folder / "annotations/trimaps/cat_2.png")
    Image.fromarray(np.full((40, 60, 3), 1, dtype=np.uint8)).save(folder / "annotations/trimaps/cat_3.png")
    made = load_masks("oxford-pets", "test", 20, root=tmp_path)
    assert [path[-9:] for path in made.dataset.ids] == ["cat_4.jpg", "cat_5.jpg"]
    reasons = [one.reason for one in made.dataset.skipped]
    assert len(reasons) == 4 and "this one 7 to 7" in reasons[2] and "one channel" in reasons[3]
    for number in (4, 5):
        (folder / f"annotations/trimaps/cat_{number}.png").unlink()
    with pytest.raises(DataError, match="no trimap that can be read.*shapes-on-texture"):
        load_masks("oxford-pets", "test", 20, root=tmp_path)
    assert pets.trimap_path("/a/images/b.c.jpg") == "/a/annotations/trimaps/b.c.png"


def test_masks_keep_their_classes_when_they_are_resized():
    mask = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    assert nearest(mask, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 255, 255]] * 2
    assert nearest(np.arange(9, dtype=np.uint8).reshape(3, 3), 1).tolist() == [[4]]


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(UsageError, match="no masks of 'cats'"):
        load_masks("cats", "train", 32)
    with pytest.raises(UsageError, match="no split 'val'"):
        load_masks("shapes-on-texture", "val", 32)
    pixels = Dataset("x", "train", ArrayPixels(np.zeros((2, 8, 8, 3), dtype=np.uint8)), ids=["a", "b"])
    with pytest.raises(DataError, match="do not belong together"):
        MaskedImages(pixels, np.zeros((2, 8, 9), dtype=np.uint8), ("a", "b"))
    with pytest.raises(DataError, match="holds class 2, there are 2"):
        MaskedImages(pixels, np.full((2, 8, 8), 2, dtype=np.uint8), ("a", "b"))


def test_intersection_over_union():
    iou, mean = dense.intersection_over_union(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]))
    assert iou[:2] == (pytest.approx(6 / 9), pytest.approx(3 / 6)) and np.isnan(iou[2])
    assert mean == pytest.approx((6 / 9 + 3 / 6) / 2)


@pytest.fixture(scope="module")
def coloured():
    """Half of each image is red, the other half green, left and right by chance: the stem alone could tell."""
    random = np.random.default_rng(0)
    images = random.integers(0, 60, (40, 16, 16, 3), dtype=np.uint8)
    masks = np.zeros((40, 16, 16), dtype=np.uint8)
    masks[:, :, 8:] = 1
    masks[::2] = 1 - masks[::2]
    for channel in (0, 1):
        images[..., channel] += np.where(masks == channel, 180, 0).astype(np.uint8)
    masks[:, :1] = IGNORED
    pixels = Dataset("halves", "train", ArrayPixels(images), ids=[str(row) for row in range(40)])
    both = MaskedImages(pixels, masks, ("red", "green"))
    return both.subset(range(28)), both.subset(range(28, 40))


@pytest.mark.parametrize(
    "config", [SHORT, DenseConfig(("layer1", "layer2"), True, 3, 8, 0.003)], ids=["1x1", "pyramid"]
)
def test_a_head_on_frozen_maps_tells_pixels_apart_and_leaves_the_backbone_alone(coloured, config):
    backbone = load_backbone("resnet-small", None, SMALL)
    backbone.source = "somewhere.pth"
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    own, untrained = dense_probe(backbone, *coloured, config)
    assert (own.name, untrained.name) == ("somewhere.pth", "random initialisation")
    for scores in (own, untrained):
        assert scores.miou > 0.85 and scores.curve[-1] < scores.curve[0]
        assert scores.confusion.sum() == 12 * 15 * 16  # ignored pixels are not scored
        assert scores.pixel_accuracy == pytest.approx(np.trace(scores.confusion) / scores.confusion.sum())
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_kept_maps_change_nothing_and_a_seed_repeats_itself(coloured, monkeypatch):
    backbone = load_backbone("resnet-small", None, SMALL)
    kept, again = (dense_probe(backbone, *coloured, SHORT, random=False)[0] for _ in range(2))
    assert np.array_equal(kept.confusion, again.confusion)
    monkeypatch.setattr(dense, "CACHED_SHARE", 0.0)
    streamed = dense_probe(backbone, *coloured, SHORT, random=False)[0]
    assert streamed.miou == pytest.approx(kept.miou, abs=0.01)


def test_maps_of_a_backbone_end_in_its_features():
    x = torch.randn(1, 3, 64, 64)
    for name in ("resnet-small", "resnet20", "resnet18"):
        backbone = load_backbone(name).eval()
        with torch.inference_mode():
            maps = backbone.feature_maps(x)
            assert torch.allclose(list(maps.values())[-1].mean((2, 3)), backbone(x), atol=1e-5)
        sides = [shape[1] for shape in dense.map_shapes(backbone, 64).values()]
        assert sides == sorted(sides, reverse=True) and len(sides) >= 3


def test_dense_probes_that_make_no_sense(coloured):
    train, test = coloured
    backbone = load_backbone("resnet-small", None, SMALL)
    with pytest.raises(UsageError, match="no map 'layer9'; it has: layer1, layer2, layer3"):
        dense_probe(backbone, train, test, DenseConfig(maps=("layer9",)))
    with pytest.raises(DataError, match="28 of 28 test images are training images"):
        dense_probe(backbone, train, train, SHORT)
    empty = MaskedImages(test.dataset, np.full_like(test.masks, IGNORED), test.classes)
    with pytest.raises(DataError, match="no pixel of the test images has a class"):
        dense_probe(backbone, train, empty, SHORT)
    with pytest.raises(DataError, match="classes of pixels differ"):
        dense_probe(backbone, train, MaskedImages(test.dataset, test.masks, ("a", "b")), SHORT)
