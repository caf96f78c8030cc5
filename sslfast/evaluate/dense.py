"""The dense probe: how well one 1x1 convolution on a frozen backbone's maps tells the class of every pixel."""

import copy
import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.data.masks import IGNORED, MaskedImages
from sslfast.errors import DataError, UsageError
from sslfast.evaluate.config import DenseConfig
from sslfast.evaluate.counting import Counts, count_pairs
from sslfast.evaluate.guards import (
    check_evaluation_mode,
    check_no_random_layer,
    check_normalisation,
    check_shared_images,
)
from sslfast.memory import available_memory
from sslfast.models import Backbone, load_backbone
from sslfast.options import check_number, check_seed
from sslfast.progress import bar
from sslfast.search.bank import stream

CACHED_SHARE = 0.25
"""Maps of the training images are kept where they take at most this share of the memory that is free."""

PYRAMID_CHANNELS = 256


@dataclass(frozen=True)
class DenseScores:
    """A probe on test images.

    Args:
        name: of the backbone.
        miou: mean over the classes of intersection over union, in [0, 1]; of classes that occur or were predicted.
        iou: of each class; NaN where it neither occurs nor was predicted.
        pixel_accuracy: share of right pixels, in [0, 1].
        confusion: pixels by class and predicted class (classes, classes), int64.
        curve: mean training loss (nats) of each epoch.
        seconds: wall time.
    """

    name: str
    miou: float
    iou: tuple[float, ...]
    pixel_accuracy: float
    confusion: Counts
    curve: tuple[float, ...]
    seconds: float


class DenseHead(nn.Module):
    """Maps to logits of every pixel.

    Without a pyramid it is one 1x1 convolution over all maps, brought to zero mean and unit variance per channel and
    enlarged to the finest of them (the convolution and the enlargement are linear and change places, so that the small
    maps stay small). With one, torchvision's ``FeaturePyramidNetwork`` stands before it.

    Args:
        channels: of each map, by name.
        classes: number of classes.
        pyramid: whether to put the pyramid in.
    """

    def __init__(self, channels: "OrderedDict[str, int]", classes: int, *, pyramid: bool = False) -> None:
        super().__init__()
        self.names = list(channels)
        self.pyramid: nn.Module | None = None
        widths = list(channels.values())
        for number, width in enumerate(widths):
            self.register_buffer(f"mean{number}", torch.zeros(width, 1, 1))
            self.register_buffer(f"std{number}", torch.ones(width, 1, 1))
        if pyramid:
            from torchvision.ops import FeaturePyramidNetwork

            self.pyramid = FeaturePyramidNetwork(widths, PYRAMID_CHANNELS)
            widths = [PYRAMID_CHANNELS] * len(widths)
        self.heads = nn.ModuleList(
            nn.Conv2d(width, classes, 1, bias=number == 0) for number, width in enumerate(widths)
        )

    def forward(self, maps: "OrderedDict[str, Tensor]", size: int) -> Tensor:
        """Map the maps to logits (N, classes, size, size)."""
        normal = OrderedDict(
            (name, (maps[name] - self.get_buffer(f"mean{number}")) / self.get_buffer(f"std{number}"))
            for number, name in enumerate(self.names)
        )
        if self.pyramid is not None:
            normal = self.pyramid(normal)
        parts = [head(normal[name]) for head, name in zip(self.heads, self.names, strict=True)]
        finest = max(parts, key=lambda part: part.shape[-1]).shape[-2:]
        logits = torch.stack([_enlarged(part, finest) for part in parts]).sum(0)
        return _enlarged(logits, (size, size))


