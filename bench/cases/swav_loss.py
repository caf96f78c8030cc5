"""The SwAV loss; a size is (B, K, high-resolution views, low-resolution views, rows of the queue)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast._reference import swav_loss as reference
from sslfast._reference.sinkhorn import sinkhorn
from sslfast.bench.cases._inputs import FULL_EPSILON, HALF_EPSILON
from sslfast.bench.cases.sinkhorn import cosines, solo_learn_module
from sslfast.testing import OpCase


def _inputs(size: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Draw the views' scores, each half of what all views share; then one queue per high-resolution view."""
    rows, prototypes, high, low, queue = size
    shared = cosines(rows, prototypes)
    views = [(shared + cosines(rows, prototypes, seed=1 + v)) / 2 for v in range(high + low)]
    return *views, *(cosines(queue, prototypes, seed=100 + i) for i in range(high if queue else 0))


def of_tensors(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a loss of lists one of separate tensors, which tell by their shapes what they are.

    The views have the first tensor's number of rows, the queues another. There are as many high-resolution views as
    queues, and two where there is none.
    """

    def loss(*tensors: Tensor, **options: Any) -> Tensor:
        views = [one for one in tensors if one.shape[0] == tensors[0].shape[0]]
        queue = list(tensors[len(views) :])
        high = len(queue) or 2
        result = function(views[:high], views[high:], queue or None, **options)
        for one in queue:  # no gradient: for the gates, one of zeros
            result = result + one.sum() * 0
        return result

    return loss


def _frozen(*tensors: Tensor, **options: Any) -> Tensor:
    """Return the loss whose codes stay those of the drawn inputs, with the gradient of ``sslfast.swav_loss``."""
    rows, prototypes = tensors[0].shape
    views = [one for one in tensors if one.shape[0] == rows]
    queue = tensors[len(views) :]
    high = len(queue) or 2
    drawn = _inputs((rows, prototypes, high, len(views) - high, len(queue[0]) if queue else 0))
    iterations, epsilon = options.get("iterations", 3), options.get("epsilon", 0.05)
    value = views[0].new_zeros(())
    for i in range(high):
        parts = [drawn[i], drawn[len(views) + i]] if queue else [drawn[i]]
        codes = sinkhorn(torch.cat(parts), iterations, epsilon)[:rows]
        for v, view in enumerate(views):
            if v != i:
                logarithms = torch.log_softmax(view.detach() / options.get("temperature", 0.1), dim=1)
                value = value - (codes * logarithms).sum() / (rows * high * (len(views) - 1))
    ours = of_tensors(sslfast.swav_loss)(*tensors, **options)
    return ours - ours.detach() + value


def _lightly() -> Callable[..., Tensor]:
    from lightly.loss import SwaVLoss

    criterion = SwaVLoss()  # a training makes it once

    def loss(high: list[Tensor], low: list[Tensor], queue: list[Tensor] | None = None) -> Tensor:
        result: Tensor = criterion(high, low, queue)
        return result[0]

    return of_tensors(loss)


def _solo_learn() -> Callable[..., Tensor]:
    module = solo_learn_module("utils/sinkhorn_knopp")
    function = solo_learn_module("losses/swav").swav_loss_func
    assign = module.SinkhornKnopp(3, 0.05)

    def loss(high: list[Tensor], low: list[Tensor], queue: list[Tensor] | None = None) -> Tensor:
        if low or queue:
            raise NotImplementedError("solo-learn assigns every view that it predicts")
        result: Tensor = function(high, [assign(view) for view in high], temperature=0.1)
        return result

    return of_tensors(loss)


def _raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    *views, first_queue, second_queue = (one.to(device) for one in _inputs((6, 5, 2, 1, 4)))
    high, low = views[:2], views[2:]
    leaves = [view.clone().requires_grad_() for view in views]
    potential = reference.swav_potentials(high, [], 3, 0.05)
    level = reference.swav_potentials(high, [], 0, 0.05)
    _, lse, code_lse = reference.swav_loss_fwd(high, low, potential, True, 0.1, 0.05)
    grad = torch.tensor(1.5, dtype=lse.dtype, device=device)
    rest = (potential, lse, code_lse, True, 0.1, 0.05)
    return {
        "swav_potentials": [(high, [], 3, 0.05), (high, [first_queue, second_queue], 0, 0.05)],
        "swav_loss_fwd": [
            (high, low, potential, True, 0.1, 0.05),
            (leaves[:2], leaves[2:], level, False, 0.1, 0.05),
            ([view.float() for view in high], [], potential.float(), True, 0.2, 0.05),
        ],
        "swav_loss_bwd": [
            (grad, high, low, *rest),
            (grad.clone().requires_grad_(), leaves[:2], leaves[2:], *rest),
        ],
    }


def _exponentials(size: tuple[int, ...]) -> tuple[float, float]:
    """Count exponentials: each iteration one per score of a high-resolution view; each pass one per view and code."""
    rows, prototypes, high, low, queue = size
    last = rows * prototypes * (2.0 * high + low)
    return 3.0 * (rows + queue) * prototypes * high + last, last


CASE = OpCase(
    name="swav_loss",
    operators=("swav_potentials", "swav_loss_fwd", "swav_loss_bwd"),
    function=of_tensors(sslfast.swav_loss),
    reference=of_tensors(reference.swav_loss),
    inputs=_inputs,
    sizes=((1, 3, 2, 0, 0), (3, 4, 2, 1, 0), (2, 3, 2, 0, 3), (7, 33, 2, 3, 0), (5, 20, 3, 0, 9), (33, 300, 2, 2, 40)),
    epsilon={**FULL_EPSILON, **HALF_EPSILON},
    options=({}, {"iterations": 0, "temperature": 0.5}, {"iterations": 1, "epsilon": 0.1}),
    # A gradient is a mean over rows and pairs of differences of probabilities, over the temperature.
    scale=lambda size, options: 1 / (size[0] * options.get("temperature", 0.1)),
    raw=_raw,
    frozen=_frozen,
    second_order=False,  # the codes stay constant there, too: no finite difference shows that
    bench_sizes=((64, 300, 2, 6, 0), (256, 512, 2, 6, 0), (256, 3000, 2, 0, 0), (256, 3000, 2, 6, 0)),
    peers={"lightly": _lightly, "solo-learn": _solo_learn},
    # Per exponential: scale, subtract, exponentiate (8), add.
    operations=lambda size: (11 * _exponentials(size)[0], 11 * _exponentials(size)[1]),
    traffic=lambda size: (
        1.0 * size[0] * size[1] * (3 * size[2] + size[2] + size[3]),
        2.0 * size[0] * size[1] * (size[2] + size[3]),
    ),
)
