"""What is claimed of the head bank besides its speed: agreement, bfloat16's accuracy, cost in proportion.

``python -m sslfast.bench.head_bank_study agreement|half|cost OUT.json ...``; every part writes one JSON file. ``cost``
draws a PNG beside it.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslfast._reference import head_bank as reference
from sslfast.bench.contenders import OURS
from sslfast.bench.head_bank import DECAY, MAIN, MOMENTUM, specs
from sslfast.bench.machine import machine
from sslfast.features import FeatureStore
from sslfast.files import writing
from sslfast.models.head import HeadSpec
from sslfast.search.bank import HeadBank, Optimizer, can_use_half, first_weights, stream
from sslfast.search.sources import standardised
from sslfast.search.train import Recipe, train_heads

SGD = Optimizer("sgd", MOMENTUM, weight_decay=DECAY)
Spread = dict[str, float]


def plain_weights(
    spec: HeadSpec, number: int, rows: tuple[Tensor, Tensor, Tensor], rates: Tensor, batch: int, marks: Sequence[int]
) -> list[list[Tensor]]:
    """Train a head in plain PyTorch (autograd, ``torch.optim.SGD``), the bank's noise; give its weights at marks."""
    features, labels, order = rows
    widths = [features.shape[1], *spec.units, int(labels.max()) + 1]
    drawn = first_weights(widths, torch.Generator().manual_seed(stream(0, 2, number)))
    weights = [weight.to(features.dtype).requires_grad_() for weight in drawn]
    sgd = torch.optim.SGD(weights, 1.0, MOMENTUM, weight_decay=DECAY, nesterov=True)
    dropped, key = round(spec.dropout * 65536), stream(0, 3, number)
    found = []
    for step, part in enumerate(order.split(batch)):
        hidden = features[part]
        for layer in range(len(spec.units)):
            hidden = torch.nn.functional.linear(hidden, weights[2 * layer], weights[2 * layer + 1]).relu()
            bits = reference.noise(key, step, layer, *hidden.shape)
            hidden = hidden * ((bits >= dropped).to(hidden.dtype) * (65536 / (65536 - dropped)))
        loss = torch.nn.functional.cross_entropy(
            torch.nn.functional.linear(hidden, weights[-2], weights[-1]), labels[part]
        )
        sgd.zero_grad()
        loss.backward()
        sgd.param_groups[0]["lr"] = float(rates[step])
        sgd.step()
        if step + 1 in marks:
            found.append([weight.detach().clone() for weight in weights])
    return found


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Give the length of the difference of two heads' weights and biases, relative to the other's."""
    ours, theirs = (torch.cat([weight.double().flatten() for weight in weights]) for weights in (one, other))
    return float((ours - theirs).norm() / theirs.norm())


def entry_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Give the largest difference of two heads' entries, of each tensor relative to its largest entry."""
    pairs = zip(one, other, strict=True)
    return max(float((a.double() - b.double()).abs().max() / b.double().abs().max()) for a, b in pairs)


def agreement(
    width: int = 512, classes: int = 10, largest: int = 1024, heads: int = 144, batch: int = 64, seed: int = 1
) -> list[dict[str, float]]:
    """Give for each head how far it is from plain float32 after 10 and 50 steps, and both from plain float64 after 50.

    Args:
        width: of the features.
        classes: their number.
        largest: width of a layer.
        heads: drawn from the paper's space.
        batch: rows of a step.
        seed: of the draw.
    """
    marks = (10, 50)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(marks[-1] * batch, width, generator=generator)
    labels = torch.randint(classes, (len(features),), generator=generator)
    labels[0] = classes - 1
    order = torch.randperm(len(features), generator=generator)
    drawn = specs((width, classes, largest, batch, 64), heads, seed)
    rates = torch.tensor([[spec.learning_rate] * marks[-1] for spec in drawn], dtype=torch.float64)
    bank = HeadBank(drawn, width, classes, optimizers=SGD)
    ours: list[list[list[Tensor]]] = []
    for begin, end in zip((0, *marks), marks, strict=False):
        bank.train(features, labels, order[begin * batch : end * batch], rates[:, begin:end], batch)
        ours.append([bank.weights(index) for index in range(heads)])
    found = []
    for index, spec in enumerate(drawn):
        single = plain_weights(spec, index, (features, labels, order), rates[index], batch, marks)
        double = plain_weights(spec, index, (features.double(), labels, order), rates[index], batch, marks)
        found.append(
            {
                "steps_10": distance(ours[0][index], single[0]),
                "steps_50": distance(ours[1][index], single[1]),
                "ours_from_float64": distance(ours[1][index], double[1]),
                "plain_from_float64": distance(single[1], double[1]),
                "entry_10": entry_distance(ours[0][index], single[0]),
                "entry_50": entry_distance(ours[1][index], single[1]),
                "entry_ours_from_float64": entry_distance(ours[1][index], double[1]),
                "entry_plain_from_float64": entry_distance(single[1], double[1]),
            }
        )
    return found


