"""Multinomial logistic regression for many strengths of regularisation at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_AT_A_TIME = 8192
SCORES_AT_A_TIME = 16_000_000
"""Fewer rows, where their scores for all problems and classes would be more numbers than this (64 MB)."""

HISTORY = 10
HISTORY_NUMBERS = 100_000_000
"""Most numbers that the steps of the past may hold; with many classes and features fewer of them are kept."""


@dataclass(frozen=True)
class Fits:
    """What each strength came to.

    Args:
        weight: (strengths, classes, D).
        bias: (strengths, classes).
        steps: L-BFGS steps of each.
        converged: whether no entry of its gradient is above the tolerance.
    """

    weight: Tensor
    bias: Tensor
    steps: list[int]
    converged: list[bool]


def fit_logistic(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    strengths: Sequence[float],
    max_iterations: int = 300,
    tolerance: float = 1e-4,
) -> Fits:
    r"""Minimise :math:`\frac12 |W|^2 + C \sum_i \ell(W x_i + b, y_i)` for every C in ``strengths``, side by side.

    The problems share their inputs, so one product serves them all. Each is solved by L-BFGS in the basis of the
    inputs' principal components, where the loss's curvature at 0 is nearly diagonal and its inverse is the first guess;
    the penalty does not notice the basis. As in scikit-learn the objective is divided by C N, and a fit has converged
    when no entry of the gradient is above ``tolerance``.

    Args:
        inputs: features (N, D), centred, float32 or float64.
        labels: (N,), int64, in [0, classes).
        classes: number of classes K, at least 2.
        strengths: values of C.
        max_iterations: most L-BFGS steps.
        tolerance: of the gradient.
    """
    basis, points, scales = _principal(inputs)
    targets = labels.to(inputs.device)
    penalty = inputs.new_tensor([1 / (strength * len(inputs)) for strength in strengths])
    unknowns = points.shape[1]
    theta = inputs.new_zeros(len(strengths), classes, unknowns)
    mask = torch.ones(unknowns, dtype=inputs.dtype, device=inputs.device)
    mask[-1] = 0  # the bias is not penalised
    active = torch.arange(len(strengths), device=inputs.device)
    steps, converged = [0] * len(strengths), [False] * len(strengths)
    state = theta.clone()
    value, gradient = _evaluate(points, targets, state, penalty, mask)
    memory = min(HISTORY, max(2, HISTORY_NUMBERS // (2 * theta.numel())))
    moves: list[Tensor] = []
    changes: list[Tensor] = []
    for step in range(max_iterations + 1):
        size = gradient.flatten(1).abs().amax(1)
        small = size <= tolerance
        if bool(small.any()):
            for index in active[small].tolist():
                steps[index], converged[index] = step, True
            theta[active[small]] = state[small]
            keep = ~small
            active, state, value, gradient = active[keep], state[keep], value[keep], gradient[keep]
            moves, changes = [one[keep] for one in moves], [one[keep] for one in changes]
        if not len(active) or step == max_iterations:
            break
        curvature = scales / classes + penalty[active, None] * mask + 1e-12
        direction = -_along(gradient, moves, changes, curvature[:, None, :])
        slope = _dot(direction, gradient)
        fresh = slope >= 0  # rounding: begin anew from the gradient
        if bool(fresh.any()):
            direction[fresh] = -(gradient / curvature[:, None, :])[fresh]
            slope = _dot(direction, gradient)
        found, found_value, found_gradient, moved = _search(
            points, targets, penalty[active], mask, state, value, gradient, direction, slope
        )
        moves.append(found - state)
        changes.append(found_gradient - gradient)
        if len(moves) > memory:
            del moves[0], changes[0]
        state, value, gradient = found, found_value, found_gradient
        if not bool(moved.any()):  # no step is downhill any more in this precision
            break
    for index in active.tolist():
        steps[index] = step
    theta[active] = state
    weight = theta[..., :-1] @ basis.t()
    return Fits(weight, theta[..., -1], steps, converged)


def _principal(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give the basis (D, D), the inputs in it with a column of ones, and the second moment of each column."""
    moment = (inputs.t() @ inputs).double() / len(inputs)
    scales, basis = torch.linalg.eigh(moment)
    basis = basis.to(inputs.dtype)
    points = inputs.new_ones(len(inputs), inputs.shape[1] + 1)
    for one, other in zip(torch.split(inputs, ROWS_AT_A_TIME), torch.split(points, ROWS_AT_A_TIME), strict=True):
        other[:, :-1] = one @ basis  # part by part: the inputs may be half of what memory holds
    return basis, points, torch.cat([scales.clamp(min=0), scales.new_ones(1)]).to(inputs.dtype)


