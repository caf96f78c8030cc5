"""Policies and plans: what they are, and that what is drawn belongs to seed and position alone."""

from dataclasses import fields, replace

import numpy as np
import pytest

from sslfast.data.drawing import UNMOVED, draw_plan, draw_views, generator
from sslfast.data.views import PLANS, ViewGroup, ViewPlan, ViewPolicy, plan
from sslfast.errors import UsageError

SIMCLR = plan("simclr").groups[0].policies[0]


def same(first, second):
    return all(np.array_equal(getattr(first, one.name), getattr(second, one.name)) for one in fields(first))


def test_unknown_plan():
    with pytest.raises(UsageError, match="simclr"):
        plan("simclrr")


@pytest.mark.parametrize(
    "bad", [{"flip": 1.5}, {"noise": -0.1}, {"scale": (0.5, 0.2)}, {"ratio": (0.0, 1.0)}, {"scale": (0.5, 1.5)}]
)
def test_policies_that_make_no_sense(bad):
    with pytest.raises(UsageError):
        ViewPolicy(**bad)


def test_groups_that_make_no_sense():
    with pytest.raises(UsageError, match="at least one"):
        ViewGroup(())
    with pytest.raises(UsageError, match="noise only"):
        ViewGroup((SIMCLR, replace(SIMCLR, flip=0.1)), same_geometry=True)


def test_plans_have_the_published_views():
    sizes = {name: [(len(group.policies), group.pixels(224)) for group in one.groups] for name, one in PLANS.items()}
    assert sizes["swav"] == sizes["self-classifier"] == [(2, 224), (6, 96)]
    assert sizes["self-classifier-cifar"] == [(2, 224), (6, 112)]
    assert sizes["supervised"] == sizes["cutout"] == [(1, 224)]
    assert all(
        found == [(2, 224)] for name, found in sizes.items() if name.split("-")[0] in ("simclr", "barlow", "byol")
    )
    for name in ("barlow-twins", "byol"):
        first, second = plan(name).groups[0].policies
        assert (first.blur, first.solarise) == (1.0, 0.0) and (second.blur, second.solarise) == (0.1, 0.2)
    assert [group.policies[0].scale for group in plan("swav").groups] == [(0.14, 1.0), (0.05, 0.14)]
    assert [group.policies[0].scale for group in plan("self-classifier").groups] == [(0.4, 1.0), (0.05, 0.4)]
    assert plan("swav").views == 8
    distorted = plan("paper002").groups[0].policies[0]
    for name in ("flip", "jitter", "grayscale", "distort", "erase"):
        assert 0 < getattr(distorted, name) < 1
    noisy, clean = plan("autoencoder").groups[0].policies
    assert noisy.noise > 0 == clean.noise and noisy.flip == noisy.vertical_flip == 0.5


def test_simclr_draws_what_it_always_drew():
    # A run that was begun by an older version must go on with the same views.
    drawn = draw_plan(plan("simclr"), 7, 3, np.full(2, 32), np.full(2, 32), 32)[0]
    assert drawn.box.tolist() == [[1, 0, 30, 31], [3, 2, 29, 29], [7, 9, 17, 21], [8, 1, 18, 20]]
    assert drawn.flip.tolist() == [0, 0, 1, 0]
    assert drawn.hue.tolist() == pytest.approx([26.21524, -9.0619, 35.74939, -1.9876], abs=1e-5)
    assert drawn.saturation.tolist() == pytest.approx([1.2142042, 1.1682183, 0.69046593, 1.3734579])
    assert drawn.brightness.tolist() == pytest.approx([0.8506096, 1.2828303, 1.3449206, 1.2538606])
    assert (drawn.perspective == UNMOVED).all() and not drawn.blur.any() and not drawn.erase.any()


@pytest.mark.parametrize("name", list(PLANS))
def test_the_same_position_gives_the_same_views(name):
    sides = np.full(5, 40), np.full(5, 33)
    drawn, again, other, later = (
        draw_plan(plan(name), seed, position, *sides, 32) for seed, position in ((3, 7), (3, 7), (4, 7), (3, 8))
    )
    assert all(map(same, drawn, again))
    assert not any(map(same, drawn, other)) and not any(map(same, drawn, later))


