"""Training a bank of unlike heads: ours, and what people write instead. Times are per step and head."""

import random
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sslfast.bench.contenders import OURS
from sslfast.bench.turns import Contender, Part, Scenario, Turn
from sslfast.models.head import HeadSpec
from sslfast.search.bank import HeadBank, Optimizer, can_use_half

HEADS = 16
ROWS = 4096
MOMENTUM, DECAY = 0.9, 1e-4
Size = tuple[int, ...]
"""Features, classes, largest width, batch, and the distance of two widths."""
MAIN: tuple[Size, ...] = ((512, 10, 1024, 64, 64), (2048, 100, 1024, 64, 64), (128, 10, 256, 64, 64))
"""What the bars are about: every contender takes part."""
OTHERS: tuple[Size, ...] = (
    (512, 10, 1024, 16, 64),
    (512, 10, 1024, 50, 64),
    (512, 10, 1024, 256, 64),
    (512, 10, 1001, 64, 97),
)
"""Other batches, and widths that no vector divides."""
FOREACH, FUSED = "PyTorch, foreach", "PyTorch, fused"
PROCESSES, BY_HAND = "PyTorch, two processes", "torch.mm by hand"
LIGHTNING = "Optuna + Lightning"
HERE = "sslfast.bench.head_bank"


def specs(size: Size, heads: int = HEADS, seed: int = 0) -> list[HeadSpec]:
    """Draw heads of the paper's space: 1 to 3 layers, widths from 128 on, lr 1e-4 to 1e-1 (log), dropout 0.3 to 0.5."""
    draw = random.Random(seed)
    return [
        HeadSpec(
            tuple(draw.randrange(128, size[2] + 1, size[4]) for _ in range(draw.randint(1, 3))),
            draw.choice((0.3, 0.4, 0.5)),
            10 ** draw.uniform(-4, -1),
        )
        for _ in range(heads)
    ]