def _evaluate(points: Tensor, labels: Tensor, theta: Tensor, penalty: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Give objectives (P,), float64, and gradients (P, K, D + 1)."""
    problems, classes, unknowns = theta.shape
    flat = theta.reshape(-1, unknowns)
    total = torch.zeros(problems, dtype=torch.float64, device=theta.device)
    gradient = torch.zeros_like(flat)
    rows = max(1, min(ROWS_AT_A_TIME, SCORES_AT_A_TIME // (problems * classes)))
    for part, label in zip(torch.split(points, rows), torch.split(labels, rows), strict=True):
        # Rows run fastest: a softmax over ten numbers side by side is slow.
        scores = torch.log_softmax((flat @ part.t()).view(problems, classes, len(part)), 1)
        index = label.expand(problems, 1, -1)
        total -= scores.gather(1, index)[:, 0].sum(1, dtype=torch.float64)
        errors = scores.exp_()
        errors.scatter_add_(1, index, errors.new_full((1,), -1.0).expand(index.shape))
        gradient.addmm_(errors.view(-1, len(part)), part)
    shrunk = theta * mask * penalty[:, None, None]
    value = total / len(points) + 0.5 * _dot(shrunk, theta)
    return value, gradient.view_as(theta) / len(points) + shrunk


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).flatten(1).sum(1, dtype=torch.float64)


def _along(gradient: Tensor, moves: list[Tensor], changes: list[Tensor], curvature: Tensor) -> Tensor:
    """Multiply with the inverse curvature that the past steps tell (the two loops of L-BFGS)."""

    def spread(factor: Tensor) -> Tensor:
        return factor.to(gradient.dtype)[:, None, None]

    result = gradient
    shares = []
    products = [_dot(move, change) for move, change in zip(moves, changes, strict=True)]
    # A problem that did not move in a step has learnt nothing from it.
    inverses = [torch.where(product > 0, 1 / product, torch.zeros_like(product)) for product in products]
    for move, change, inverse in zip(reversed(moves), reversed(changes), reversed(inverses), strict=True):
        share = inverse * _dot(move, result)
        shares.append(share)
        result = result - spread(share) * change
    result = result / curvature
    if moves:
        scale = products[-1] / _dot(changes[-1], changes[-1] / curvature)
        result = result * spread(torch.where(scale.isfinite() & (scale > 0), scale, torch.ones_like(scale)))
    for move, change, inverse, share in zip(moves, changes, inverses, reversed(shares), strict=True):
        result = result + spread(share - inverse * _dot(change, result)) * move
    return result


def _search(
    points: Tensor,
    labels: Tensor,
    penalty: Tensor,
    mask: Tensor,
    state: Tensor,
    value: Tensor,
    gradient: Tensor,
    direction: Tensor,
    slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Step along the direction, half as far while that is not downhill enough; give the state and which have moved."""
    found, found_value, found_gradient = state.clone(), value.clone(), gradient.clone()
    length = torch.ones_like(value)
    moved = torch.zeros_like(value, dtype=torch.bool)
    for _ in range(12):
        left = (~moved).nonzero()[:, 0]
        tried = state[left] + length[left, None, None].to(state.dtype) * direction[left]
        values, gradients = _evaluate(points, labels, tried, penalty[left], mask)
        room = 1e-7 * value[left].abs() if state.dtype == torch.float32 else 0.0
        good = values <= value[left] + 1e-4 * length[left] * slope[left] + room
        taken = left[good]
        found[taken], found_value[taken], found_gradient[taken] = tried[good], values[good], gradients[good]
        moved[taken] = True
        if bool(moved.all()):
            break
        length[~moved] /= 2
    return found, found_value, found_gradient, moved


def c_grid() -> tuple[float, ...]:
    """Give 45 values of C, log-spaced from 1e-6 to 1e5."""
    return tuple(10 ** (-6 + 11 * index / 44) for index in range(45))
