"""What is drawn, and what views look like afterwards, is distributed as in torchvision v2's own transforms.

Boxes, factors and corners: two samples are compared by Kolmogorov and Smirnov's distance. Pixels: a policy of one step
and the transform of the same name are applied to the same images; the differences of an image's means, spreads,
asymmetries and gradients, and of their squares, have to vanish on average, within the error of that average.
"""

import math

import numpy as np
import pytest
import torch
from pictures import photographs
from torchvision.transforms import v2

from sslfast.data.drawing import ViewParameters, draw_views, generator
from sslfast.data.native import NativeRenderer
from sslfast.data.render import add_noise
from sslfast.data.views import ViewPolicy, plan

SIMCLR = plan("simclr").groups[0].policies[0]
NOTHING = dict(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0)
NO_COLOUR = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


def assert_alike(ours, theirs):
    """Two samples of one distribution pass with a probability of 999 in 1000 per column."""
    for column, (a, b) in enumerate(zip(np.sort(ours, axis=0).T, np.sort(theirs, axis=0).T, strict=True)):
        grid = np.union1d(a, b)
        distance = np.searchsorted(a, grid, "right") / len(a) - np.searchsorted(b, grid, "right") / len(b)
        assert np.abs(distance).max() < 1.95 * math.sqrt(1 / len(a) + 1 / len(b)), column


def theirs_of(transform, count, height, width):
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    return [transform.make_params([image]) for _ in range(count)]


@pytest.mark.parametrize(
    ("scale", "height", "width"),
    [((0.2, 1.0), 28, 28), ((0.2, 1.0), 40, 17), ((0.08, 1.0), 32, 32), ((0.05, 0.14), 64, 48)],
)
def test_boxes(scale, height, width):
    count = 3000
    policy = ViewPolicy(scale=scale)
    ours = draw_views(policy, generator(0), count, height, width).box
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] > 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    theirs = theirs_of(v2.RandomResizedCrop(28, scale=scale, ratio=policy.ratio), count, height, width)
    assert_alike(ours, np.array([[p["top"], p["left"], p["height"], p["width"]] for p in theirs]))


def test_padded_crops():
    ours = draw_views(ViewPolicy(pad=1 / 8), generator(0), 3000, 32, 32).box
    assert ours[:, :2].min() == -4 and ours[:, :2].max() == 4 and (ours[:, 2:] == 32).all()
    theirs = theirs_of(v2.RandomCrop(32, padding=4), 3000, 32, 32)
    assert_alike(ours[:, :2] + 4, np.array([[p["top"], p["left"]] for p in theirs]))


def test_factors():
    policy = ViewPolicy(jitter=1.0, brightness=0.8, contrast=0.4, saturation=0.6, hue=0.2, grayscale=0.0)
    ours = draw_views(policy, generator(0), 4000, 32, 32)
    theirs = theirs_of(v2.ColorJitter(0.8, 0.4, 0.6, 0.2), 4000, 32, 32)
    names = ("brightness", "contrast", "saturation", "hue")
    mine = np.stack([ours.brightness, ours.contrast, ours.saturation, ours.hue / 360], axis=1)
    assert_alike(mine, np.array([[p[f"{name}_factor"] for name in names] for p in theirs]))
    # The factors of a view are independent of each other.
    assert np.abs(np.corrcoef(mine.T) - np.eye(4)).max() < 4.5 / math.sqrt(4000)


def test_corners_of_a_change_of_perspective():
    ours = draw_views(ViewPolicy(distort=1.0, distortion=0.5), generator(0), 3000, 32, 32).perspective
    theirs = theirs_of(v2.RandomPerspective(0.5, p=1.0), 3000, 32, 32)
    assert_alike(ours.astype(np.float64).round(5), np.array([p["coefficients"] for p in theirs]).round(5))


def test_erased_boxes():
    policy = ViewPolicy(erase=1.0)
    ours = draw_views(policy, generator(0), 3000, 32, 32).erase
    theirs = theirs_of(v2.RandomErasing(1.0, policy.erase_scale, policy.erase_ratio), 3000, 32, 32)
    assert_alike(ours, np.array([[p["i"], p["j"], p["h"], p["w"]] for p in theirs]))


def test_blurs():
    ours = draw_views(ViewPolicy(blur=1.0, blur_sigma=(0.1, 2.0)), generator(0), 4000, 32, 32).blur
    theirs = theirs_of(v2.GaussianBlur(3, (0.1, 2.0)), 4000, 32, 32)
    assert_alike(ours[:, None], np.array([p["sigma"][:1] for p in theirs]))


def summary(views: torch.Tensor) -> np.ndarray:
    """Numbers (N, 15) that say what each of N views looks like."""
    half = views.shape[-1] // 2
    grey = views.mean(1)
    parts = [
        views.mean((2, 3)),
        views.std((2, 3)),
        views.square().mean((2, 3)),
        (grey[..., :half].mean((1, 2)) - grey[..., half:].mean((1, 2)))[:, None],
        (grey[:, :half].mean((1, 2)) - grey[:, half:].mean((1, 2)))[:, None],
        (grey[..., 1:] - grey[..., :-1]).square().mean((1, 2))[:, None],
        (grey[:, 1:] - grey[:, :-1]).square().mean((1, 2))[:, None],
        views.amax((2, 3)).mean(1, keepdim=True),
        (views.amax(1) - views.amin(1)).mean((1, 2))[:, None],
    ]
    return torch.cat(parts, dim=1).double().numpy()


def jitter(**factors) -> v2.Transform:
    return v2.RandomApply([v2.ColorJitter(**factors)], 0.8)


