"""Augmented views: what a training sees of an image, by name.

A `ViewPolicy` says the distributions that one view is drawn from, a `ViewGroup` the views of one size, a `ViewPlan` all
views of an image. `sslfast.data.drawing` draws a view's parameters from a counter-based generator, and a renderer turns
images and parameters into network input: the compiled one (`sslfast.data.native`), NVIDIA DALI (`sslfast.data.dali`),
or plain PyTorch, which is the definition of each step (`sslfast.data.render`).
"""

from dataclasses import dataclass, replace

from sslfast.errors import UsageError
from sslfast.options import check_number

_PROBABILITIES = ("flip", "vertical_flip", "jitter", "grayscale", "distort", "blur", "solarise", "erase")


@dataclass(frozen=True)
class ViewPolicy:
    """The distributions that a view is drawn from; its steps are done in the order of the arguments.

    Args:
        scale: area of the crop as a fraction of the image's, uniform in this range.
        ratio: width over height of the crop, log-uniform in this range.
        pad: instead of such a crop, one of the image's own size out of the image with a black frame of so many of its
            sides around it: 1/8 is CIFAR's 4 pixels of 32.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        jitter: probability that the colours are changed.
        brightness: factor of the pixel values, uniform in [1 - b, 1 + b].
        contrast: factor of the distance to the image's mean grey, uniform in [1 - c, 1 + c].
        saturation: factor of the distance to each pixel's own grey, uniform in [1 - s, 1 + s].
        hue: turn of the colour circle, uniform in [-h, h]; 1 is a full turn.
        grayscale: probability that all colour is taken away.
        distort: probability of a change of perspective; what comes from outside is black.
        distortion: how far each corner moves inwards at most, of half a side, as in torchvision's RandomPerspective.
        blur: probability of a Gaussian blur. Its window is a tenth of the view, odd, at least 3 pixels.
        blur_sigma: standard deviation of the blur in pixels, uniform in this range.
        solarise: probability that values of at least 1/2 are inverted.
        erase: probability that a box is overwritten with ``fill``.
        erase_scale: area of the box as a fraction of the view's, uniform in this range.
        erase_ratio: height over width of the box, log-uniform in this range.
        cutout: instead of such a box, a square of this part of the view's side, centred on any pixel and cut off at the
            border (DeVries and Taylor, 2017).
        fill: value of a box.
        noise: standard deviation of Gaussian noise, which is added to values in [0, 1]; the sum is cut off there.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: float = 0.0
    flip: float = 0.5
    vertical_flip: float = 0.0
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    distort: float = 0.0
    distortion: float = 0.5
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    erase: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    cutout: float = 0.0
    fill: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name in _PROBABILITIES:
            check_number(name, getattr(self, name), 0, 1)
        for name in ("pad", "brightness", "contrast", "saturation", "distortion", "cutout", "fill"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("hue", self.hue, 0, 0.5)
        check_number("noise", self.noise, 0)
        for name in ("scale", "ratio", "blur_sigma", "erase_scale", "erase_ratio"):
            low, high = getattr(self, name)
            check_number(f"the lower end of {name}", low, 0, high, open_low=True)
            check_number(f"the upper end of {name}", high, low, 1 if name.endswith("scale") else float("inf"))


@dataclass(frozen=True)
class ViewGroup:
    """Views of one size.

    Args:
        policies: one of each view.
        size: side of the views over the run's image size.
        same_geometry: whether all views of an image have what was drawn for the first one, but for their noise.
    """

    policies: tuple[ViewPolicy, ...]
    size: float = 1.0
    same_geometry: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check_number("size", self.size, 0, 4, open_low=True)
        if not self.policies:
            raise UsageError("a group of views needs at least one policy")
        if self.same_geometry and len({replace(policy, noise=0.0) for policy in self.policies}) > 1:
            raise UsageError("views of the same geometry can differ in their noise only")

    def pixels(self, image_size: int) -> int:
        """Give the side of these views in pixels in a run of this image size."""
        return max(1, round(self.size * image_size))


@dataclass(frozen=True)
class ViewPlan:
    """All views of an image.

    Args:
        groups: the views of each size; a batch has one tensor a group.
        title: what it is, and whose.
    """

    groups: tuple[ViewGroup, ...]
    title: str = ""

    @property
    def views(self) -> int:
        """Count the views of an image."""
        return sum(len(group.policies) for group in self.groups)


def _alike(policy: ViewPolicy, count: int, size: float = 1.0) -> ViewGroup:
    return ViewGroup((policy,) * count, size)


_SIMCLR = ViewPolicy()
_PLAIN = ViewPolicy(scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter=0.0, grayscale=0.0)
_BYOL = ViewPolicy(scale=(0.08, 1.0), saturation=0.2, blur=1.0)
_BYOL_PAIR = (_BYOL, replace(_BYOL, blur=0.1, solarise=0.2))
_SMALL_PAIR = (replace(_BYOL, blur=0.0), replace(_BYOL, blur=0.0, solarise=0.2))
_SWAV = ViewPolicy(scale=(0.14, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)
_DINO = replace(_BYOL, scale=(0.4, 1.0))
_SUPERVISED = replace(_PLAIN, pad=1 / 8)
_NOISY = replace(_PLAIN, vertical_flip=0.5, noise=0.1)
LOCAL = 96 / 224
"""Side of a low-resolution crop over that of a full one (Caron et al., 2020)."""

PLANS: dict[str, ViewPlan] = {
    "simclr": ViewPlan((_alike(_SIMCLR, 2),), "two views for small images: Chen et al. 2020, appendix B.9"),
    "simclr-imagenet": ViewPlan(
        (_alike(ViewPolicy((0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5), 2),),
        "two views, full colour strength and blur: Chen et al. 2020, appendix A",
    ),
    "swav": ViewPlan(
        (_alike(_SWAV, 2), _alike(replace(_SWAV, scale=(0.05, 0.14)), 6, LOCAL)),
        "two full and six low-resolution crops: Caron et al. 2020",
    ),
    "swav-cifar": ViewPlan(
        (_alike(replace(_SIMCLR, scale=(0.14, 1.0)), 2),), "two crops without blur, as lightly's CIFAR benchmark"
    ),
    "barlow-twins": ViewPlan((ViewGroup(_BYOL_PAIR),), "asymmetric blur and solarisation: Zbontar et al. 2021"),
    "barlow-twins-cifar": ViewPlan((ViewGroup(_SMALL_PAIR),), "the same without blur, for small images: solo-learn's"),
    "byol": ViewPlan((ViewGroup(_BYOL_PAIR),), "asymmetric blur and solarisation: Grill et al. 2020, table 6"),
    "byol-cifar": ViewPlan((ViewGroup(_SMALL_PAIR),), "the same without blur, for small images: solo-learn's"),
    "self-classifier": ViewPlan(
        (
            ViewGroup((_DINO, replace(_DINO, blur=0.1, solarise=0.2))),
            _alike(replace(_DINO, scale=(0.05, 0.4), blur=0.5), 6, LOCAL),
        ),
        "two full and six low-resolution crops: Amrani et al. 2022; colours of DINO",
    ),
    "self-classifier-cifar": ViewPlan(
        (
            ViewGroup((replace(_DINO, blur=0.0), replace(_DINO, blur=0.0, solarise=0.2))),
            _alike(replace(_DINO, scale=(0.08, 0.4), blur=0.0), 6, 0.5),
        ),
        "the same without blur, low-resolution crops of half the side, for small images",
    ),
    "supervised": ViewPlan((_alike(_SUPERVISED, 1),), "pad by an eighth, crop, flip: the usual one for CIFAR"),
    "supervised-imagenet": ViewPlan(
        (_alike(ViewPolicy((0.08, 1.0), jitter=0.0, grayscale=0.0), 1),), "random resized crop and flip"
    ),
    "cutout": ViewPlan(
        (_alike(replace(_SUPERVISED, erase=1.0, cutout=0.5, fill=0.5), 1),),
        "supervised, and a square of half the side in grey: DeVries and Taylor 2017",
    ),
    "paper002": ViewPlan(
        (_alike(replace(_SIMCLR, distort=0.5, distortion=0.5, erase=0.5), 2),),
        "crop, flip, colour jitter, grey, distortion (a change of perspective) and erasing, each with a probability",
    ),
    "autoencoder": ViewPlan(
        (ViewGroup((_NOISY, replace(_NOISY, noise=0.0)), same_geometry=True),),
        "flips along both axes; the first view has Gaussian noise, the second is the same without",
    ),
}


def plan(name: str) -> ViewPlan:
    """Find a plan by name.

    Raises:
        UsageError: there is no such plan.
    """
    if name not in PLANS:
        raise UsageError(f"unknown view plan {name!r}; there are: {', '.join(PLANS)}")
    return PLANS[name]
