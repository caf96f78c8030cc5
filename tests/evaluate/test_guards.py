"""What is refused or told before a number is printed."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sslfast.data import Dataset, load
from sslfast.data.memory import ArrayPixels
from sslfast.errors import DataError, UsageError
from sslfast.evaluate import (
    check_evaluation_mode,
    check_no_random_layer,
    check_normalisation,
    check_selection,
    check_shared_images,
    guards,
    shared_images,
)
from sslfast.models import Preprocess, load_backbone, save_backbone


def images(array, split, prefix=""):
    return Dataset("noise", split, ArrayPixels(array), ids=[f"{prefix}{split}/{row}" for row in range(len(array))])


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)


def test_images_of_two_splits_are_compared_by_their_pixels(noise, monkeypatch):
    monkeypatch.setattr(guards, "HASHED_BYTES", 20 * 8 * 8 * 3)  # several parts
    test = noise[200:].copy()
    test[[3, 50, 99]] = noise[[120, 7, 199]]
    test[4] = noise[5]
    test[4, 7, 7, 2] ^= 1  # nearly
    shared = shared_images(images(noise[:200], "train"), images(test, "test"))
    assert (shared.count, shared.tested) == (3, 100)
    assert shared.pairs == (("test/3", "train/120"), ("test/50", "train/7"), ("test/99", "train/199"))
    with pytest.raises(
        DataError, match=r"3 of 100 test images are training images as well \(test/3 is train/120"
    ) as caught:
        check_shared_images(images(noise[:200], "train"), images(test, "test"))
    assert "\n" not in str(caught.value)
    assert check_shared_images(images(noise[:200], "train"), images(test, "test"), most=0.03).count == 3


def test_the_first_pairs_are_named_and_the_rest_counted(noise):
    shared = shared_images(images(noise, "train"), images(noise[::-1], "test"))
    assert shared.count == 300 and len(shared.pairs) == 5 and str(shared).endswith("..." + ")")


def test_grey_and_colour_images_with_the_same_pixels_are_the_same(noise):
    grey = noise[:50, :, :, 0]
    assert shared_images(images(grey, "train"), images(np.repeat(grey[:10, ..., None], 3, -1), "test")).count == 10


def test_images_of_other_shapes_are_not_the_same():
    flat = np.zeros((2, 4, 9, 3), dtype=np.uint8)
    assert shared_images(images(flat, "train"), images(flat.reshape(2, 6, 6, 3), "test")).count == 0


def test_files_are_compared_by_what_they_show_and_damaged_ones_passed_over(tmp_path, noise):
    for split, name, picture in (
        ("train", "a.png", 0),
        ("train", "b.bmp", 1),
        ("test", "c.bmp", 0),
        ("test", "d.png", 2),
    ):
        folder = tmp_path / split / "thing"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise[picture]).save(folder / name)
    whole = (tmp_path / "train/thing/a.png").read_bytes()
    (tmp_path / "test/thing/e.png").write_bytes(whole[:60])
    train, test = (load(f"imagefolder:{tmp_path}", split) for split in ("train", "test"))
    shared = shared_images(train, test)
    assert (shared.count, shared.tested) == (1, 2)
    assert [path.rsplit("/", 1)[1] for path in shared.pairs[0]] == ["c.bmp", "a.png"]


def test_selection_by_the_test_split_is_refused(noise):
    train, test, other = images(noise[:200], "train"), images(noise[200:], "test"), images(noise[200:], "val")
    check_selection(train, test)
    with pytest.raises(DataError, match="the split test was given to choose by"):
        check_selection(test)
    with pytest.raises(DataError, match="the test rows themselves"):  # under another name
        check_selection(other, test)


class Model(nn.Module):
    """A backbone with something between it and the head, as the paper on transfer had it."""

    def __init__(self, between):
        super().__init__()
        self.backbone = load_backbone("resnet-small")
        self.between = between
        self.head = nn.Linear(1000 if between else 128, 37)


def test_a_random_layer_between_backbone_and_head_is_found():
    model = Model(nn.Linear(128, 1000))
    with pytest.raises(UsageError, match="between.weight and 1 more weights were neither loaded nor are they trained"):
        check_no_random_layer(model, [model.backbone], model.head.parameters())
    check_no_random_layer(model, [model.backbone], [*model.head.parameters(), *model.between.parameters()])
    check_no_random_layer(model, [model.backbone, model.between], model.head.parameters())
    plain = Model(None)
    check_no_random_layer(plain, [plain.backbone], plain.head.parameters())
    with pytest.raises(UsageError, match="head.weight"):
        check_no_random_layer(plain, [plain.backbone])


def test_weights_that_a_checkpoint_did_not_have_are_random_too():
    model = Model(None)
    model.backbone.source, model.backbone.missing = "half.pth", ["layer3.0.conv1.weight"]
    with pytest.raises(UsageError, match="1 weights of the resnet-small were not in half.pth, layer3.0.conv1.weight"):
        check_no_random_layer(model, [model.backbone], model.head.parameters())


def test_training_mode_at_test_time_is_refused():
    model = Model(None).eval()
    check_evaluation_mode(model)
    model.backbone.network.layer2.train()
    with pytest.raises(UsageError, match=r"backbone.network.layer2.0.bn1 \(BatchNorm2d\) is in training mode"):
        check_evaluation_mode(model)
    dropout = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    with pytest.raises(UsageError, match=r"1 \(Dropout\)"):
        check_evaluation_mode(dropout)
    check_evaluation_mode(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))  # training mode changes nothing here


def test_another_normalisation_than_the_checkpoints_is_refused(tmp_path):
    path = tmp_path / "backbone.safetensors"
    trained = Preprocess(28, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    save_backbone(load_backbone("resnet-small", None, trained), path)
    check_normalisation(load_backbone("resnet-small", path))
    check_normalisation(load_backbone("resnet-small", path, Preprocess(64, trained.mean, trained.std)))
    with pytest.raises(UsageError, match=r"normalised with mean \(0.485, 0.456, 0.406\), but .*\(0.49, 0.48, 0.45\)"):
        check_normalisation(load_backbone("resnet-small", path, Preprocess(28)))
    with pytest.raises(UsageError, match="std"):
        check_normalisation(load_backbone("resnet-small", path, Preprocess(28, trained.mean)))
    zero_to_one = Preprocess(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match=r"mean \(0.485"):  # a checkpoint that takes pixels in [0, 1] as they are
        check_normalisation(load_backbone("resnet-small"), zero_to_one)
    check_normalisation(load_backbone("resnet-small"))  # nothing is known of random weights


def test_stores_of_two_backbones_preprocessings_or_lists_of_classes_are_refused(tmp_path):
    from stores import clusters, write_store

    from sslfast.evaluate.guards import check_classes, check_origin

    features, labels = clusters(20, 4)
    train = write_store(tmp_path / "train", features, labels)
    test = write_store(tmp_path / "test", features + 1, labels, split="test")
    check_origin(test, train)
    for field, part, value in (("backbone", "fingerprint", "1" * 64), ("preprocess", "size", 9)):
        kept, test.manifest[field] = test.manifest[field], {**test.manifest[field], part: value}
        with pytest.raises(DataError, match=f"another {field}"):
            check_origin(test, train)
        test.manifest[field] = kept
    test.classes = ("1", "0", "2", "3", "4")
    with pytest.raises(DataError, match="another order"):
        check_classes(test, train)
    assert not torch.equal(train.load(), test.load())
