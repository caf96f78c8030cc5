"""Generated images with masks: discs, squares and triangles, each of its own texture, on a texture."""

import numpy as np
from numpy.typing import NDArray

NAME = "shapes-on-texture"
"""What it is, so that nobody takes its numbers for those of photographs."""

CLASSES = ("background", "disc", "square", "triangle")

_Plane = NDArray[np.float64]


def draw(size: int, seed: int, split: int, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw an image; it is a function of the arguments alone.

    One to three shapes, each of a random kind, place, size, angle and texture, a later one over an earlier one. Colours
    and textures are drawn in the same way for background and shapes, so that only the outline tells the class.

    Args:
        size: side in pixels.
        seed: of the set.
        split: number of the split.
        number: of the image.

    Returns:
        The image (size, size, 3), uint8, and the class of every pixel (size, size), uint8.
    """
    random = np.random.default_rng([seed, split, number])
    places = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(places, places, indexing="ij")
    image = _texture(random, x, y)
    mask = np.zeros((size, size), dtype=np.uint8)
    for _ in range(int(random.integers(1, 4))):
        kind = int(random.integers(1, len(CLASSES)))
        inside = _inside(random, kind, x, y)
        image[inside] = _texture(random, x, y)[inside]
        mask[inside] = kind
    image += random.normal(0, 0.03, image.shape)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), mask


def _texture(random: np.random.Generator, x: _Plane, y: _Plane) -> _Plane:
    """Mix two colours by a wave of random direction and length."""
    one, other = random.uniform(0, 1, 3), random.uniform(0, 1, 3)
    angle, waves, phase = random.uniform(0, np.pi), random.uniform(2, 12), random.uniform(0, 2 * np.pi)
    share = 0.5 + 0.5 * np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    mixed: _Plane = share[..., None] * one + (1 - share[..., None]) * other
    return mixed


def _inside(random: np.random.Generator, kind: int, x: _Plane, y: _Plane) -> NDArray[np.bool_]:
    centre, radius, angle = random.uniform(0.2, 0.8, 2), random.uniform(0.12, 0.3), random.uniform(0, 2 * np.pi)
    u = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    v = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
    if kind == 1:
        return np.asarray(np.hypot(u, v) <= radius)
    # Regular polygons: within the inner radius of every side's normal.
    sides = 4 if kind == 2 else 3
    normals = 2 * np.pi * np.arange(sides) / sides
    reach = np.stack([u * np.cos(normal) + v * np.sin(normal) for normal in normals]).max(0)
    return np.asarray(reach <= radius * np.cos(np.pi / sides))