@pytest.mark.parametrize("name", ["barlow-twins", "swav", "byol-cifar", "self-classifier"])
def test_views_of_an_image_are_drawn_apart(name):
    groups = draw_plan(plan(name), 0, 0, np.full(50, 64), np.full(50, 64), 64)
    for group, drawn in zip(plan(name).groups, groups, strict=True):
        boxes = drawn.box.reshape(len(group.policies), 50, 4)
        for first in range(len(boxes)):
            for second in range(first):
                assert (boxes[first] != boxes[second]).any(axis=1).mean() > 0.9


def test_an_autoencoders_views_differ_in_their_noise_only():
    (drawn,) = draw_plan(plan("autoencoder"), 0, 0, np.full(60, 32), np.full(60, 32), 32)
    noisy, clean = drawn.rows(slice(0, 60)), drawn.rows(slice(60, 120))
    assert (noisy.noise > 0).all() and not clean.noise.any()
    for one in fields(noisy):
        assert one.name == "noise" or np.array_equal(getattr(noisy, one.name), getattr(clean, one.name))
    assert 0 < noisy.flip.mean() < 1 and 0 < noisy.vertical_flip.mean() < 1
    assert (noisy.box == [0, 0, 32, 32]).all()


def test_images_of_different_sizes_get_boxes_of_their_own():
    heights, widths = np.array([10, 300, 50] * 100), np.array([200, 20, 50] * 100)
    drawn = draw_views(SIMCLR, generator(0), 300, heights, widths, view=32)
    assert (drawn.box[:, :2] >= 0).all() and (drawn.box[:, 2:] > 0).all()
    assert (drawn.box[:, 0] + drawn.box[:, 2] <= heights).all() and (drawn.box[:, 1] + drawn.box[:, 3] <= widths).all()
    assert drawn.box[1::3, 2].max() > 20 and drawn.box[0::3, 3].max() > 10


def test_rates_and_ranges():
    drawn = draw_views(SIMCLR, generator(1), 20_000, 28, 28)
    assert abs(drawn.flip.mean() - 0.5) < 0.02
    assert abs((drawn.brightness != 1).mean() - 0.8) < 0.02
    assert abs((drawn.saturation == 0).mean() - 0.2) < 0.02
    for values in (drawn.brightness, drawn.contrast):
        assert 0.6 <= values.min() < 0.61 and 1.39 < values.max() <= 1.4
    assert -36 <= drawn.hue.min() < -35 and 35 < drawn.hue.max() <= 36
    every = ViewPolicy(vertical_flip=0.3, blur=0.4, solarise=0.2, distort=0.6, erase=0.7)
    drawn = draw_views(every, generator(1), 20_000, 28, 28)
    rates = {
        "vertical_flip": drawn.vertical_flip != 0,
        "blur": drawn.blur != 0,
        "solarise": drawn.solarise != 0,
        "erase": drawn.erase[:, 2] != 0,
    }
    for name, happened in rates.items():
        wanted = getattr(every, name)
        assert abs(happened.mean() - wanted) < 4 * (wanted * (1 - wanted) / 20_000) ** 0.5, name
    # One in (8 x 8)^4 changes of perspective moves no corner.
    assert abs((drawn.perspective != UNMOVED).any(axis=1).mean() - 0.6) < 0.015
    # The steps are independent of each other.
    together = np.corrcoef(np.stack(list(rates.values())))
    assert np.abs(together - np.eye(4)).max() < 4 / 20_000**0.5
    blurred = drawn.blur[drawn.blur > 0]
    assert 0.1 <= blurred.min() < 0.11 and 1.99 < blurred.max() <= 2.0


def test_an_image_smaller_than_any_box():
    drawn = draw_views(ViewPolicy(scale=(0.01, 0.02)), generator(0), 100, 2, 2)
    assert (drawn.box[:, 2:] >= 1).all()


def test_a_cut_out_square_is_cut_off_at_the_border():
    drawn = draw_views(ViewPolicy(erase=1.0, cutout=0.5), generator(0), 5000, 32, 32)
    top, left, height, width = drawn.erase.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 32).all() and (left + width <= 32).all()
    assert height.max() == width.max() == 16 and height.min() == width.min() == 8
    assert abs((height == 16).mean() - 17 / 32) < 0.03


def test_a_plan_of_ones_own():
    mine = ViewPlan((ViewGroup((ViewPolicy(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0),), size=0.5),))
    (drawn,) = draw_plan(mine, 0, 0, np.full(3, 32), np.full(3, 32), 32)
    assert (drawn.box == [0, 0, 32, 32]).all() and mine.groups[0].pixels(32) == 16
