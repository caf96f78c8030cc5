"""What is drawn for a view of an image: a function of seed, stream and position, whoever renders it and whenever."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sslfast.data.views import ViewGroup, ViewPlan, ViewPolicy

CROP_TRIES = 10
"""Boxes drawn for one random resized crop before it falls back to the whole image, as torchvision does."""

UNMOVED = np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32)
"""The change of perspective that changes nothing."""

# Streams of random numbers under one seed.
ORDER, VIEWS, NOISE = 0, 1, 2


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for each of B views, one row a view.

    Attributes:
        box: top, left, height, width of the crop in pixels of the image, int32 (B, 4); it may reach out of the image.
        flip: 1 where the crop is mirrored, int32 (B,).
        vertical_flip: 1 where it is turned upside down, int32 (B,).
        brightness: factor, float32 (B,).
        contrast: factor, float32 (B,).
        saturation: factor, float32 (B,); 0 takes all colour away.
        hue: degrees, float32 (B,).
        perspective: a, ..., h float32 (B, 8): pixel centre (x, y) of the view comes from
            ((a x + b y + c) / (g x + h y + 1), (d x + e y + f) / (g x + h y + 1)), in pixels of the view.
        blur: standard deviation in pixels, float32 (B,); 0 where there is no blur.
        solarise: 1 where bright values are inverted, int32 (B,).
        erase: top, left, height, width of the box in pixels of the view, int32 (B, 4); height 0 where there is none.
        fill: value of the box, float32 (B,).
        noise: standard deviation, float32 (B,).
    """

    box: NDArray[np.int32]
    flip: NDArray[np.int32]
    vertical_flip: NDArray[np.int32]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    saturation: NDArray[np.float32]
    hue: NDArray[np.float32]
    perspective: NDArray[np.float32]
    blur: NDArray[np.float32]
    solarise: NDArray[np.int32]
    erase: NDArray[np.int32]
    fill: NDArray[np.float32]
    noise: NDArray[np.float32]

    @classmethod
    def plain(cls, count: int, height: int, width: int, **changes: NDArray[Any]) -> "ViewParameters":
        """Give the parameters of ``count`` views that show the whole image as it is, but for ``changes``."""
        ones, zeros = np.ones(count, np.float32), np.zeros(count, np.float32)
        nothing = np.zeros(count, np.int32)
        box = np.tile(np.array([[0, 0, height, width]], np.int32), (count, 1))
        values: dict[str, Any] = dict(
            box=box,
            flip=nothing,
            vertical_flip=nothing,
            brightness=ones,
            contrast=ones,
            saturation=ones,
            hue=zeros,
            perspective=np.tile(UNMOVED, (count, 1)),
            blur=zeros,
            solarise=nothing,
            erase=np.zeros((count, 4), np.int32),
            fill=zeros,
            noise=zeros,
        )
        return cls(**(values | changes))

    @classmethod
    def joined(cls, parts: Sequence["ViewParameters"]) -> "ViewParameters":
        """Put the rows of several one behind the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(**{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)})

    def __len__(self) -> int:
        """Count the views."""
        return len(self.flip)

    def rows(self, chosen: Any) -> "ViewParameters":
        """Take some of the views."""
        return ViewParameters(**{one.name: getattr(self, one.name)[chosen] for one in fields(self)})


def generator(seed: int, *position: int) -> np.random.Generator:
    """Make the generator that belongs to a position (epoch, step, ...): the same for whoever asks, whenever.

    Positions must not differ in zeros at their end only: numpy's seeding takes those for the same.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *position])))


def draw_plan(
    plan: ViewPlan, seed: int, position: int, heights: ArrayLike, widths: ArrayLike, image_size: int
) -> list[ViewParameters]:
    """Draw the parameters of all views of B images, one table a group, view v of image b in row v x B + b.

    Args:
        plan: which views.
        seed: of the run.
        position: the batch's number in the run.
        heights: (B,) or one number, in pixels.
        widths: likewise.
        image_size: the run's, in pixels.
    """
    height, width = (np.asarray(sides, np.int64) for sides in (heights, widths))
    stream = 0
    found = []
    for group in plan.groups:
        parts = []
        for policy, count in _runs(group):
            # Views of one policy are drawn together. Stream 0 must be written as no number at all, see `generator`.
            random = generator(seed, VIEWS, position, *([stream] if stream else []))
            stream += 1
            of_views = np.tile(height, count), np.tile(width, count)
            parts.append(draw_views(policy, random, len(of_views[0]), *of_views, group.pixels(image_size)))
        if group.same_geometry:
            parts = [_with_noise(parts[0], policy.noise) for policy in group.policies]
        found.append(ViewParameters.joined(parts))
    return found