# Ours, and theirs on images in [0, 1].
STEPS = {
    "crop": (dict(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)), v2.RandomResizedCrop(32, (0.2, 1.0), antialias=True)),
    "small crop": (dict(scale=(0.05, 0.14), ratio=(3 / 4, 4 / 3)), v2.RandomResizedCrop(32, (0.05, 0.14))),
    "pad": (dict(pad=1 / 8), v2.RandomCrop(32, padding=4)),
    "flip": (dict(flip=0.5), v2.RandomHorizontalFlip(0.5)),
    "vertical flip": (dict(vertical_flip=0.5), v2.RandomVerticalFlip(0.5)),
    "brightness": (dict(jitter=0.8, **{**NO_COLOUR, "brightness": 0.4}), jitter(brightness=0.4)),
    "contrast": (dict(jitter=0.8, **{**NO_COLOUR, "contrast": 0.4}), jitter(contrast=0.4)),
    "saturation": (dict(jitter=0.8, **{**NO_COLOUR, "saturation": 0.4}), jitter(saturation=0.4)),
    "grayscale": (dict(grayscale=0.2), v2.RandomGrayscale(0.2)),
    "perspective": (dict(distort=0.5), v2.RandomPerspective(0.5, 0.5, fill=None)),
    "blur": (dict(blur=0.5), v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], 0.5)),
    "solarise": (dict(solarise=0.2), v2.RandomSolarize(0.5, 0.2)),
    "erase": (dict(erase=0.5, fill=0.25), v2.RandomErasing(0.5, (0.02, 0.33), (0.3, 3.3), value=0.25)),
    "noise": (dict(noise=0.1), v2.GaussianNoise(sigma=0.1)),
}


def rendered(policy: ViewPolicy, images: np.ndarray) -> torch.Tensor:
    drawn = draw_views(policy, generator(2), len(images), *images.shape[1:3], view=32)
    return add_noise(NativeRenderer(32)(images, drawn), drawn, generator(3))


def applied(transform: v2.Transform, images: np.ndarray) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.stack([transform(image) for image in torch.from_numpy(images).permute(0, 3, 1, 2) / 255])


def errors_of(ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray:
    """How many standard errors the mean differences of `summary`, and of its squares, are away from 0."""
    one, other = summary(ours), summary(theirs)
    centre = other.mean(axis=0)
    difference = np.concatenate([one - other, (one - centre) ** 2 - (other - centre) ** 2], axis=1)
    spread = difference.std(axis=0) / math.sqrt(len(difference))
    # What both leave alone differs by rounding only, which is no sampling error.
    return difference.mean(axis=0) / (spread + 1e-7)


# Values stay inside [0, 1], where torchvision's clamping after each step does nothing.
IMAGES = (photographs(1200, 32, 32) * 0.45 + 50).round().astype(np.uint8)


@pytest.mark.parametrize("name", STEPS)
def test_pixels_after_a_step(name):
    changes, transform = STEPS[name]
    ours = rendered(ViewPolicy(**{**NOTHING, **changes}), IMAGES)
    assert np.abs(errors_of(ours, applied(transform, IMAGES))).max() < 4.5


def test_a_step_that_is_a_little_wrong_is_noticed():
    # What this way of comparing can see: each of these is a plausible mistake.
    for changes, name in (
        (dict(scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3)), "crop"),
        (dict(jitter=0.8, **{**NO_COLOUR, "brightness": 0.5}), "brightness"),
        (dict(jitter=0.8, **{**NO_COLOUR, "contrast": 0.6}), "contrast"),
        (dict(grayscale=0.3), "grayscale"),
        (dict(blur=0.5, blur_sigma=(0.1, 1.0)), "blur"),
        (dict(solarise=0.3), "solarise"),
        (dict(erase=0.5, fill=0.0), "erase"),
        (dict(noise=0.12), "noise"),
        (dict(distort=0.5, distortion=0.3), "perspective"),
    ):
        ours = rendered(ViewPolicy(**{**NOTHING, **changes}), IMAGES)
        assert np.abs(errors_of(ours, applied(STEPS[name][1], IMAGES))).max() > 4.5, changes


@pytest.mark.parametrize(("strength", "levels"), [(0.5, 4), (1.0, 8)])
def test_whole_jitter_differs_from_torchvisions_by_little(strength, levels):
    # Ours is linear: hue turns in YIQ, the steps have one order, and values are cut off once. What remains is bounded.
    changes = dict(jitter=0.8, brightness=0.8 * strength, contrast=0.8 * strength, saturation=0.8 * strength)
    images = photographs(1200, 32, 32)
    ours = rendered(ViewPolicy(**{**NOTHING, **changes, "hue": 0.2 * strength, "grayscale": 0.2}), images)
    colours = v2.ColorJitter(*(0.8 * strength,) * 3, 0.2 * strength)
    theirs = applied(v2.Compose([v2.RandomApply([colours], 0.8), v2.RandomGrayscale(0.2)]), images)
    means_and_spreads = (summary(ours) - summary(theirs)).mean(axis=0)[:6]
    assert np.abs(means_and_spreads).max() < levels / 255


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_steps_are_torchvisions(name):
    image = IMAGES[:1]
    got = NativeRenderer(32)(image, ViewParameters.plain(1, 32, 32, **{name: np.array([1.2], np.float32)}))
    adjust = {"brightness": v2.functional.adjust_brightness, "contrast": v2.functional.adjust_contrast}.get(
        name, v2.functional.adjust_saturation
    )
    want = adjust(torch.from_numpy(image).permute(0, 3, 1, 2) / 255, 1.2)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-3)
