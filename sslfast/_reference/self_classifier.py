"""The Self-Classifier loss in plain PyTorch: the definition that every kernel is tested and timed against."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


def self_classifier(
    logits: Sequence[Any],
    row_temperature: float = 0.1,
    column_temperature: float = 0.05,
    *,
    global_views: int = 2,
    eps: float = 1e-8,
) -> Tensor:
    """Return the mean over heads, ordered pairs of views and rows; ``logits``: views (B, K), or heads of such views."""
    heads = [logits] if isinstance(logits[0], Tensor) else logits
    dtype = heads[0][0].dtype
    total, terms = torch.zeros((), device=heads[0][0].device), 0
    for head in heads:
        # Half precision has no room for eps.
        views = [x.float() if dtype in (torch.float16, torch.bfloat16) else x for x in head]
        rows, classes = views[0].shape
        targets = [normalize((x / column_temperature).softmax(dim=0), p=1, dim=1, eps=eps) for x in views]
        for j, x in enumerate(views):
            prediction = normalize((x / row_temperature).softmax(dim=1), p=1, dim=0, eps=eps)
            log_prediction = torch.log(rows / classes * prediction + eps)
            for i, target in enumerate(targets):
                if i != j and (i < global_views or j < global_views):
                    total = total - (target * log_prediction).sum(dim=1).mean()
                    terms += 1
    return (total / terms).to(dtype)


def pairs(views: int, global_views: int) -> int:
    """Return the number of ordered pairs of different views that are not both local."""
    local = max(0, views - global_views)
    return views * (views - 1) - local * (local - 1)


def self_classifier_columns(
    views: Sequence[Tensor], row_temperature: float, column_temperature: float
) -> tuple[Tensor, Tensor]:
    r"""Return what the soft-maxes need of whole columns and rows of V views (B, K).

    columns, (3, V, K): the maximum over the rows, :math:`\sum_b e^{(x_{bk} - max_k) / \tau_c}`, and the sum over the
    rows of the soft-max along the rows. rows, (2, V, B): the maximum, and 1 over the row's :math:`\sum_k e^{(x_{bk} -
    max_b) / \tau_r}`.
    """
    x = _stacked(views)
    column_maximum, row_maximum = x.amax(dim=1), x.amax(dim=2)
    column_sum = ((x - column_maximum[:, None]) / column_temperature).exp().sum(dim=1)
    scores = ((x - row_maximum[..., None]) / row_temperature).exp()
    inverse = 1 / scores.sum(dim=2)
    mass = (scores * inverse[..., None]).sum(dim=1)
    return torch.stack([column_maximum, column_sum, mass]), torch.stack([row_maximum, inverse])


def self_classifier_terms(
    views: Sequence[Tensor],
    columns: Tensor,
    rows: Tensor,
    row_temperature: float,
    column_temperature: float,
    global_views: int,
    eps: float,
    batch: int,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return these rows' share of the loss, and columns and rows with what the gradient needs besides behind them.

    With t the soft-max along the columns, T = t / max(sum_k t, eps), p = B/K q / max(mass, eps) for q the soft-max
    along the rows, :math:`\ell = \log(p + eps)`, and S_j, A_i the sums of T, :math:`\ell` over the views that pair with
    j, i:

    columns, (5, V, K), end in :math:`\sum_b S p / (p + eps)` and :math:`\sum_b T (A - along_b)`; rows, (5, V, B), in
    1 / max(sum_k t, eps), along = :math:`\sum_k T A` (0 where the sum of t was below eps) and :math:`\sum_k S p / (p +
    eps)`.
    """
    parts = _parts(views, columns, rows, row_temperature, column_temperature, global_views, eps, batch)
    target, others_target, others_log = parts.target, parts.others_target, parts.others_log
    loss = (others_target * parts.log).sum() * (-1 / (pairs(len(views), global_views) * batch))
    along = (target * others_log).sum(dim=2) * (parts.length >= eps)
    pull = others_target * parts.share
    sums = torch.stack([pull.sum(dim=1), (target * (others_log - along[..., None])).sum(dim=1)])
    terms = torch.stack([1 / parts.length.clamp_min(eps), along, pull.sum(dim=2)])
    return loss, torch.cat([columns, sums]), torch.cat([rows, terms])


def self_classifier_fwd(
    views: Sequence[Tensor], row_temperature: float, column_temperature: float, global_views: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, columns (5, V, K) and rows (5, V, B), as the two halves above do."""
    columns, rows = self_classifier_columns(views, row_temperature, column_temperature)
    options = (row_temperature, column_temperature, global_views, eps, views[0].shape[0])
    return self_classifier_terms(views, columns, rows, *options)


def self_classifier_bwd(
    grad: Tensor,
    views: Sequence[Tensor],
    columns: Tensor,
    rows: Tensor,
    row_temperature: float,
    column_temperature: float,
    global_views: int,
    eps: float,
    batch: int | None,
) -> Tensor:
    r"""Return the gradient (V, B, K) of the loss times ``grad``; all of ``columns`` are the whole batch's.

    .. math:: -w \Big[\tfrac{1}{\tau_c} (T (A - along) - t\,e) + \tfrac{1}{\tau_r} \big(S p / (p + eps) - q (s / r +
        \textstyle\sum_k [S p / (p + eps) - q s / r])\big)\Big]

    with s, e the last two of ``columns``, r = max(mass, eps), and s = 0 where the mass is below eps.
    """
    batch = views[0].shape[0] if batch is None else batch
    parts = _parts(views, columns, rows, row_temperature, column_temperature, global_views, eps, batch)
    _, _, mass, pulls, alongs = columns
    _, _, _, along, row_pull = rows
    scaled = (pulls / mass.clamp_min(eps) * (mass >= eps))[:, None]
    along_row = row_pull - (parts.row_softmax * scaled).sum(dim=2)
    of_target = parts.target * (parts.others_log - along[..., None]) - parts.column_softmax * alongs[:, None]
    of_prediction = parts.others_target * parts.share - parts.row_softmax * (scaled + along_row[..., None])
    weight = grad.to(columns.dtype) / (pairs(len(views), global_views) * batch)
    gradient: Tensor = -weight * (of_target / column_temperature + of_prediction / row_temperature)
    return gradient.to(views[0].dtype)


class _Parts:
    """The matrices that forward and backward are sums of, each (V, B, K)."""

    column_softmax: Tensor
    length: Tensor  # (V, B)
    target: Tensor
    row_softmax: Tensor
    log: Tensor
    share: Tensor
    others_target: Tensor
    others_log: Tensor


def _parts(
    views: Sequence[Tensor],
    columns: Tensor,
    rows: Tensor,
    row_temperature: float,
    column_temperature: float,
    global_views: int,
    eps: float,
    batch: int,
) -> _Parts:
    x = _stacked(views)
    parts = _Parts()
    parts.column_softmax = ((x - columns[0][:, None]) / column_temperature).exp() / columns[1][:, None]
    parts.length = parts.column_softmax.sum(dim=2)
    parts.target = parts.column_softmax / parts.length.clamp_min(eps)[..., None]
    parts.row_softmax = ((x - rows[0][..., None]) / row_temperature).exp() * rows[1][..., None]
    prediction = batch / x.shape[2] * (parts.row_softmax / columns[2].clamp_min(eps)[:, None])
    parts.log = torch.log(prediction + eps)
    parts.share = prediction / (prediction + eps)
    view = torch.arange(len(views), device=x.device)
    paired = (view[:, None] != view) & ((view < global_views) | (view[:, None] < global_views))
    parts.others_target = torch.einsum("ij,ibk->jbk", paired.to(x.dtype), parts.target)
    parts.others_log = torch.einsum("ij,jbk->ibk", paired.to(x.dtype), parts.log)
    return parts


def _stacked(views: Sequence[Tensor]) -> Tensor:
    x = torch.stack(list(views))
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