def steps(size: Size) -> int:
    """Count the steps of a turn."""
    return max(16, (128 if size[2] <= 256 else 32) * 64 // size[3])


def data(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Draw features, labels that depend on them, and the order of a turn's rows."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ROWS, size[0], generator=generator)
    teacher = torch.randn(size[0], size[1], generator=generator)
    labels = (features @ teacher + 2 * size[0] ** 0.5 * torch.randn(ROWS, size[1], generator=generator)).argmax(1)
    count = steps(size) * size[3]
    order = torch.cat([torch.randperm(ROWS, generator=generator) for _ in range(-(-count // ROWS))])
    return features, labels, order[:count]


def operations(size: Size) -> float:
    """Count the multiplications and additions of a step of the mean head: 6 B p, less the first layer's 2 B D h1."""
    total = 0
    for spec in specs(size):
        widths = [size[0], *spec.units, size[1]]
        weights = sum(a * b for a, b in pairwise(widths))
        total += 6 * size[3] * weights - 2 * size[3] * widths[0] * widths[1]
    return total / HEADS


def contenders(size: Size) -> Iterator[Contender]:
    """List who trains at a size."""

    def one(name: str, make: str, half: bool = False, **more: Any) -> Contender:
        variables = more.pop("variables", {})
        job = {"size": size, "half": half, **more}
        return Contender(name, "bfloat16" if half else "float32", (Part(f"{HERE}:{make}", job, 0, variables),))

    yield one(OURS, "bank")
    yield one(OURS, "bank", True)
    yield one(FOREACH, "plain")
    yield one(FUSED, "plain", fused=True)
    yield one(FUSED, "plain", True, fused=True)
    if size not in MAIN:
        return
    yield one(FOREACH, "plain", True)
    for half in (False, True):
        shares = _shares(size)
        parts = (Part(f"{HERE}:plain", {"size": size, "half": half, "fused": True, "heads": h}, 1) for h in shares)
        yield Contender(PROCESSES, "bfloat16" if half else "float32", tuple(parts))
        yield one(BY_HAND, "by_hand", half)
    yield one(LIGHTNING, "lightning")
    yield one(f"{LIGHTNING}, whole batches", "lightning", whole=True)
    for bits in (256, 128):
        yield one(f"{OURS}, {bits}-bit vectors", "bank", variables={"SSLFAST_CPU_VECTOR_BITS": str(bits)})


def _shares(size: Size) -> tuple[list[int], list[int]]:
    """Give each of two processes as much to do as the other: the costliest head to whoever has less."""
    cost = [sum(a * b for a, b in pairwise([size[0], *spec.units, size[1]])) for spec in specs(size)]
    shares: tuple[list[int], list[int]] = ([], [])
    for head in sorted(range(HEADS), key=lambda head: -cost[head]):
        min(shares, key=lambda share: sum(cost[one] for one in share)).append(head)
    return shares


def bank(size: Sequence[int], half: bool) -> Turn:
    """Train all heads with ``HeadBank``."""
    if half and not can_use_half():
        raise ImportError("this processor does not multiply bfloat16")
    heads, (features, labels, order) = specs(tuple(size)), data(tuple(size))
    found = HeadBank(heads, size[0], size[1], optimizers=Optimizer("sgd", MOMENTUM, weight_decay=DECAY), half=half)
    count = steps(tuple(size))
    rates = torch.tensor([[spec.learning_rate] * count for spec in heads], dtype=torch.float64)

    def turn() -> None:
        found.train(features, labels, order, rates, size[3])

    return turn


def network(spec: HeadSpec, features: int, classes: int) -> nn.Sequential:
    """Build a head as people write it."""
    layers: list[nn.Module] = []
    width = features
    for units in spec.units:
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(spec.dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))


def plain(size: Sequence[int], half: bool, fused: bool = False, heads: Sequence[int] = range(HEADS)) -> Turn:
    """Train heads one after another: autograd, autocast where ``half``, ``torch.optim.SGD``."""
    features, labels, order = data(tuple(size))
    every = specs(tuple(size))
    how = {"fused": True} if fused else {"foreach": True}
    trained = []
    for index in heads:
        torch.manual_seed(index)
        head = network(every[index], size[0], size[1])
        sgd = torch.optim.SGD(
            head.parameters(), every[index].learning_rate, MOMENTUM, weight_decay=DECAY, nesterov=True, **how
        )
        trained.append((head, sgd))

    def turn() -> None:
        for head, sgd in trained:
            for rows in order.split(size[3]):
                sgd.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = nn.functional.cross_entropy(head(features[rows]), labels[rows])
                loss.backward()
                sgd.step()

    return turn


def by_hand(size: Sequence[int], half: bool) -> Turn:
    """Train heads one after another without autograd: matrix products into memory that is kept, the fused SGD."""
    features, labels, order = data(tuple(size))
    trained = []
    for index, spec in enumerate(specs(tuple(size))):
        torch.manual_seed(index)
        parameters = [p.detach() for p in network(spec, size[0], size[1]).parameters()]
        momenta = [torch.zeros_like(parameter) for parameter in parameters]
        trained.append((spec, parameters, momenta))

    def cells(tensor: Tensor) -> Tensor:
        return tensor.bfloat16() if half else tensor

    @torch.no_grad()
    def step(spec: HeadSpec, parameters: list[Tensor], momenta: list[Tensor], rows: Tensor) -> None:
        inputs, kept = [cells(features[rows])], []
        weights = [cells(weight) for weight in parameters[::2]]
        for weight, bias in zip(weights[:-1], parameters[1:-2:2], strict=True):
            hidden = nn.functional.linear(inputs[-1], weight, cells(bias)).relu_()
            mask = torch.empty_like(hidden).bernoulli_(1 - spec.dropout).div_(1 - spec.dropout)
            kept.append(mask)
            inputs.append(hidden.mul_(mask))
        logits = nn.functional.linear(inputs[-1], weights[-1], cells(parameters[-1])).float()
        error = logits.softmax(1)
        error[torch.arange(len(rows)), labels[rows]] -= 1
        error = cells(error.div_(len(rows)))
        gradients: list[Tensor] = []
        for layer in range(len(weights) - 1, -1, -1):
            gradients[:0] = [torch.mm(error.t(), inputs[layer]).float(), error.sum(0).float()]
            if layer:
                error = torch.mm(error, weights[layer]).mul_(kept[layer - 1]).mul_(inputs[layer] > 0)
        torch._fused_sgd_(
            parameters, gradients, momenta, weight_decay=DECAY, momentum=MOMENTUM, lr=spec.learning_rate,
            dampening=0.0, nesterov=True, maximize=False, is_first_step=False,
        )  # fmt: skip

    def turn() -> None:
        for head in trained:
            for rows in order.split(size[3]):
                step(*head, rows)

    return turn


def lightning(size: Sequence[int], half: bool, whole: bool = False) -> Turn:
    """Train each head as a trial of Optuna with PyTorch Lightning: no logger, no bar, no checkpoints.

    Rows come from a ``DataLoader`` over a ``TensorDataset`` in this process, row by row as people write it, or
    ``whole`` batches. Only the fit loop counts, to the end of its last batch: Optuna, and making modules and trainers,
    are left out.
    """
    import logging
    import warnings

    import optuna
    import pytorch_lightning as pl

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    features, labels, order = data(tuple(size))
    every = specs(tuple(size))
    modules = [_module(pl, spec, size[0], size[1]) for spec in every]
    rows = torch.utils.data.TensorDataset(features, labels)
    if whole:
        batches = [part.tolist() for part in order.split(size[3])]
        read = torch.utils.data.DataLoader(rows, sampler=batches, batch_size=None)
    else:
        read = torch.utils.data.DataLoader(rows, sampler=order.tolist(), batch_size=size[3])

    class Clock(pl.Callback):  # type: ignore[misc]
        seconds = 0.0

        def on_train_epoch_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            self.end = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            self.seconds += self.end - self.start

    def turn() -> float:
        clock = Clock()

        def objective(trial: optuna.Trial) -> float:
            trainer = pl.Trainer(
                max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                enable_checkpointing=False, enable_model_summary=False, callbacks=[clock],
            )  # fmt: skip
            trainer.fit(modules[trial.suggest_int("head", 0, HEADS - 1)], read)
            return 0.0

        study = optuna.create_study()
        for index in range(HEADS):
            study.enqueue_trial({"head": index})
        study.optimize(objective, HEADS)
        return clock.seconds

    return turn


def _module(pl: Any, spec: HeadSpec, features: int, classes: int) -> Any:
    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.head = network(spec, features, classes)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.head(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(
                self.parameters(), spec.learning_rate, MOMENTUM, weight_decay=DECAY, nesterov=True, foreach=True
            )

    return Module()


def _list(size: Size) -> Sequence[Contender]:
    return list(contenders(size))


SCENARIO = Scenario(
    name="head_bank",
    title=f"{HEADS} unlike heads of the paper's space, one SGD step of one head",
    axes=("features", "classes", "largest width", "batch", "distance of widths"),
    sizes=(*MAIN, *OTHERS),
    contenders=_list,
    unit="step",
    units=lambda size: HEADS * steps(size),
    operations=operations,
    traffic=lambda size: size[0] * size[3] / HEADS,
)
