"""Views: their distributions are torchvision's, both renderers agree, every image comes once."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from sslfast.data.render import TorchRenderer, change_colours
from sslfast.data.views import POLICIES, ViewParameters, ViewPolicy, draw_views, generator, policy
from sslfast.errors import UsageError

SIMCLR = POLICIES["simclr"]


def plain(count: int, height: int, width: int, **changes) -> ViewParameters:
    ones = np.ones(count, np.float32)
    box = np.tile(np.array([[0, 0, height, width]], np.int32), (count, 1))
    values = dict(
        box=box, flip=np.zeros(count, np.int32), brightness=ones, contrast=ones, saturation=ones, hue=0 * ones
    )
    return ViewParameters(**{**values, **changes})


def photographs(count: int, height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(20, 230, (count, 3, 5, 5)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)
    return smooth.permute(0, 2, 3, 1).round().byte().numpy()


def test_unknown_policy():
    with pytest.raises(UsageError, match="simclr"):
        policy("simclrr")


def test_the_same_position_gives_the_same_views():
    first, again = (draw_views(SIMCLR, generator(3, 1, 7), 32, 28, 28) for _ in range(2))
    other = draw_views(SIMCLR, generator(3, 1, 8), 32, 28, 28)
    assert np.array_equal(first.box, again.box) and np.array_equal(first.hue, again.hue)
    assert not np.array_equal(first.box, other.box)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (40, 17)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    count = 4000
    ours = draw_views(SIMCLR, generator(0), count, height, width).box
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] > 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    theirs = np.array([v2.RandomResizedCrop.make_params(_crop(), [image]) for _ in range(count)], dtype=object)
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in theirs])
    for column in range(4):
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        # Kolmogorov-Smirnov: 1.95 sqrt(2 / n) is passed by one true pair in a thousand.
        grid = np.union1d(a, b)
        distance = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max() / count
        assert distance < 1.95 * math.sqrt(2 / count), column


def _crop() -> v2.RandomResizedCrop:
    return v2.RandomResizedCrop(28, scale=SIMCLR.scale, ratio=SIMCLR.ratio)


def test_rates_and_ranges():
    drawn = draw_views(SIMCLR, generator(1), 20_000, 28, 28)
    assert abs(drawn.flip.mean() - 0.5) < 0.02
    assert abs((drawn.brightness != 1).mean() - 0.8) < 0.02
    assert abs((drawn.saturation == 0).mean() - 0.2) < 0.02
    for values in (drawn.brightness, drawn.contrast):
        assert 0.6 <= values.min() < 0.61 and 1.39 < values.max() <= 1.4
    assert -36 <= drawn.hue.min() < -35 and 35 < drawn.hue.max() <= 36


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_steps_are_torchvisions(name):
    # Values stay inside [0, 1], where torchvision's clamping does nothing.
    image = photographs(1, 24, 20)
    x = torch.from_numpy(image).permute(0, 3, 1, 2).float() * 0.5 + 40
    got = change_colours(x, plain(1, 24, 20, **{name: np.array([1.2], np.float32)})) / 255
    adjust = {"brightness": v2.functional.adjust_brightness, "contrast": v2.functional.adjust_contrast}.get(
        name, v2.functional.adjust_saturation
    )
    torch.testing.assert_close(got, adjust(x / 255, 1.2), rtol=0, atol=2e-3)


def test_a_full_turn_of_hue_changes_nothing():
    x = torch.from_numpy(photographs(2, 8, 8)).permute(0, 3, 1, 2).float()
    same = change_colours(x, plain(2, 8, 8, hue=np.array([360, -360], np.float32)))
    torch.testing.assert_close(same, x, rtol=0, atol=1e-2)


def test_crop_and_flip_are_torchvisions():
    images = photographs(3, 40, 36)
    box = np.array([[3, 5, 20, 30], [0, 0, 40, 36], [10, 2, 11, 9]], np.int32)
    got = TorchRenderer(28)(images, plain(3, 40, 36, box=box, flip=np.array([0, 1, 1], np.int32)))
    for i, (top, left, height, width) in enumerate(box.tolist()):
        image = torch.from_numpy(images[i]).permute(2, 0, 1).float()
        want = v2.functional.resized_crop(image, top, left, height, width, [28, 28], antialias=True) / 255
        torch.testing.assert_close(got[i], want.flip(-1) if i else want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [16, 28, 64])
def test_dali_renders_what_the_reference_renders(size):
    dali = pytest.importorskip("sslfast.data.dali", reason="DALI is not installed")
    images = photographs(48, 40, 36)
    drawn = draw_views(SIMCLR, generator(5), 48, 40, 36)
    want = TorchRenderer(size)(images, drawn)
    got = dali.DaliRenderer(size, 64, 2, torch.device("cpu"))(images, drawn)
    assert got.shape == want.shape and got.dtype == want.dtype
    error = (got - want).abs()
    # The antialiasing filters differ a little at edges where a crop is much larger than the view.
    assert error.max() < (1 if size >= 28 else 5) / 255
    assert error.mean() < 0.25 / 255


def test_an_image_smaller_than_any_box():
    drawn = draw_views(ViewPolicy(scale=(0.01, 0.02)), generator(0), 100, 2, 2)
    assert (drawn.box[:, 2:] >= 1).all()
    assert TorchRenderer(8)(photographs(100, 2, 2), drawn).isfinite().all()