def dense_probe(
    backbone: Backbone,
    train: MaskedImages,
    test: MaskedImages,
    config: DenseConfig = DenseConfig(),  # noqa: B008  (frozen)
    *,
    random: bool = True,
    device: str | torch.device = "cpu",
) -> tuple[DenseScores, ...]:
    """Train a 1x1 head on a backbone's frozen maps, and on those of the same network with random weights.

    The backbone is copied and used in evaluation mode; nothing is chosen, the last epoch counts.

    Args:
        backbone: the network.
        train: images with masks.
        test: others, of the same classes.
        config: see `DenseConfig`.
        random: score the random backbone, too.
        device: where to train.

    Returns:
        Scores of the backbone, then those of the random one.

    Raises:
        UsageError: an option makes no sense, or the backbone is not what its checkpoint was (normalisation, missing
            weights).
        DataError: classes differ, images are shared, no pixel has a class, or training diverged.
    """
    for name in ("epochs", "batch_size"):
        check_number(name, getattr(config, name), 1)
    check_number("the learning rate", config.learning_rate, 0, open_low=True)
    check_seed(config.seed)
    if train.classes != test.classes:
        raise DataError(f"the classes of pixels differ: {', '.join(train.classes)} and {', '.join(test.classes)}")
    for what, images in (("training", train), ("test", test)):
        if not len(images) or not (images.masks != IGNORED).any():
            raise DataError(f"no pixel of the {what} images has a class")
    check_normalisation(backbone)
    check_no_random_layer(backbone, [backbone])
    check_shared_images(train.dataset, test.dataset)
    own = copy.deepcopy(backbone).eval().to(device)
    scores = [_score(own, backbone.source, train, test, config, device)]
    if random:
        with torch.random.fork_rng():
            torch.manual_seed(stream(config.seed, 5))
            untrained = load_backbone(backbone.architecture, None, backbone.preprocess)
        scores.append(_score(untrained.eval().to(device), "random initialisation", train, test, config, device))
    return tuple(scores)


def _score(
    backbone: Backbone, name: str, train: MaskedImages, test: MaskedImages, config: DenseConfig,
    device: str | torch.device,
) -> DenseScores:  # fmt: skip
    start = time.monotonic()
    check_evaluation_mode(backbone)
    shapes = map_shapes(backbone, backbone.preprocess.size)
    unknown = [one for one in config.maps if one not in shapes]
    if unknown:
        raise UsageError(f"a {backbone.architecture} has no map {unknown[0]!r}; it has: {', '.join(shapes)}")
    used = OrderedDict((one, shape) for one, shape in shapes.items() if not config.maps or one in config.maps)
    with torch.random.fork_rng():
        torch.manual_seed(stream(config.seed, 6))
        channels = OrderedDict((one, shape[0]) for one, shape in used.items())
        head = DenseHead(channels, len(train.classes), pyramid=config.pyramid).to(device)
    images = _Maps(backbone, train, list(used), config.batch_size, device)
    images.keep(4 * sum(math.prod(shape) for shape in used.values()))
    _standardise(head, images)
    curve = _train(head, images, train, config, device)
    confusion = np.zeros((len(test.classes), len(test.classes)), dtype=np.int64)
    head.eval()
    tested = _Maps(backbone, test, list(used), config.batch_size, device)
    with torch.inference_mode():
        for rows, maps in tested.batches(np.arange(len(test))):
            predicted = head(maps, test.size).argmax(1).cpu().numpy()
            kept = test.masks[rows] != IGNORED
            classes = len(test.classes)
            confusion += count_pairs(test.masks[rows][kept].astype(np.int64), predicted[kept], classes, classes)
    iou, miou = intersection_over_union(confusion)
    share = float(np.trace(confusion) / confusion.sum())
    return DenseScores(name, miou, iou, share, confusion, tuple(curve), time.monotonic() - start)


def intersection_over_union(confusion: Counts) -> tuple[tuple[float, ...], float]:
    """Give TP / (TP + FP + FN) of every class (NaN: it is nowhere), and the mean over those that are somewhere."""
    right = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - right
    found = np.where(union > 0, right / np.maximum(union, 1), np.nan)
    return tuple(found.tolist()), float(np.nanmean(found))


