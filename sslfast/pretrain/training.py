"""One training: a method, its optimiser and its batches, and what one step does with them."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sslfast.data import Dataset
from sslfast.device import resolve_dtype
from sslfast.errors import DataError, UsageError, first_line
from sslfast.models import Backbone, Preprocess, load_backbone
from sslfast.pretrain.config import PretrainConfig
from sslfast.pretrain.feed import Batch, Feed
from sslfast.pretrain.method import Method, Position
from sslfast.pretrain.methods import METHODS, build_method
from sslfast.pretrain.optimizer import build_optimizer, learning_rate, set_rate
from sslfast.pretrain.parallel import Ranks, synchronised

PIXELS_FOR_STATISTICS = 20_000_000
"""Pixels that the data set's mean and standard deviation are taken from, at most."""
FILES_FOR_STATISTICS = 1000
"""Images that are decoded for them, at most."""


class Training:
    """Everything that a step changes, and the step.

    Args:
        dataset: in memory or in files.
        config: of the method.
        size: side of a view of relative size 1, in pixels.
        device: that computes.
        ranks: this process among others.
    """

    def __init__(
        self, dataset: Dataset, config: PretrainConfig, size: int, device: torch.device, ranks: Ranks | None = None
    ) -> None:
        self.config = config
        self.device = device
        self.ranks = ranks or Ranks()
        self.compute = resolve_dtype(config.dtype, device)
        labelled = METHODS[config.METHOD].NEEDS_LABELS
        self.classes = class_count(dataset) if labelled else 0
        self.feed = Feed(
            dataset,
            config.policy,
            size,
            config.batch_size,
            config.seed,
            device,
            config.accumulate,
            self.ranks,
            labelled,
            config.renderer,
        )
        least = len(dataset) // self.feed.steps_per_epoch
        if least < 2:
            raise UsageError(
                f"{len(dataset)} images in batches of {config.batch_size} leave one alone in its batch, a step needs "
                "2; use a larger --batch-size"
            )
        if self.ranks.world > 1 and least < 2 * self.ranks.world * config.accumulate:
            raise UsageError(
                f"{self.ranks.world} processes with {config.accumulate} parts of a step need at least 2 images each, a "
                f"step has {least}; use fewer processes or a larger --batch-size"
            )
        self.total = config.epochs * self.feed.steps_per_epoch
        torch.manual_seed(config.seed)
        self.backbone: Backbone = load_backbone(config.backbone, preprocess=statistics(dataset, size))
        self._check_views()
        self.method: Method = build_method(self.backbone, config, self.feed.views, self.classes)
        self.method.compute = self.compute
        self.method.ranks = self.ranks
        self.method.to(device)
        if config.channels_last:
            self.method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.sync_batchnorm:
            synchronised(self.method, self.ranks, device)
        self.optimizer = build_optimizer(self.method, config)
        # Where no average is asked for, the container has the method alone.
        self.state = nn.ModuleDict({"method": self.method})
        self.average: AveragedModel | None = None
        if config.ema:
            moving = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.method.network, multi_avg_fn=moving, use_buffers=True)
            self.state["average"] = self.average
        if config.compile != "no":
            self.method.network.compile(mode=config.compile)
        self.model: nn.Module = self.method
        if self.ranks.group is not None:
            devices = [device] if device.type == "cuda" else None
            # Statistics are synchronised or each process's own; queues are alike: no buffer is sent.
            self.model = DistributedDataParallel(self.method, devices, broadcast_buffers=False)
        self.method.train()

    def _check_views(self) -> None:
        side = min(self.feed.loader.sizes)
        try:
            with torch.no_grad():
                self.backbone.network.eval()(torch.zeros(1, 3, side, side))
        except RuntimeError as error:
            raise UsageError(
                f"{self.config.backbone} cannot take views of {side} pixels ({first_line(error)}); use a larger "
                "--image-size"
            ) from error

    @property
    def network(self) -> nn.Module:
        """The network whose weights are kept: the averaged one where there is one."""
        return self.method.network if self.average is None else self.average.module

    def rate(self, step: int) -> float:
        """Give the learning rate of a step."""
        return learning_rate(self.config, step, self.total)

    def step(self, step: int, parts: list[Batch]) -> Tensor:
        """Do one step and return the loss, a scalar on the device.

        Whatever the network draws (dropout) is a function of seed, step and process.
        """
        position = Position(step, step / self.feed.steps_per_epoch)
        draws = np.random.SeedSequence([self.config.seed, 2, step, self.ranks.rank])
        torch.manual_seed(int(draws.generate_state(1, np.uint64)[0]))
        set_rate(self.optimizer, self.rate(step))
        self.method.before_step(position)
        self.optimizer.zero_grad()
        losses = [self._part(batch, last=batch is parts[-1]) for batch in parts]
        self.method.after_backward(position)
        self.update()
        self.method.after_step(position)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Move the weights, and the average behind them."""
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.method.network)

    def _part(self, batch: Batch, last: bool) -> Tensor:
        if isinstance(self.model, DistributedDataParallel):
            self.model.require_backward_grad_sync = last
        loss: Tensor = self.model(batch.views, batch.labels) if batch.labels is not None else self.model(batch.views)
        if batch.share != 1:
            loss = loss * batch.share
        self.backward(loss)
        return loss.detach()


def class_count(dataset: Dataset) -> int:
    """Count the classes of a labelled set.

    Raises:
        DataError: an image has no label.
    """
    if dataset.labels is None or not len(dataset.labels) or int(np.min(dataset.labels)) < 0:
        raise DataError(f"training with labels needs a label for every image; {dataset.name} lacks some")
    return len(dataset.classes) if dataset.classes else int(np.max(dataset.labels)) + 1


def statistics(dataset: Dataset, size: int) -> Preprocess:
    """Take mean and spread of the pixels, from at most `PIXELS_FOR_STATISTICS` of them, evenly spaced images.

    Images in files or of different sizes, at most `FILES_FOR_STATISTICS`, are resized to ``size`` first.
    """
    whole = dataset.image_size if dataset.located() is not None else None
    height, width = whole or (size, size)
    most = len(dataset) if whole else min(len(dataset), FILES_FOR_STATISTICS)
    count = max(1, min(most, PIXELS_FOR_STATISTICS // (height * width)))
    dataset = dataset.subset(torch.linspace(0, len(dataset) - 1, count).long().numpy())
    if not whole:
        dataset = dataset.decoded(size)
    pixels = torch.from_numpy(dataset.images(np.arange(len(dataset)))).view(-1, 3)
    total = torch.zeros(3, dtype=torch.float64)
    squares = torch.zeros(3, dtype=torch.float64)
    for part in torch.split(pixels, 1 << 20):
        x = part.double() / 255
        total += x.sum(0)
        squares += x.square().sum(0)
    mean = total / len(pixels)
    # A set of one flat colour has no spread; 1/255 keeps the division meaningful.
    std = (squares / len(pixels) - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    r, g, b = (round(value, 6) for value in mean.tolist())
    sr, sg, sb = (round(value, 6) for value in std.tolist())
    return Preprocess(size, (r, g, b), (sr, sg, sb))
