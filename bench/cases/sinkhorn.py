"""Sinkhorn-Knopp of scores, (B, K) each."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast._reference import sinkhorn as reference
from sslfast.bench.cases._inputs import FULL_EPSILON, HALF_EPSILON, rows
from sslfast.testing import OpCase

DEPTH = 64


def cosines(count: int, prototypes: int, seed: int = 0) -> Tensor:
    """Draw samples and prototypes as unit vectors; return their products."""
    drawn = rows(count + prototypes, min(DEPTH, count + prototypes), seed=seed)
    unit = torch.nn.functional.normalize(drawn, dim=1)
    return (unit[:count] @ unit[count:].T).float().double()


def _lightly() -> Callable[..., Tensor]:
    from lightly.loss.swav_loss import sinkhorn as function

    def assignments(scores: Tensor, iterations: int = 3, epsilon: float = 0.05) -> Tensor:
        result: Tensor = function(scores, iterations, epsilon)
        return result

    return assignments


def solo_learn_module(name: str) -> Any:
    """Import one file of solo-learn; `import solo` itself needs packages that its losses do not."""
    from importlib.util import find_spec, module_from_spec, spec_from_file_location
    from pathlib import Path

    found = find_spec("solo")
    if found is None or not found.submodule_search_locations:
        raise ImportError("No module named 'solo'")
    file = Path(found.submodule_search_locations[0]) / f"{name}.py"
    spec = spec_from_file_location(f"solo_{file.stem}", file)
    if not file.exists() or spec is None or spec.loader is None:
        raise ImportError(f"{file} is missing")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _solo_learn() -> Callable[..., Tensor]:
    module = solo_learn_module("utils/sinkhorn_knopp")

    make = cache(module.SinkhornKnopp)  # a training makes it once

    def assignments(scores: Tensor, iterations: int = 3, epsilon: float = 0.05) -> Tensor:
        result: Tensor = make(iterations, epsilon)(scores)
        return result

    return assignments


@torch.no_grad()
def dinov2_form(scores: Tensor, iterations: int = 3, epsilon: float = 0.05) -> Tensor:
    """Centre a teacher's outputs as DINOv2's training does: sums of 1 / K per prototype, 1 / B per sample."""
    samples, prototypes = scores.shape
    mass = (scores.float() / epsilon).exp()
    mass = mass / mass.sum()
    for _ in range(iterations):
        mass = mass / (mass.sum(dim=0, keepdim=True) * prototypes)
        mass = mass / (mass.sum(dim=1, keepdim=True) * samples)
    return mass * samples


def _raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    scores = cosines(7, 5).to(device)
    potential = reference.sinkhorn_log_sums(scores, None, 0.05)
    valid = torch.tensor(4, device=device)
    return {
        "sinkhorn_fwd": [(scores, None, 3, 0.05), (scores.float(), valid, 0, 0.1)],
        "sinkhorn_log_sums": [(scores, None, 0.05), (scores.float(), valid, 0.05)],
        "sinkhorn_probability_sums": [(scores, potential, None, 0.05), (scores, potential, valid, 0.05)],
        "sinkhorn_assign": [(scores, potential, None, 0.05, True), (scores, potential, valid, 0.05, False)],
    }


CASE = OpCase(
    name="sinkhorn",
    operators=("sinkhorn_fwd", "sinkhorn_log_sums", "sinkhorn_probability_sums", "sinkhorn_assign"),
    function=sslfast.sinkhorn,
    reference=reference.sinkhorn,
    inputs=lambda size: (cosines(*size),),
    sizes=((1, 1), (1, 7), (5, 1), (3, 5), (17, 33), (65, 300), (130, 1025)),
    epsilon={**FULL_EPSILON, **HALF_EPSILON},
    options=({}, {"iterations": 0}, {"iterations": 1, "epsilon": 0.1}, {"iterations": 5}),
    raw=_raw,
    differentiable=False,
    second_order=False,
    bench_sizes=((64, 300), (256, 512), (2048, 3000), (1024, 65536)),
    sweep_sizes=tuple((512, 2**power) for power in range(10, 18)),
    peers={"lightly": _lightly, "solo-learn": _solo_learn, "DINOv2, restated": lambda: dinov2_form},
    # Per pass and score: scale, subtract, exponentiate (8), add; one pass per iteration and one for the result.
    operations=lambda size: (4 * 11.0 * size[0] * size[1], 0.0),
    traffic=lambda size: (5.0 * size[0] * size[1], 0.0),
)
