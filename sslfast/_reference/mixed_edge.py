"""The mixed-operation edge of DARTS, PC-DARTS and P-DARTS, in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sslfast._reference.primitives import PRIMITIVES

NONE, MAX_POOL, AVERAGE_POOL, SKIP = range(4)
KERNELS = {4: 3, 5: 5, 6: 3, 7: 5}
"""Sizes of the depthwise kernels, by place."""
SEPARABLE = (4, 5)
LANES = 64
"""Bytes that the images of a group take side by side in ``saved`` (csrc/mixed_edge)."""


def weight_shapes(primitives: Sequence[int], channels: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Return the shapes of the convolutions' weights, in the order in which the edge takes them."""
    shapes = []
    for one in primitives:
        if one == SKIP and stride == 2:
            shapes += [(channels // 2, channels, 1, 1)] * 2
        elif one in KERNELS:
            pair = [(channels, 1, KERNELS[one], KERNELS[one]), (channels, channels, 1, 1)]
            shapes += pair * (2 if one in SEPARABLE else 1)
    return shapes


def norm_count(primitives: Sequence[int], stride: int) -> int:
    """Return how many batch normalisations the edge holds."""
    per_skip = 1 if stride == 2 else 0
    counts = {NONE: 0, MAX_POOL: 1, AVERAGE_POOL: 1, SKIP: per_skip, 4: 2, 5: 2, 6: 1, 7: 1}
    return sum(counts[one] for one in primitives)


def mixed_edge(
    x: Tensor,
    alpha: Tensor,
    weights: Sequence[Tensor],
    running: Sequence[Tensor] | None,
    *,
    stride: int,
    k: int = 4,
    primitives: Sequence[str] = PRIMITIVES,
    training: bool,
    skip_dropout: float = 0.0,
    eps: float = 1e-5,
    momentum: float = 0.1,
    skip_mask: Tensor | None = None,
) -> Tensor:
    """Return the edge's output; with ``running`` and ``training`` the running statistics are updated in place."""
    codes = [PRIMITIVES.index(name) for name in primitives]
    part = x[:, : x.shape[1] // k]
    if skip_mask is None and skip_dropout > 0 and training and stride == 1 and SKIP in codes:
        skip_mask = functional.dropout(torch.ones_like(part), skip_dropout, training=True)
    total = mixture(
        part,
        alpha,
        weights,
        running,
        codes,
        stride=stride,
        batch=training or running is None,
        eps=eps,
        momentum=momentum if training else 0.0,
        skip_mask=skip_mask if training else None,
    )
    return _shuffled(total, x, stride, k)


def _shuffled(total: Tensor, x: Tensor, stride: int, k: int) -> Tensor:
    """Put the channels that pass by, halved for stride 2, between those of ``total``."""
    if k == 1:
        return total
    rest = x[:, total.shape[1] :]
    rest = functional.max_pool2d(rest, 2, 2) if stride == 2 else rest
    return functional.channel_shuffle(torch.cat([total, rest], dim=1), k)


def mixture(
    part: Tensor,
    alpha: Tensor,
    weights: Sequence[Tensor],
    running: Sequence[Tensor] | None,
    codes: Sequence[int],
    *,
    stride: int,
    batch: bool,
    eps: float,
    momentum: float = 0.0,
    skip_mask: Tensor | None = None,
    statistics: list[Tensor] | None = None,
) -> Tensor:
    """Return the weighted sum of the operations on the channels that they see; append what the norms divided by."""
    kernels, norms = iter(weights), iter(running or ())

    def normalise(y: Tensor) -> Tensor:
        mean, variance = (next(norms), next(norms)) if running else (None, None)
        if statistics is not None:
            of_batch = (y.mean(dim=(0, 2, 3)), y.var(dim=(0, 2, 3), unbiased=False))
            statistics.extend(of_batch if batch or mean is None or variance is None else (mean, variance))
        return functional.batch_norm(y, mean, variance, training=batch, momentum=momentum, eps=eps)

    def convolve(y: Tensor, size: int, stride: int, dilation: int) -> Tensor:
        depthwise, pointwise = next(kernels), next(kernels)
        padding = dilation * (size - 1) // 2
        y = functional.conv2d(y.relu(), depthwise, None, stride, padding, dilation, groups=y.shape[1])
        return normalise(functional.conv2d(y, pointwise))

    total = torch.zeros_like(part[:, :, ::stride, ::stride])
    for weight, code in zip(alpha.unbind(), codes, strict=True):
        if code == NONE:
            # Kept, so that alpha has a gradient (of 0) where nothing else is mixed.
            result = torch.zeros_like(total)
        elif code == MAX_POOL:
            result = normalise(functional.max_pool2d(part, 3, stride, 1))
        elif code == AVERAGE_POOL:
            result = normalise(functional.avg_pool2d(part, 3, stride, 1, count_include_pad=False))
        elif code == SKIP and stride == 1:
            result = part if skip_mask is None else part * skip_mask
        elif code == SKIP:
            positive = part.relu()
            even, odd = positive[:, :, ::2, ::2], positive[:, :, 1::2, 1::2]
            halves = [functional.conv2d(even, next(kernels)), functional.conv2d(odd, next(kernels))]
            result = normalise(torch.cat(halves, dim=1))
        else:
            separable = code in SEPARABLE
            result = convolve(part, KERNELS[code], stride, 1 if separable else 2)
            if separable:
                result = convolve(result, KERNELS[code], 1, 1)
        total = total + weight * result
    return total


def saved_size(shape: Sequence[int], itemsize: int, stride: int, k: int, codes: Sequence[int]) -> int:
    """Return how many numbers the CPU kernel keeps for its backward pass (csrc/mixed_edge/mixed_edge_plan.h)."""
    batch, channels, height, width = shape
    c, lanes = channels // k, LANES // itemsize
    groups = (batch + lanes - 1) // lanes
    plane = groups * c * lanes
    inner = -(-height // stride) * -(-width // stride)
    pools = sum(code in (MAX_POOL, AVERAGE_POOL) for code in codes)
    units = sum((2 if code in SEPARABLE else 1) for code in codes if code in KERNELS)
    units += 2 if SKIP in codes and stride == 2 else 0
    return plane * (height * width + inner * (units + pools)) + units * (c + c * c)


def _edge(
    x: Tensor,
    alpha: Tensor,
    weights: Sequence[Tensor],
    running: Sequence[Tensor],
    skip_mask: Tensor | None,
    stride: int,
    k: int,
    codes: Sequence[int],
    eps: float,
    statistics: list[Tensor] | None = None,
) -> Tensor:
    c = x.shape[1] // k
    total = mixture(
        x[:, :c],
        alpha,
        weights,
        running,
        codes,
        stride=stride,
        batch=not running,
        eps=eps,
        skip_mask=skip_mask,
        statistics=statistics,
    )
    return _shuffled(total, x, stride, k)


def mixed_edge_fwd(
    x: Tensor,
    alpha: Tensor,
    weights: Sequence[Tensor],
    running: Sequence[Tensor],
    skip_mask: Tensor | None,
    stride: int,
    k: int,
    primitives: Sequence[int],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, what the norms subtracted and divided by the root of, (norms, 2, c), and nothing of use."""
    statistics: list[Tensor] = []
    output = _edge(x, alpha, weights, running, skip_mask, stride, k, primitives, eps, statistics)
    shape = norm_count(primitives, stride), 2, x.shape[1] // k
    stacked = torch.stack(statistics).view(shape) if statistics else x.new_empty(shape)
    return output, stacked, x.new_zeros(saved_size(x.shape, x.element_size(), stride, k, primitives))


def mixed_edge_bwd(
    grad: Tensor,
    x: Tensor,
    alpha: Tensor,
    weights: Sequence[Tensor],
    skip_mask: Tensor | None,
    statistics: Tensor,
    saved: Tensor,
    batch: bool,
    stride: int,
    k: int,
    primitives: Sequence[int],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, of ``alpha`` and of all weights, flat and one after the other."""
    running = [] if batch else list(statistics.flatten(0, 1).unbind())

    def edge(x: Tensor, alpha: Tensor, *weights: Tensor) -> Tensor:
        return _edge(x, alpha, weights, running, skip_mask, stride, k, primitives, eps)

    pull = torch.func.vjp(edge, x, alpha, *weights)[1]
    of_x, of_alpha, *of_weights = pull(grad)
    flat = torch.cat([one.flatten() for one in of_weights]) if of_weights else x.new_empty(0)
    return of_x, of_alpha, flat


def mixed_edge_bwd_bwd(
    cotangents: Sequence[Tensor],
    grad: Tensor,
    x: Tensor,
    alpha: Tensor,
    weights: Sequence[Tensor],
    skip_mask: Tensor | None,
    statistics: Tensor,
    batch: bool,
    stride: int,
    k: int,
    primitives: Sequence[int],
    eps: float,
) -> tuple[Tensor, ...]:
    """Pull ``cotangents`` back through :func:`mixed_edge_bwd`: gradients of ``grad``, ``x``, ``alpha``, weights."""

    def backward(grad: Tensor, x: Tensor, alpha: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rest = statistics, x, batch, stride, k, primitives, eps
        return mixed_edge_bwd(grad, x, alpha, weights, skip_mask, *rest)

    pull = torch.func.vjp(backward, grad, x, alpha, *weights)[1]
    gradients: tuple[Tensor, ...] = pull(tuple(cotangents))
    return gradients


def mixed_edge_track(running: Sequence[Tensor], statistics: Tensor, momentum: float, count: int) -> None:
    """Move running means and variances towards a batch's, whose variance is that of ``count`` numbers, unbiased."""
    for position, (mean, variance) in enumerate(statistics.unbind()):
        running[2 * position].lerp_(mean, momentum)
        running[2 * position + 1].lerp_(variance * (count / (count - 1)), momentum)