class _Maps:
    """A frozen backbone's maps of some images, computed batch by batch, or kept."""

    def __init__(
        self, backbone: Backbone, images: MaskedImages, names: list[str], batch: int, device: str | torch.device
    ) -> None:
        self.backbone, self.images, self.names, self.batch, self.device = backbone, images, names, batch, device
        self.kept: OrderedDict[str, Tensor] = OrderedDict()

    def keep(self, bytes_each: int) -> None:
        """Compute all maps once where there is room for them."""
        if bytes_each * len(self.images) > CACHED_SHARE * available_memory(torch.device(self.device)):
            return
        parts: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for _, maps in self.batches(np.arange(len(self.images))):
            for name, one in maps.items():
                parts[name].append(one)
        self.kept = OrderedDict((name, torch.cat(parts[name])) for name in self.names)

    def batches(self, order: "np.ndarray[Any, np.dtype[np.int64]]") -> Iterator[tuple[Any, "OrderedDict[str, Tensor]"]]:
        """Give numbers of images and their maps, in ``order``."""
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            if self.kept:
                index = torch.from_numpy(rows).to(self.device)
                yield rows, OrderedDict((name, one[index]) for name, one in self.kept.items())
                continue
            with torch.no_grad():
                pixels = torch.from_numpy(self.images.images(rows)).to(self.device)
                maps = self.backbone.feature_maps(self.backbone.preprocess(pixels))
            yield rows, OrderedDict((name, maps[name].float()) for name in self.names)


def _standardise(head: DenseHead, images: _Maps) -> None:
    """Give the head mean and deviation of every channel over the training images."""
    sums = [torch.zeros(2, head.get_buffer(f"mean{n}").shape[0], dtype=torch.float64) for n in range(len(head.names))]
    counts = [0] * len(head.names)
    for _, maps in images.batches(np.arange(len(images.images))):
        for number, name in enumerate(head.names):
            values = maps[name].double()
            sums[number] += torch.stack([values.sum((0, 2, 3)), (values * values).sum((0, 2, 3))]).cpu()
            counts[number] += values.numel() // values.shape[1]
    for number, (total, squares) in enumerate(sums):
        mean = total / counts[number]
        std = (squares / counts[number] - mean * mean).clamp(min=0).sqrt()
        std = torch.where(std > 1e-6, std, torch.ones_like(std))
        head.get_buffer(f"mean{number}").copy_(mean.float()[:, None, None])
        head.get_buffer(f"std{number}").copy_(std.float()[:, None, None])


def _train(
    head: DenseHead, images: _Maps, train: MaskedImages, config: DenseConfig, device: str | torch.device
) -> list[float]:
    steps = config.epochs * math.ceil(len(train) / config.batch_size)
    optimizer = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    curve = []
    with bar(f"dense probe, {images.backbone.architecture}", config.epochs, "epoch") as shown:
        for epoch in range(config.epochs):
            order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
            total, pixels = 0.0, 0
            for rows, maps in images.batches(order):
                target = torch.from_numpy(train.masks[rows]).to(device).long()
                count = int((target != IGNORED).sum())
                if not count:
                    continue
                loss = F.cross_entropy(head(maps, train.size), target, ignore_index=IGNORED)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total, pixels = total + float(loss.detach()) * count, pixels + count
            curve.append(total / max(pixels, 1))
            if not math.isfinite(curve[-1]):
                raise DataError(f"the dense probe diverged in epoch {epoch + 1}; give a smaller learning rate")
            shown.note(f"loss {curve[-1]:.4f}")
            shown.advance()
    return curve


def _enlarged(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def map_shapes(backbone: Backbone, size: int) -> "OrderedDict[str, tuple[int, int, int]]":
    """Give channels, height and width of every map for images of ``size`` pixels."""
    device = next(backbone.parameters()).device
    with torch.inference_mode():
        maps = backbone.feature_maps(torch.zeros(1, 3, size, size, device=device))
    return OrderedDict((name, (one.shape[1], one.shape[2], one.shape[3])) for name, one in maps.items())
