"""The Self-Classifier loss of global and local views; a size is (B, K, global views, local views)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast._reference import self_classifier as reference
from sslfast.bench.cases._inputs import FULL_EPSILON, HALF_EPSILON, rows
from sslfast.testing import OpCase


def _flat(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Take the views one by one; a second head has the first half of their classes."""

    def loss(*views: Tensor, heads: int = 1, **options: Any) -> Tensor:
        if heads == 1:
            return function(list(views), **options)
        half = (views[0].shape[1] + 1) // 2
        return function([list(views), [view[:, :half] for view in views]], **options)

    return loss


def _views(size: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Draw views that show the same images: half of each logit is common to all of them."""
    count, classes, global_views, local_views = size
    common = rows(count, classes)
    return tuple(0.5 * common + 0.5 * rows(count, classes, seed=1 + v) for v in range(global_views + local_views))


def _raw(device: str) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    views = [view.to(device) for view in _views((5, 4, 2, 1))]
    leaves = [view.clone().requires_grad_() for view in views]
    options = (0.1, 0.05, 2, 1e-8, 5)
    _, columns, of_rows = reference.self_classifier_fwd(views, *options[:4])
    grad = torch.tensor(1.5, dtype=views[0].dtype, device=device)
    return {
        "self_classifier_fwd": [(x, *options[:4]) for x in (views, leaves, [view.bfloat16() for view in views])],
        "self_classifier_columns": [(views, 0.1, 0.05), (leaves, 0.1, 0.05)],
        "self_classifier_terms": [(x, columns[:3], of_rows[:2], *options) for x in (views, leaves)],
        "self_classifier_bwd": [
            (grad, views, columns, of_rows, *options),
            (grad.clone().requires_grad_(), leaves, columns, of_rows, *options),
        ],
    }


def _numbers(size: tuple[int, ...]) -> float:
    return float(size[0] * size[1] * (size[2] + size[3]))


CASE = OpCase(
    name="self_classifier",
    operators=("self_classifier_fwd", "self_classifier_columns", "self_classifier_terms", "self_classifier_bwd"),
    function=_flat(sslfast.self_classifier),
    reference=_flat(reference.self_classifier),
    inputs=_views,
    sizes=((1, 1, 2, 0), (5, 3, 2, 1), (17, 33, 2, 2), (3, 2, 2, 1), (1, 40, 2, 0), (37, 1, 3, 0), (70, 130, 2, 6)),
    epsilon={**FULL_EPSILON, **HALF_EPSILON},
    options=({}, {"heads": 2}, {"global_views": 1, "row_temperature": 0.2, "column_temperature": 0.3, "eps": 1e-5}),
    # A gradient is a mean over rows and views of differences of logarithms, the largest |log eps|, over a temperature.
    scale=lambda size, options: 18 / (size[0] * (size[2] + size[3]) * options.get("column_temperature", 0.05)),
    raw=_raw,
    bench_sizes=((64, 100, 2, 0), (512, 1000, 2, 0), (512, 1000, 2, 6), (1024, 4000, 2, 2)),
    # Per number 2 exponentials (12 operations each) in each of three passes, a logarithm (20), a division and about 16
    # multiplications and additions in two of them.
    operations=lambda size: (85 * _numbers(size), 61 * _numbers(size)),
    # Three reads, one write.
    traffic=lambda size: (2 * _numbers(size), 2 * _numbers(size)),
)
