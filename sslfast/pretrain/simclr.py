"""SimCLR: two views of every image, pulled together and pushed away from all others by NT-Xent."""

import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

import sslfast
from sslfast.data import Dataset
from sslfast.data.loader import ViewLoader
from sslfast.data.views import plan
from sslfast.device import resolve_device, resolve_dtype
from sslfast.errors import DataError, SslfastError, UsageError
from sslfast.files import write_json
from sslfast.models import ARCHITECTURES, Backbone, Preprocess, load_backbone, save_backbone
from sslfast.pretrain.config import SimCLRConfig
from sslfast.pretrain.state import load_training_state, save_training_state
from sslfast.progress import bar
from sslfast.run import Run

PIXELS_FOR_STATISTICS = 20_000_000
"""Pixels that the data set's mean and standard deviation are taken from, at most."""


class Projector(nn.Sequential):
    """The projection head g of SimCLR: Linear, BN, ReLU, Linear; dropped after pre-training."""

    def __init__(self, features: int, width: int) -> None:
        hidden = 2 * features
        super().__init__(
            nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width)
        )


def pretrain_simclr(
    dataset: Dataset,
    config: SimCLRConfig,
    run: Run,
    *,
    image_size: int | None = None,
    device: str = "auto",
    save_seconds: float = 20.0,
) -> Backbone:
    """Train a backbone on a data set's images, without its labels.

    The state is saved every ``save_seconds``; a killed run continues from there and ends with the same weights.

    Args:
        dataset: decoded, all images of one size.
        config: what decides the result.
        run: receives metrics.jsonl, training.safetensors (the state), backbone.safetensors and result.json.
        image_size: side of a view in pixels; by default the image's own shorter side.
        device: auto, cpu or cuda.
        save_seconds: between two saves of the state.

    Returns:
        The trained backbone, in evaluation mode, on the CPU.

    Raises:
        DataError: fewer than two images.
        SslfastError: the loss became infinite or NaN.
    """
    check_names(config, device)
    if len(dataset) < 2:
        raise DataError(f"pre-training needs at least 2 images, {dataset.name} has {len(dataset)}")
    assert dataset.image_size is not None
    size = image_size or min(dataset.image_size)
    state_path = run.folder / "training.safetensors"
    if (run.folder / "result.json").exists():
        state_path.unlink(missing_ok=True)  # a kill may have left it
        return load_backbone(config.backbone, run.folder / "backbone.safetensors").eval()
    where = resolve_device(device)
    compute = resolve_dtype(config.dtype, where)
    torch.manual_seed(config.seed)
    backbone = load_backbone(config.backbone, preprocess=_statistics(dataset, size))
    model = nn.ModuleDict({"network": backbone.network, "projector": Projector(backbone.features, config.projection)})
    model.to(where).to(memory_format=torch.channels_last)
    loader = ViewLoader(dataset, plan(config.policy), size, config.batch_size, config.seed, device=where)
    steps = config.epochs * loader.steps_per_epoch
    optimizer = _optimizer(model, config)
    first, seconds = 0, 0.0
    if state_path.exists():
        first, seconds = load_training_state(state_path, model, optimizer)
        run.keep_metrics(lambda line: line["step"] < first)
    run.log(f"simclr: {len(dataset)} images, {steps} steps from {first} on, {where}, {compute}")
    started = saved = before = time.monotonic()
    with bar("pre-training", config.epochs * len(dataset), "img", _images_done(loader, first)) as progress:
        for step, batch in enumerate(loader.batches(first, steps), start=first):
            rate = learning_rate(config, step, steps)
            loss = _step(model, optimizer, backbone.preprocess, batch.views[0], rate, config.temperature, compute)
            if not math.isfinite(loss):
                raise SslfastError(f"the loss became {loss} at step {step}; try a lower --learning-rate")
            count = len(batch.indices)
            now = time.monotonic()
            run.metric(
                step=step,
                epoch=round((step + 1) / loader.steps_per_epoch, 4),
                loss=round(loss, 6),
                learning_rate=rate,
                images=count,
                images_per_second=round(count / max(now - before, 1e-6), 1),
            )
            before = now
            progress.advance(count)
            progress.note(f"loss {loss:.3f}")
            if now - saved > save_seconds and step + 1 < steps:
                save_training_state(state_path, model, optimizer, step + 1, seconds + now - started)
                saved = now
    backbone.cpu().eval()
    backbone.source = f"SimCLR on {dataset.name} ({dataset.split})"
    seconds += time.monotonic() - started
    save_backbone(backbone, run.folder / "backbone.safetensors")
    result: dict[str, Any] = {
        "method": "simclr",
        **{f"option_{key}": value for key, value in asdict(config).items()},
        "images": len(dataset),
        "steps": steps,
        "loss": loss,
        "seconds": round(seconds, 1),
        "compute_dtype": str(compute).removeprefix("torch."),
        "fingerprint": backbone.fingerprint(),
    }
    write_json(run.folder / "result.json", result)
    state_path.unlink(missing_ok=True)
    return backbone


def learning_rate(config: SimCLRConfig, step: int, steps: int) -> float:
    """Give the learning rate of a step: a linear rise, then a cosine to 0."""
    rise = max(1, round(config.warmup * steps))
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def check_names(config: SimCLRConfig, device: str = "auto") -> None:
    """Check the options that name something, before any work is done.

    Raises:
        UsageError: there is no such architecture, policy, device or dtype.
    """
    if config.backbone not in ARCHITECTURES:
        raise UsageError(f"unknown backbone {config.backbone!r}; there are: {', '.join(ARCHITECTURES)}")
    plan(config.policy)
    resolve_dtype(config.dtype, resolve_device(device))


def _statistics(dataset: Dataset, size: int) -> Preprocess:
    # Mean and spread of the training pixels, from at most PIXELS_FOR_STATISTICS of them, evenly spaced images.
    assert dataset.image_size is not None
    per_image = dataset.image_size[0] * dataset.image_size[1]
    count = max(1, min(len(dataset), PIXELS_FOR_STATISTICS // per_image))
    chosen = torch.linspace(0, len(dataset) - 1, count).long().numpy()
    pixels = torch.from_numpy(dataset.images(chosen)).view(-1, 3)
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


def _optimizer(model: nn.Module, config: SimCLRConfig) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _step(
    model: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    preprocess: Preprocess,
    views: Tensor,
    rate: float,
    temperature: float,
    compute: torch.dtype,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    x = preprocess.normalise(views).contiguous(memory_format=torch.channels_last)
    with torch.autocast(views.device.type, compute, enabled=compute != torch.float32):
        z: Tensor = model["projector"](model["network"](x))
    z0, z1 = z.float().chunk(2)
    loss = sslfast.nt_xent(z0, z1, temperature)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def _images_done(loader: ViewLoader, step: int) -> int:
    epochs, rest = divmod(step, loader.steps_per_epoch)
    return epochs * len(loader.dataset) + sum(len(loader.indices(epochs, i)) for i in range(rest))
