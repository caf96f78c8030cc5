"""The head search on a GPU: time of a bank's step and its capture, of all training, and of the paper's whole search.

``python -m sslfast.bench.head_bank_gpu OUT.json``: on 50,000 rows of 2,048 synthetic features, a tenth of them held
out. ``make gpu`` runs it.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslfast._reference import head_bank as reference
from sslfast.bench.head_bank import DECAY, MOMENTUM, specs
from sslfast.bench.machine import machine
from sslfast.files import writing
from sslfast.search.bank import HeadBank, Optimizer

BATCH, CLASSES = 64, 100
PLAIN_STEPS = 10
TRAINING = ("sslfast._store", "safetensors", "rich", "PIL")
SEARCH = (*TRAINING, "optuna", "sklearn", "plotly")
"""What a part needs besides PyTorch and numpy; without it that part is left out."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        device: where.
        rows: of features.
        features: of a row.
        units: the largest width of a layer, where steps are timed.
        heads: of the banks whose steps are timed.
        epochs: of a search.
        trials: of a search.
        parallel: trials of a batch; every one of these is a search.
        dtypes: of the products.
        repeats: calls that are timed.
    """

    device: str = "cuda"
    rows: int = 50_000
    features: int = 2048
    units: int = 1024
    heads: tuple[int, ...] = (1, 10, 50)
    epochs: int = 30
    trials: int = 50
    parallel: tuple[int, ...] = (10, 50)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    repeats: int = 3


def data(plan: Plan) -> tuple[Tensor, Tensor]:
    """Draw clusters that overlap: some heads come further than others."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (plan.rows,), generator=generator)
    centres = torch.randn(CLASSES, plan.features, generator=generator)
    noise = torch.randn(plan.rows, plan.features, generator=generator)
    return centres[labels] + 0.3 * plan.features**0.5 * noise, labels


def time_steps(plan: Plan) -> list[dict[str, Any]]:
    """Time an epoch of each bank: the first call, which captures, the others, and plain PyTorch."""
    features, labels = (one.to(plan.device) for one in data(plan))
    order = torch.randperm(plan.rows, generator=torch.Generator().manual_seed(1)).to(plan.device)
    found = []
    for heads in plan.heads:
        for dtype in plan.dtypes:
            found.append(_time_bank(plan, heads, dtype, features, labels, order))
            print(json.dumps(found[-1]), flush=True)
    return found


def _time_bank(plan: Plan, heads: int, dtype: str, features: Tensor, labels: Tensor, order: Tensor) -> dict[str, Any]:
    drawn = specs((plan.features, CLASSES, plan.units, BATCH, 64), heads)
    bank = HeadBank(
        drawn,
        plan.features,
        CLASSES,
        optimizers=Optimizer("sgd", MOMENTUM, weight_decay=DECAY),
        half=dtype == "bfloat16",
        device=plan.device,
    )
    steps = -(-plan.rows // BATCH)
    rates = torch.tensor([[spec.learning_rate] * steps for spec in drawn], dtype=torch.float64)
    calls = range(1 + plan.repeats)
    # Either ends when the losses are in the host's memory.
    seconds = [_timed(lambda: bank.train(features, labels, order, rates, BATCH)) for _ in calls]
    plain = [_timed(lambda: _by_definition(bank, features, labels, order)) for _ in calls]
    median = statistics.median(seconds[1:])
    return {
        "heads": heads,
        "dtype": dtype,
        "steps": steps,
        "first_call_seconds": seconds[0],
        "microseconds_per_step": 1e6 * median / steps,
        "spread": (max(seconds[1:]) - min(seconds[1:])) / median,
        "plain_pytorch_microseconds_per_step": 1e6 * statistics.median(plain[1:]) / PLAIN_STEPS,
    }


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _by_definition(bank: HeadBank, features: Tensor, labels: Tensor, order: Tensor) -> None:
    """Train copies of a bank's heads for some steps in plain PyTorch, head by head."""
    places = [bank._places[index] for index in bank.running]
    numbers = torch.tensor([place.optimizer.numbers() for place in places], dtype=torch.float64)
    rates = torch.full((len(places), PLAIN_STEPS), 1e-3, dtype=torch.float64)
    states = [place.state.clone() for place in places if place.state is not None]
    order = order[: PLAIN_STEPS * BATCH]
    reference.head_bank_train(features, labels, order, bank._table(places), numbers, rates, states, BATCH, bank.half)


def time_training(plan: Plan) -> list[dict[str, Any]]:
    """Time the training and the validation of a search's heads, drawn at random, in banks of each size."""
    from sslfast.search.sources import standardised
    from sslfast.search.train import Recipe, train_heads

    rows = standardised(*_divided(plan), CLASSES).to(plan.device)
    drawn = list(enumerate(specs((plan.features, CLASSES, plan.units, BATCH, 64), plan.trials)))
    found = []
    for parallel in plan.parallel:
        for dtype in plan.dtypes:
            recipe = Recipe(plan.epochs, BATCH, MOMENTUM, DECAY, dtype)
            begin = time.perf_counter()
            values = [
                trained.value
                for first in range(0, plan.trials, parallel)
                for trained in train_heads(drawn[first : first + parallel], rows, recipe).values()
            ]
            seconds = time.perf_counter() - begin
            row = {"heads": plan.trials, "parallel": parallel, "dtype": dtype, "epochs": plan.epochs}
            found.append({**row, "seconds": seconds, "best": max(values)})
            print(json.dumps(found[-1]), flush=True)
    return found


def time_search(plan: Plan) -> list[dict[str, Any]]:
    """Time the whole search, from features in the host's memory to the winner's file."""
    from sslfast.search import search_heads

    train, val = _divided(plan)
    found = []
    for parallel in plan.parallel:
        for dtype in plan.dtypes:
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                result = search_heads(
                    train,
                    val,
                    out=Path(folder) / "search",
                    trials=plan.trials,
                    epochs=plan.epochs,
                    batch_size=BATCH,
                    parallel=parallel,
                    device=plan.device,
                    dtype=dtype,
                )
                seconds = time.perf_counter() - begin
            row = {"trials": plan.trials, "parallel": parallel, "dtype": dtype, "epochs": plan.epochs}
            found.append({**row, "seconds": seconds, "best": result.best.value})
            print(json.dumps(found[-1]), flush=True)
    return found


def _divided(plan: Plan) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    features, labels = data(plan)
    held_out = plan.rows // 10
    return (features[held_out:], labels[held_out:]), (features[:held_out], labels[:held_out])


def main(words: Sequence[str], plan: Plan = Plan()) -> int:  # noqa: B008  (frozen)
    """Measure everything and write it."""
    if len(words) != 1:
        print("usage: python -m sslfast.bench.head_bank_gpu OUT.json", file=sys.stderr)
        return 2
    what: dict[str, Any] = {"machine": machine(), "rows": plan.rows, "features": plan.features}
    what["steps"] = time_steps(plan)
    for name, work, needs in (("training", time_training, TRAINING), ("search", time_search, SEARCH)):
        missing = [one for one in needs if find_spec(one) is None]
        what[name] = f"not measured; there is no {', no '.join(missing)}" if missing else work(plan)
    with writing(Path(words[0])) as partial:
        partial.write_text(json.dumps(what, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
