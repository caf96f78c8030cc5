"""Whole training steps of SimCLR, loading and views included: ours, and a plain loop with lightly's parts.

Both have the same network, projector, images, batch, crops, colour changes and AdamW. lightly is used as its tutorials
have it: its transform on images of Pillow in torch's ``DataLoader``, its loss, autograd. A turn is an epoch of a few
steps, so that nobody prepares batches while somebody else is timed. ``python -m sslfast.bench.pretrain_step OUT.json``
measures where the time goes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslfast.bench.contenders import OURS
from sslfast.bench.turns import Contender, Part, Scenario, Turn
from sslfast.data import Dataset
from sslfast.data.memory import ArrayPixels
from sslfast.files import writing
from sslfast.memory import freed_memory_kept
from sslfast.models.architectures import build
from sslfast.pretrain.config import SimCLRConfig
from sslfast.pretrain.method import mlp
from sslfast.pretrain.training import Training
from sslfast.search.bank import can_use_half

Size = tuple[int, ...]
"""Images of a step, their side, and which of ``NETWORKS``, counted from 1."""
NETWORKS = ("resnet-small", "resnet20", "resnet18")
SIZES: tuple[Size, ...] = ((256, 32, 1), (256, 32, 2), (64, 64, 3))
STEPS = 8
"""Of a turn."""
TOGETHER = f"{OURS}, views together"
"""One pass of the network over both views, as Chen et al.; the others, our default included, have one per view."""
LIGHTLY, IN_LOOP, LAST = "lightly", "lightly, no workers", "lightly, channels last"
WORKERS = 2
"""Processes that render lightly's views: one a core."""
PARTS = ("loader", "forward", "loss", "backward", "optimiser")
_kept = ExitStack()
HERE = "sslfast.bench.pretrain_step"