def _runs(group: ViewGroup) -> list[tuple[ViewPolicy, int]]:
    """List the policies of a group, equal neighbours once with their number."""
    if group.same_geometry:
        return [(group.policies[0], 1)]
    runs: list[tuple[ViewPolicy, int]] = []
    for policy in group.policies:
        if runs and runs[-1][0] == policy:
            runs[-1] = policy, runs[-1][1] + 1
        else:
            runs.append((policy, 1))
    return runs


def _with_noise(drawn: ViewParameters, noise: float) -> ViewParameters:
    values = {one.name: getattr(drawn, one.name) for one in fields(drawn)}
    return ViewParameters(**(values | {"noise": np.full(len(drawn), noise, np.float32)}))


def draw_views(
    policy: ViewPolicy,
    random: np.random.Generator,
    count: int,
    height: ArrayLike,
    width: ArrayLike,
    view: int | None = None,
) -> ViewParameters:
    """Draw the parameters of ``count`` views.

    Args:
        policy: the distributions.
        random: see `generator`.
        count: B.
        height: of every image, or of each (B,), in pixels.
        width: likewise.
        view: side of a view in pixels; by default the first image's shorter side.
    """
    heights, widths = (np.broadcast_to(np.asarray(side, np.int64), (count,)) for side in (height, width))
    if view is None:
        view = int(min(heights[0], widths[0])) if count else 1
    box = _draw_boxes(policy, random, heights, widths)
    uniform = random.random((count, 7))
    changed = uniform[:, 1] < policy.jitter

    def factor(column: int, spread: float) -> NDArray[np.float32]:
        drawn = 1 + spread * (2 * uniform[:, column] - 1)
        return np.where(changed, drawn, 1).astype(np.float32)

    saturation = np.where(uniform[:, 6] < policy.grayscale, np.float32(0), factor(4, policy.saturation))
    # What came later is drawn behind, so that the older steps of a seed stay what they were.
    more = random.random((count, 4))
    low, high = policy.blur_sigma
    return ViewParameters(
        box=box,
        flip=(uniform[:, 0] < policy.flip).astype(np.int32),
        vertical_flip=(more[:, 0] < policy.vertical_flip).astype(np.int32),
        brightness=factor(2, policy.brightness),
        contrast=factor(3, policy.contrast),
        saturation=saturation.astype(np.float32),
        hue=np.where(changed, 360 * policy.hue * (2 * uniform[:, 5] - 1), 0).astype(np.float32),
        perspective=_draw_perspectives(policy, random, count, view),
        blur=np.where(more[:, 1] < policy.blur, low + (high - low) * more[:, 2], 0).astype(np.float32),
        solarise=(more[:, 3] < policy.solarise).astype(np.int32),
        erase=_draw_erased(policy, random, count, view),
        fill=np.full(count, policy.fill, np.float32),
        noise=np.full(count, policy.noise, np.float32),
    )


def _draw_boxes(
    policy: ViewPolicy, random: np.random.Generator, height: NDArray[np.int64], width: NDArray[np.int64]
) -> NDArray[np.int32]:
    count = len(height)
    if policy.pad:
        frame = [np.rint(policy.pad * side).astype(np.int64) for side in (height, width)]
        offset = [_below(random, 2 * most + 1) - most for most in frame]
        return np.stack([*offset, height, width], axis=1).astype(np.int32)
    # torchvision's rule, for a whole batch: the first of ten boxes that fits, else the largest one of allowed ratio.
    w, h = _draw_sides(random, height * width, policy.scale, policy.ratio)
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.argmax(axis=1)
    rows = np.arange(count)
    w, h = w[rows, first], h[rows, first]
    none = np.flatnonzero(~fits[rows, first])
    for row in none:
        w[row], h[row] = _largest_box(policy.ratio, int(height[row]), int(width[row]))
    corner = random.random((count, 2))
    # The generator may give a value that rounds to 1, hence the minimum.
    top = np.minimum((corner[:, 0] * (height - h + 1)).astype(np.int64), height - h)
    left = np.minimum((corner[:, 1] * (width - w + 1)).astype(np.int64), width - w)
    top[none], left[none] = (height - h)[none] // 2, (width - w)[none] // 2
    return np.stack([top, left, h, w], axis=1).astype(np.int32)


