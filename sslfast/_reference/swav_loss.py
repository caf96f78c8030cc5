"""The SwAV loss in plain PyTorch: the definition that every kernel is tested and timed against."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sslfast._reference.sinkhorn import level, sinkhorn, sinkhorn_assign


def swav_loss(
    high_resolution: Sequence[Tensor],
    low_resolution: Sequence[Tensor],
    queue: Sequence[Tensor] | None = None,
    *,
    temperature: float = 0.1,
    iterations: int = 3,
    epsilon: float = 0.05,
) -> Tensor:
    """Return the mean cross entropy of every view with the codes of every other high-resolution view."""
    views = [*high_resolution, *low_resolution]
    total = views[0].new_zeros(())
    for i, scores in enumerate(high_resolution):
        with torch.no_grad():
            together = scores if queue is None else torch.cat([scores, queue[i]])
            codes = sinkhorn(together, iterations, epsilon)[: len(scores)]
        for v, other in enumerate(views):
            if v != i:
                total = total - (codes * torch.log_softmax(other / temperature, dim=1)).sum(dim=1).mean()
    return total / (len(high_resolution) * (len(views) - 1))


def swav_potentials(high: Sequence[Tensor], queue: Sequence[Tensor], iterations: int, epsilon: float) -> Tensor:
    """Return what the exponents of each high-resolution view's codes are reduced by, (H, K)."""
    results = []
    for i, scores in enumerate(high):
        exponents = (torch.cat([scores, queue[i]]) if queue else scores) / epsilon
        potential = exponents.logsumexp(dim=0)
        for _ in range(iterations - 1):
            potential = potential + (exponents - potential).softmax(dim=1).sum(dim=0).log()
        results.append(potential if iterations else level(potential, len(exponents)))
    return torch.stack(results)


def swav_loss_fwd(
    high: Sequence[Tensor],
    low: Sequence[Tensor],
    potential: Tensor,
    normalised: bool,
    temperature: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, and the log-sum-exp per row of scores / temperature (V, B) and of codes' exponents (H, B)."""
    lse = torch.stack([(view / temperature).logsumexp(dim=1) for view in (*high, *low)])
    code_lse = torch.stack([(view / epsilon - one).logsumexp(dim=1) for view, one in zip(high, potential, strict=True)])
    loss = lse.new_zeros(())
    for v, view in enumerate((*high, *low)):
        others = _others(v, high, potential, normalised, epsilon)
        loss = loss + (others.sum(dim=1) * lse[v] - (others * view).sum(dim=1) / temperature).mean()
    return loss / (len(high) * (len(lse) - 1)), lse, code_lse


def swav_loss_bwd(
    grad: Tensor,
    high: Sequence[Tensor],
    low: Sequence[Tensor],
    potential: Tensor,
    lse: Tensor,
    code_lse: Tensor,
    normalised: bool,
    temperature: float,
    epsilon: float,
) -> Tensor:
    """Return the gradients of all views, (V, B, K): soft-max times the other codes' sum, less the other codes."""
    views = [*high, *low]
    scale = grad / (len(high) * (len(views) - 1) * len(views[0]) * temperature)
    results = []
    for v, view in enumerate(views):
        others = _others(v, high, potential, normalised, epsilon)
        probability = (view / temperature - lse[v][:, None]).clamp(max=0).exp()  # above 0 by rounding only
        results.append((probability * others.sum(dim=1, keepdim=True) - others) * scale)
    return torch.stack(results)


def swav_loss_bwd_bwd(
    cotangent: Tensor,
    grad: Tensor,
    high: Sequence[Tensor],
    low: Sequence[Tensor],
    potential: Tensor,
    normalised: bool,
    temperature: float,
    epsilon: float,
) -> tuple[Tensor, list[Tensor]]:
    """Pull ``cotangent`` (V, B, K) back through :func:`swav_loss_bwd`: gradients of ``grad`` and of all views."""
    views = [*high, *low]
    scale = 1 / (len(high) * (len(views) - 1) * len(views[0]) * temperature)
    of_grad = grad.new_zeros(())
    of_views = []
    for v, view in enumerate(views):
        others = _others(v, high, potential, normalised, epsilon)
        mass = others.sum(dim=1, keepdim=True)
        probability = (view / temperature).softmax(dim=1)
        moved = cotangent[v]
        of_grad = of_grad + ((probability * mass - others) * moved).sum() * scale
        moved = probability * (moved - (probability * moved).sum(dim=1, keepdim=True))
        of_views.append(moved * mass * (grad * scale / temperature))
    return of_grad, of_views


def _others(v: int, high: Sequence[Tensor], potential: Tensor, normalised: bool, epsilon: float) -> Tensor:
    """Return the sum of the codes of all high-resolution views but view v, constants."""
    codes = [
        sinkhorn_assign(scores.detach(), one.detach(), None, epsilon, normalised)
        for i, (scores, one) in enumerate(zip(high, potential, strict=True))
        if i != v
    ]
    return torch.stack(codes).sum(dim=0) if codes else torch.zeros_like(high[0])