class Laps:
    """Adds up what each part of a step takes."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def of(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Time every call of ``work`` as ``part``."""

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                self.seconds[part] += time.perf_counter() - start

        return timed

    def reading(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Time the waiting for batches."""
        ask = self.of("loader", partial(next, iter(batches), None))
        while (batch := ask()) is not None:
            yield batch


def pixels(size: Sequence[int]) -> np.ndarray:
    """Draw the images of a turn, uint8."""
    batch, side, _ = size
    return np.random.default_rng(0).integers(0, 256, (STEPS * batch, side, side, 3), dtype=np.uint8)


def ours(size: Sequence[int], half: bool, together: bool = False, laps: Laps | None = None) -> Turn:
    """Train with `sslfast.pretrain`."""
    _check(half)
    batch, side, number = size
    config = SimCLRConfig(
        backbone=NETWORKS[number - 1],
        epochs=1000,
        batch_size=batch,
        dtype="bfloat16" if half else "float32",
        views_apart=not together,
    )
    images = Dataset("noise", "train", ArrayPixels(pixels(size)), ids=[str(row) for row in range(STEPS * batch)])
    training = Training(images, config, side, torch.device("cpu"))
    epoch = iter(range(config.epochs))
    if laps is not None:
        method: Any = training.method
        method.embed, method.loss = laps.of("forward", method.embed), laps.of("loss", method.loss)
        training.backward = laps.of("backward", training.backward)  # type: ignore[method-assign]
        training.update = laps.of("optimiser", training.update)  # type: ignore[method-assign]

    def turn() -> None:
        first = next(epoch) * STEPS
        batches = training.feed.steps(first, first + STEPS)
        for step, parts in enumerate(batches if laps is None else laps.reading(batches), start=first):
            training.step(step, parts).item()

    if laps is None:  # as a run does; where contenders share a process, nobody has it
        _kept.enter_context(freed_memory_kept())

    return turn


class Pictures(torch.utils.data.Dataset[Any]):
    """Images as torchvision's CIFAR10 gives them: one of Pillow and a label."""

    def __init__(self, images: np.ndarray, transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        """Give the views of an image."""
        from PIL import Image

        return self.transform(Image.fromarray(self.images[row])), 0


def lightly(
    size: Sequence[int], half: bool, workers: int = WORKERS, channels_last: bool = False, laps: Laps | None = None
) -> Turn:
    """Train with lightly's transform and loss in a plain loop."""
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform

    _check(half)
    batch, side, number = size
    config = SimCLRConfig()
    torch.manual_seed(0)
    built = build(NETWORKS[number - 1])
    network, width = built.network, built.features
    projector = mlp((width, 2 * width, config.projection), bias=True)
    model: nn.Module = nn.Sequential(network, projector).train()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    criterion = NTXentLoss(temperature=config.temperature)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    transform = SimCLRTransform(input_size=side, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0)
    read = torch.utils.data.DataLoader(
        Pictures(pixels(size), transform),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread if workers else None,
    )

    def forward(x0: Tensor, x1: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return model(x0.to(memory_format=layout)), model(x1.to(memory_format=layout))

    def loss_of(z0: Tensor, z1: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return criterion(z0, z1)

    def backward(loss: Any) -> None:
        loss.backward()

    update: Callable[[], Any] = optimizer.step
    clock = Laps() if laps is None else laps
    forward, loss_of = clock.of("forward", forward), clock.of("loss", loss_of)
    backward, update = clock.of("backward", backward), clock.of("optimiser", update)

    def turn() -> None:
        for (x0, x1), _ in clock.reading(read):
            optimizer.zero_grad()
            loss = loss_of(*forward(x0, x1))
            backward(loss)
            update()
            loss.item()

    return turn


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _check(half: bool) -> None:
    if half and not can_use_half():
        raise ImportError("this processor does not multiply bfloat16")


def contenders(size: Size) -> list[Contender]:
    """List who trains at a size."""

    def one(name: str, make: str, half: bool = False, **more: Any) -> Contender:
        job = {"size": size, "half": half, **more}
        return Contender(name, "bfloat16" if half else "float32", (Part(f"{HERE}:{make}", job),))

    return [
        one(OURS, "ours"),
        one(OURS, "ours", True),
        one(TOGETHER, "ours", together=True),
        one(TOGETHER, "ours", True, together=True),
        one(LIGHTLY, "lightly"),
        one(IN_LOOP, "lightly", workers=0),
        one(LAST, "lightly", channels_last=True),
        one(LAST, "lightly", True, channels_last=True),
    ]


def operations(size: Size) -> float:
    """Count the multiplications and additions of a step's network and projector: three passes over two views."""
    from torch.utils.flop_counter import FlopCounterMode

    batch, side, number = size
    built = build(NETWORKS[number - 1])
    projector = mlp((built.features, 2 * built.features, SimCLRConfig.projection), bias=True).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        projector(built.network.eval()(torch.zeros(1, 3, side, side)))
    return 3 * 2 * batch * float(counted.get_total_flops())


def shares(size: Size, turns: int = 5) -> dict[str, dict[str, float]]:
    """Give milliseconds of a step's parts, by contender; they take turns in one process."""
    clocks: dict[str, Laps] = {}
    work: dict[str, Turn] = {}
    for contender in contenders(size):
        (part,) = contender.parts
        label = f"{contender.name}, {contender.dtype}"
        clocks[label] = Laps()
        try:
            work[label] = globals()[part.make.partition(":")[2]](**part.job, laps=clocks[label])
            work[label]()
        except ImportError:
            del clocks[label]
    whole = dict.fromkeys(clocks, 0.0)
    for clock in clocks.values():
        clock.seconds = dict.fromkeys(PARTS, 0.0)
    for _ in range(turns):
        for label in clocks:
            start = time.perf_counter()
            work[label]()
            whole[label] += time.perf_counter() - start
    found = {}
    for label, clock in clocks.items():
        spent = {**clock.seconds, "rest": whole[label] - sum(clock.seconds.values()), "step": whole[label]}
        found[label] = {name: round(1e3 * seconds / (turns * STEPS), 2) for name, seconds in spent.items()}
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure where the time of every size goes, print it, and write it to a file."""
    from sslfast.bench.machine import machine

    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m sslfast.bench.pretrain_step OUT.json", file=sys.stderr)
        return 2
    rows = []
    for size in SIZES:
        for label, spent in shares(size).items():
            rows.append({"size": list(size), "network": NETWORKS[size[2] - 1], "contender": label, "ms": spent})
            cells = "  ".join(
                f"{name} {value:.1f} ({100 * value / spent['step']:.0f} %)" for name, value in spent.items()
            )
            print(f"{NETWORKS[size[2] - 1]} {size[0]} x {size[1]}  {label}: {cells}", flush=True)
    with writing(Path(arguments[0])) as written:
        written.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    return 0


SCENARIO = Scenario(
    name="pretrain_step",
    title="whole SimCLR training steps, loading and views included, one step",
    axes=("images of a step", "side", f"network ({', '.join(f'{at}: {name}' for at, name in enumerate(NETWORKS, 1))})"),
    sizes=SIZES,
    contenders=contenders,
    unit="step",
    units=lambda size: STEPS,
    operations=operations,
    traffic=lambda size: 2 * 3 * size[0] * size[1] ** 2,
    typed="products",
)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