def _draw_sides(
    random: np.random.Generator, area: NDArray[np.int64], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw ten boxes for each of ``area`` (B,), a part of it: both sides in pixels, (B, 10), of the ratio drawn."""
    parts = area[:, None] * random.uniform(*scale, size=(len(area), CROP_TRIES))
    least, most = (float(np.log(end)) for end in ratio)
    ratios = np.exp(random.uniform(least, most, size=parts.shape))
    return np.rint(np.sqrt(parts * ratios)).astype(np.int64), np.rint(np.sqrt(parts / ratios)).astype(np.int64)


def _largest_box(ratio: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    if width / height < ratio[0]:
        return width, max(1, round(width / ratio[0]))
    if width / height > ratio[1]:
        return max(1, round(height * ratio[1])), height
    return width, height


def _below(random: np.random.Generator, bound: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw whole numbers from 0 to below ``bound``."""
    return np.minimum((random.random(len(bound)) * bound).astype(np.int64), bound - 1)


def _draw_perspectives(policy: ViewPolicy, random: np.random.Generator, count: int, view: int) -> NDArray[np.float32]:
    """Draw the changes of perspective by torchvision's rule: each corner moves inwards by whole pixels."""
    found = np.tile(UNMOVED, (count, 1))
    if not policy.distort:
        return found
    moved = np.flatnonzero(random.random(count) < policy.distort)
    most = int(policy.distortion * (view // 2)) + 1
    inwards = random.integers(0, most, (count, 4, 2))[moved]
    last = view - 1
    corners = np.array([[0, 0], [last, 0], [last, last], [0, last]], np.float64)  # of the view, as (x, y)
    ends = corners + inwards * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    # What is at `ends` afterwards was at `corners` before: eight equations for eight numbers.
    equations = np.zeros((len(moved), 8, 8))
    equations[:, 0::2, 0:2], equations[:, 1::2, 3:5] = ends, ends
    equations[:, 0::2, 2], equations[:, 1::2, 5] = 1, 1
    equations[:, 0::2, 6:8] = -corners[:, 0, None] * ends
    equations[:, 1::2, 6:8] = -corners[:, 1, None] * ends
    # Corners that meet, as they can in the smallest views, leave nothing to be seen: such a view stays as it is.
    sound = np.abs(np.linalg.det(equations)) > 1e-6
    wanted = np.broadcast_to(corners.reshape(8, 1), (int(sound.sum()), 8, 1))
    found[moved[sound]] = np.linalg.solve(equations[sound], wanted)[..., 0]
    return found


def _draw_erased(policy: ViewPolicy, random: np.random.Generator, count: int, view: int) -> NDArray[np.int32]:
    if not policy.erase:
        return np.zeros((count, 4), np.int32)
    erased = random.random(count) < policy.erase
    if policy.cutout:
        side = round(policy.cutout * view)
        centre = _below(random, np.full(2 * count, view)).reshape(2, count)
        start = np.clip(centre - side // 2, 0, view)
        end = np.clip(centre - side // 2 + side, 0, view)
        box = np.stack([start[0], start[1], end[0] - start[0], end[1] - start[1]], axis=1)
        return np.where(erased[:, None], box, 0).astype(np.int32)
    # torchvision's rule: the first of ten boxes smaller than the view, else none.
    h, w = _draw_sides(random, np.full(count, view * view), policy.erase_scale, policy.erase_ratio)
    fits = (h < view) & (w < view)
    first = fits.argmax(axis=1)
    rows = np.arange(count)
    h, w = h[rows, first], w[rows, first]
    top, left = _below(random, np.maximum(1, view - h + 1)), _below(random, np.maximum(1, view - w + 1))
    box = np.stack([top, left, h, w], axis=1)
    return np.where((erased & fits[rows, first])[:, None], box, 0).astype(np.int32)
