"""Two augmented views of every image, in memory or in JPEG files, an epoch a turn: ours, torchvision v2, kornia, DALI.

All make SimCLR's views for small images, antialiased and bilinear, as float32 in [0, 1]. torchvision gets uint8 tensors
(of files: decoded by Pillow, as its folders do it) and stays with them until the last step, which is its fastest form;
kornia, which works on float32, gets whole batches.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor, nn

from sslfast.bench.contenders import OURS
from sslfast.bench.turns import Contender, Part, Scenario, Turn
from sslfast.data import Dataset, load
from sslfast.data.loader import ViewLoader
from sslfast.data.memory import ArrayPixels
from sslfast.data.views import plan

Size = tuple[int, ...]
Views = Callable[[], Iterator[tuple[Tensor, ...]]]
HERE = "sslfast.bench.views"
TORCHVISION = tuple(f"torchvision v2, {word}" for word in ("no worker", "1 worker", "2 workers"))
KORNIA, DALI, DEFINITION = "kornia", "DALI", "definition in PyTorch"
SIZES: tuple[Size, ...] = ((2048, 256, 32), (1024, 256, 96), (256, 64, 224))
"""Images of an epoch, images of a batch, side of images and views."""
FILE_SIZES: tuple[Size, ...] = ((256, 64, 64), (256, 64, 224))
"""Images of an epoch, images of a batch, side of views; the images have sides of 300 to 500 pixels."""
_folders = []
"""Temporary folders; they are removed when the process ends."""


def _dataset(size: Sequence[int]) -> Dataset:
    images, _, side = size
    # Planes, as CIFAR's files have them.
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, side, side), dtype=np.uint8).transpose(0, 2, 3, 1)
    return Dataset("noise", "train", ArrayPixels(pixels), ids=[str(row) for row in range(images)])


def _files(size: Sequence[int]) -> Dataset:
    """Photographs with grain, about 60 KB each."""
    from PIL import Image

    _folders.append(tempfile.TemporaryDirectory(prefix="sslfast-bench-"))
    random = np.random.default_rng(0)
    for number in range(size[0]):
        height, width = random.integers(300, 500, 2).tolist()
        coarse = torch.from_numpy(random.uniform(0, 255, (1, 3, 24, 24)).astype(np.float32))
        smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
        pixels = (smooth + random.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(f"{_folders[-1].name}/{number:05}.jpg", quality=90)
    return load(f"folder:{_folders[-1].name}", "train")


def epoch(size: Sequence[int], how: str, files: bool = False) -> Turn:
    """Make the two views of every image once, in batches."""
    make = maker(size, how, files)

    def turn() -> None:
        for views in make():
            assert views[0].dtype == torch.float32

    return turn


def maker(size: Sequence[int], how: str, files: bool = False) -> Views:
    """Give what makes an epoch in one of the ways: batches of (2 x B, 3, side, side), or of two halves of that."""
    dataset = _files(size) if files else _dataset(size)
    if how in TORCHVISION:
        return _torchvision(dataset, size, TORCHVISION.index(how))
    if how == KORNIA:
        return _kornia(dataset, size)
    renderer = {DALI: "dali", DEFINITION: "torch"}.get(how, "native")
    loader = ViewLoader(dataset, plan("simclr"), size[2], size[1], seed=0, renderer=renderer)
    steps = loader.steps_per_epoch
    if how != DALI:
        firsts = count(0, steps)
        return lambda: (batch.views for first in islice(firsts, 1) for batch in loader.batches(first, first + steps))
    # Its pipeline stays: what it costs to build one is not counted.
    endless = loader.batches(0, 1 << 40)
    return lambda: (next(endless).views for _ in range(steps))


def _torchvision(dataset: Dataset, size: Sequence[int], workers: int) -> Views:
    from torchvision.transforms import v2

    policy = plan("simclr").groups[0].policies[0]
    jitter = v2.ColorJitter(policy.brightness, policy.contrast, policy.saturation, policy.hue)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size[2], policy.scale, policy.ratio, antialias=True),
            v2.RandomHorizontalFlip(policy.flip),
            v2.RandomApply([jitter], policy.jitter),
            v2.RandomGrayscale(policy.grayscale),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    loader = torch.utils.data.DataLoader(
        _Transformed(dataset, transform),
        batch_size=size[1],
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: iter(loader)


class _Transformed(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Tensors in memory, or files, with a transform that is called twice, as scripts have it."""

    def __init__(self, dataset: Dataset, transform: nn.Module) -> None:
        self.dataset, self.transform = dataset, transform
        held = dataset.located() is not None
        self.pixels = torch.from_numpy(dataset.images(np.arange(len(dataset)))).permute(0, 3, 1, 2) if held else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self._decoded(index) if self.pixels is None else self.pixels[index]
        return self.transform(image), self.transform(image)

    def _decoded(self, index: int) -> Tensor:
        from torchvision.datasets.folder import default_loader
        from torchvision.transforms.v2.functional import pil_to_tensor

        return pil_to_tensor(default_loader(self.dataset.ids[index]))


def _kornia(dataset: Dataset, size: Sequence[int]) -> Views:
    from kornia import augmentation as K

    policy = plan("simclr").groups[0].policies[0]
    colours = policy.brightness, policy.contrast, policy.saturation, policy.hue
    transform = nn.Sequential(
        K.RandomResizedCrop((size[2], size[2]), scale=policy.scale, ratio=policy.ratio),
        K.RandomHorizontalFlip(p=policy.flip),
        K.ColorJitter(*colours, p=policy.jitter),
        K.RandomGrayscale(p=policy.grayscale),
    )
    pixels = torch.from_numpy(dataset.images(np.arange(len(dataset)))).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def batches() -> Iterator[tuple[Tensor, ...]]:
        for rows in torch.randperm(len(pixels)).split(size[1]):
            images = pixels[rows].float().div_(255)
            yield transform(images), transform(images)

    return batches


def _contender(size: Size, name: str, how: str, threads: int = 0, files: bool = False) -> Contender:
    return Contender(name, "float32", (Part(f"{HERE}:epoch", {"size": size, "how": how, "files": files}, threads),))


def _contenders(size: Size) -> list[Contender]:
    others = [_contender(size, name, name) for name in (*TORCHVISION, KORNIA, DALI, DEFINITION)]
    return [_contender(size, OURS, OURS), _contender(size, f"{OURS}, one thread", OURS, 1), *others]


VIEWS = Scenario(
    name="views",
    title="two views of an image that is in memory",
    axes=("images", "batch", "side"),
    sizes=SIZES,
    contenders=_contenders,
    unit="image",
    units=lambda size: size[0],
    # Of each pixel: 2 rows and 2 columns are blended, the grey is summed, a matrix changes the colours.
    operations=lambda size: 2 * size[2] ** 2 * (3 * 4 + 3 * 4 + 6 + 18),
    traffic=lambda size: 3 * size[2] ** 2 * (1 / 4 + 2),
    typed="views",
)
FILES = Scenario(
    name="view_files",
    title="two views of an image that is decoded from a JPEG file",
    axes=("images", "batch", "side of a view"),
    sizes=FILE_SIZES,
    contenders=lambda size: [_contender(size, name, name, files=True) for name in (OURS, *TORCHVISION, DALI)],
    unit="image",
    units=lambda size: size[0],
    operations=VIEWS.operations,
    traffic=lambda size: 3 * size[2] ** 2 * 2,
    typed="views",
)