def half(store: Path, heads: int = 48, epochs: int = 10, held_out: int = 6000, seeds: Sequence[int] = (0,)) -> Any:
    """Train heads of the paper's space on a store's features with float32 and with bfloat16 products.

    Args:
        store: a feature store with labels.
        heads: drawn from the paper's space.
        epochs: of the paper's recipe, the learning rate falling along a cosine.
        held_out: rows for validation.
        seeds: of heads, weights, dropout and order.
    """
    opened = FeatureStore.open(store)
    features, labels = opened.load(), opened.labels
    assert labels is not None
    picked = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    val, train = picked[:held_out], picked[held_out:]
    classes = int(labels.max()) + 1
    rows = standardised((features[train], labels[train]), (features[val], labels[val]), classes)
    pairs, diverged = [], []
    for seed in seeds:
        drawn = specs((features.shape[1], classes, 1024, 64, 64), heads, seed + 100)
        jobs = list(enumerate(drawn))
        full, bf16 = (
            train_heads(jobs, rows, Recipe(epochs=epochs, dtype=dtype, seed=seed)) for dtype in ("float32", "bfloat16")
        )
        other = train_heads([(heads + n, spec) for n, spec in jobs], rows, Recipe(epochs=epochs, seed=seed))
        for number, spec in jobs:
            each = {"float32": full[number], "bfloat16": bf16[number], "other_float32": other[heads + number]}
            ended = [name for name, head in each.items() if len(head.accuracies) < epochs]
            if ended:  # a logit that is not finite ends a head, in any type
                diverged.append({"head": spec.describe(), "in": ended})
                continue
            pairs.append(
                {
                    "head": spec.describe(),
                    "float32": full[number].accuracies[-1],
                    "bfloat16": bf16[number].accuracies[-1],
                    "other_float32": other[heads + number].accuracies[-1],
                    "float32_best": full[number].value,
                    "bfloat16_best": bf16[number].value,
                }
            )

    def gap(one: str, other: str) -> Spread:
        points = [100 * (pair[one] - pair[other]) for pair in pairs]
        return {
            "mean_points": statistics.mean(points),
            "standard_error": statistics.stdev(points) / math.sqrt(len(points)),
            "standard_deviation": statistics.stdev(points),
            "largest": max(map(abs, points)),
        }

    return {
        "features": list(features.shape),
        "held_out": held_out,
        "epochs": epochs,
        "heads": len(pairs),
        "bfloat16_less_float32": gap("bfloat16", "float32"),
        "bfloat16_less_float32_best_epoch": gap("bfloat16_best", "float32_best"),
        "float32_of_other_weights_and_noise": gap("other_float32", "float32"),
        "diverged": diverged,
        "pairs": pairs,
    }


def cost(rows: int = 10_000_000) -> dict[str, list[dict[str, float]]]:
    """Time the bank over the number of heads, the features' width and the number of rows, in both products.

    Rows stand for a store that is larger than memory: those of a small one come again and again.
    """
    sweeps: dict[str, list[dict[str, float]]] = {"heads": [], "features": [], "rows": []}
    for heads in (2**power for power in range(9)):
        sweeps["heads"].append({"at": heads, **_seconds(heads, 512, 2048)})
    for width in (2**power for power in range(7, 14)):
        sweeps["features"].append({"at": width, **_seconds(16, width, 2048)})
    count = 1000
    while count <= rows:
        sweeps["rows"].append({"at": count, **_seconds(4, 128, count, largest=256)})
        count *= 10
    return sweeps


def _seconds(heads: int, width: int, rows: int, largest: int = 1024) -> Spread:
    generator = torch.Generator().manual_seed(0)
    held = min(rows, 4096)
    features = torch.randn(held, width, generator=generator)
    labels = torch.randint(10, (held,), generator=generator)
    # As many heads of every kind, however many there are: the first 16 of the benchmark, over and over.
    kinds = specs((width, 10, largest, 64, 64))
    drawn = [kinds[index % len(kinds)] for index in range(heads)]
    if heads < len(kinds):
        drawn = sorted(kinds, key=lambda spec: sum(spec.units))[len(kinds) // 2 :][:1] * heads
    order = torch.arange(rows) % held
    rates = torch.full((heads, -(-rows // 64)), 1e-3, dtype=torch.float64)
    found = {}
    for dtype in ("float32", "bfloat16") if can_use_half() else ("float32",):
        bank = HeadBank(drawn, width, 10, half=dtype == "bfloat16")
        bank.train(features, labels, order[:1000], rates[:, :16], 64)
        taken: list[float] = []
        while len(taken) < 5 and (len(taken) < 1 or sum(taken) < 4):
            start = time.perf_counter()
            bank.train(features, labels, order, rates, 64)
            taken.append(time.perf_counter() - start)
        found[dtype] = statistics.median(taken)
    return found


def draw(sweeps: dict[str, list[dict[str, float]]], source: str, path: Path) -> None:
    """Draw the three sweeps of :func:`cost` with a straight line through each one's largest point."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sslfast.bench.plots import COLOURS, GREY, OTHER_COLOURS

    titles = {
        "heads": "heads (512 features, 2,048 rows)",
        "features": "features (16 heads, 2,048 rows)",
        "rows": "rows (4 heads of up to 256 units, 128 features)",
    }
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "font.family": "sans-serif"}
    with rc_context(style):
        figure = Figure(figsize=(12.0, 4.2))
        figure.subplots_adjust(left=0.06, right=0.98, top=0.83, bottom=0.2, wspace=0.24)
        for index, (name, points) in enumerate(sweeps.items(), start=1):
            axes = figure.add_subplot(1, 3, index)
            x = [point["at"] for point in points]
            for dtype, colour, marker in (("float32", COLOURS[OURS], "o"), ("bfloat16", OTHER_COLOURS[0], "s")):
                y = [point[dtype] for point in points if dtype in point]
                if not y:
                    continue
                axes.plot(x, y, marker=marker, color=colour, markersize=5, label=f"{dtype} products")
                straight = [y[-1] * one / x[-1] for one in x]
                axes.plot(x, straight, linestyle=(0, (2, 3)), color=GREY, zorder=1)
            axes.set_xscale("log", base=10 if name == "rows" else 2)
            axes.set_yscale("log")
            axes.set_xticks(x)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.tick_params(axis="x", labelrotation=30 if name == "rows" else 0, which="major")
            axes.tick_params(axis="x", which="minor", bottom=False)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            axes.grid(which="major", color="#ededed")
            axes.set_axisbelow(True)
            axes.set_xlabel(titles[name])
            if index == 1:
                axes.set_title("Seconds of an epoch", loc="left", fontsize=10)
                axes.legend(frameon=False)
        figure.suptitle(
            "HeadBank: cost over heads, features and rows; dotted: in proportion", x=0.02, ha="left", fontsize=12
        )
        figure.text(0.01, 0.01, source, fontsize=6.5, color=GREY, va="bottom")
        canvas = FigureCanvasAgg(figure)
        with writing(path) as partial:
            canvas.figure.savefig(partial, dpi=160, format="png")


def _agreement(heads: int = 48) -> dict[str, Any]:
    """Measure as many heads at each of the benchmark's three sizes, and put them together."""
    shapes = {f"{one[0]} features, {one[1]} classes, up to {one[2]} units": one[:3] for one in MAIN}
    found = {name: agreement(*shape, heads=heads) for name, shape in shapes.items()}
    together = [head for some in found.values() for head in some]
    return {"all": agreed(together), **{name: agreed(some) for name, some in found.items()}}


def agreed(heads: Sequence[dict[str, float]], bound: float = 1e-4) -> dict[str, Any]:
    """Sum up how many heads are within a bound of plain float32, and how many of both are of float64.

    Plain float32 leaves float64 by chance as well, whenever a ReLU of one row falls on the other side: what it does
    to itself is what may be asked of anybody.
    """
    late = [head for head in heads if head["steps_50"] > bound]
    names = {
        "within_bound_after_10_steps": "steps_10",
        "within_bound_after_50_steps": "steps_50",
        "ours_within_bound_of_float64_after_50_steps": "ours_from_float64",
        "plain_within_bound_of_float64_after_50_steps": "plain_from_float64",
        "every_entry_within_bound_after_10_steps": "entry_10",
        "every_entry_within_bound_after_50_steps": "entry_50",
        "every_entry_of_ours_within_bound_of_float64_after_50_steps": "entry_ours_from_float64",
        "every_entry_of_plain_within_bound_of_float64_after_50_steps": "entry_plain_from_float64",
    }
    return {
        "bound": bound,
        "heads": len(heads),
        "largest_after_10_steps": max(head["steps_10"] for head in heads),
        **{name: sum(head[key] <= bound for head in heads) for name, key in names.items()},
        "others_further_from_float64_than_plain": sum(
            head["ours_from_float64"] > head["plain_from_float64"] for head in late
        ),
        "median_from_float64_after_50_steps": {
            who: statistics.median(head[f"{who}_from_float64"] for head in heads) for who in ("ours", "plain")
        },
        "others": late,
    }


PARTS: dict[str, Callable[..., Any]] = {
    "agreement": lambda *numbers: _agreement(*map(int, numbers)),
    "half": lambda store, *numbers: half(Path(store), *map(int, numbers)),
    "cost": lambda *numbers: cost(*map(int, numbers)),
}


def main(words: Sequence[str]) -> int:
    """Do one part."""
    if len(words) < 2 or words[0] not in PARTS:
        print(f"usage: python -m sslfast.bench.head_bank_study {'|'.join(PARTS)} OUT.json ...", file=sys.stderr)
        return 2
    part, out = words[0], Path(words[1])
    begin = time.monotonic()
    found = PARTS[part](*words[2:])
    what = {"machine": machine(), "seconds": round(time.monotonic() - begin, 1), part: found}
    with writing(out) as partial:
        partial.write_text(json.dumps(what, indent=1) + "\n")
    if part == "cost":
        source = f"{what['machine']['processor']}, {what['machine']['threads']} threads, torch {torch.__version__}"
        draw(found, source, out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
