"""NT-Xent of any number of views, positives by equal index: the public function, alone and across ranks."""

from typing import Any

import torch
from torch import Tensor

from sslfast.ops import _arguments as arguments
from sslfast.ops._distributed import Share, gather_rows, require_group, share
from sslfast.ops.score_lse import score_lse
from sslfast.ops.unit_rows import unit_rows


def nt_xent_indexed(
    z: Tensor,
    indexes: Tensor,
    temperature: float = 0.1,
    *,
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""Return the contrastive loss of rows whose positives are all other rows with the same index.

    With :math:`s_{ij} = u_i \cdot u_j / \tau` of the unit rows u,

    .. math:: L = -\frac{1}{M} \sum_i \log \frac{\sum_{j \ne i, x_j = x_i} e^{s_{ij}}}{\sum_{j \ne i} e^{s_{ij}}}.

    With the numbers of the images as indexes this is SimCLR with any number of views (two: :func:`sslfast.nt_xent`);
    with class labels, a supervised loss. solo-learn's ``simclr_loss_func(z, indexes, temperature)``.

    Args:
        z: projections of all views, shape ``(M, D)``; float32, float64, float16 or bfloat16, of any length.
        indexes: integers, shape ``(M,)``, on the device of ``z``.
        temperature: :math:`\tau`, dimensionless, > 0.
        group: as for :func:`sslfast.nt_xent`; indexes of different ranks that are equal are positives, too.

    Returns:
        The mean loss over the M rows, a scalar in the dtype of ``z``; float32 under autocast; infinite where a row has
        no positive, NaN for a single row.

    Raises:
        TypeError: an argument is no tensor or no number, or has an unsupported dtype.
        ValueError: a shape or device differs, the batch is empty, or the temperature is not positive and finite.
    """
    (z,) = arguments.under_autocast(z)
    arguments.require_tensors("nt_xent_indexed", z=z)
    arguments.require_same_matrices("nt_xent_indexed", "(M, D)", z=z)
    tau = arguments.require_number("nt_xent_indexed", "temperature", temperature)
    if not isinstance(indexes, Tensor):
        raise TypeError(f"nt_xent_indexed: indexes must be a tensor, got {type(indexes).__name__}")
    if indexes.dtype not in arguments.INTEGERS:
        raise TypeError(f"nt_xent_indexed: indexes must be integers, got {indexes.dtype}")
    if indexes.shape != z.shape[:1]:
        raise ValueError(
            f"nt_xent_indexed: indexes must be (M,) with M = {z.shape[0]}, as z is {tuple(z.shape)}; "
            f"got {tuple(indexes.shape)}"
        )
    if indexes.device != z.device:
        raise ValueError(f"nt_xent_indexed: z is on {z.device}, indexes is on {indexes.device}")
    unit = unit_rows(arguments.in_full_precision(z))
    index = indexes.to(torch.int64)
    if require_group("nt_xent_indexed", group):
        rows = share(len(unit), group, unit.device)
        loss = across_ranks(unit, index, gather_rows(index, rows, group), tau, rows, group)
    else:
        loss = indexed(unit, index, tau)
    return loss if loss.dtype == z.dtype else loss.to(z.dtype)


def indexed(unit: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Return the loss of unit rows on one process."""
    every, positive = score_lse(unit, unit, index, index, diagonal=0, temperature=temperature)
    return (every - positive).mean()


def across_ranks(
    unit: Tensor, index: Tensor, all_indexes: Tensor, temperature: float, rows: Share, group: Any
) -> Tensor:
    """Return the loss of the unit rows of all ranks; exchanged are the rows once, and two numbers per row."""
    loss: Tensor = _AcrossRanks.apply(unit, index, all_indexes, temperature, rows, group)  # type: ignore[no-untyped-call]
    return loss


class _AcrossRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, unit: Tensor, index: Tensor, all_indexes: Tensor, temperature: float, rows: Share, group: Any
    ) -> Tensor:
        everybody = gather_rows(unit, rows, group)
        own = torch.stack(
            torch.ops.sslfast.score_lse_fwd(unit, everybody, index, all_indexes, rows.start, temperature), dim=1
        )
        sums = gather_rows(own, rows, group)
        ctx.save_for_backward(unit, everybody, index, all_indexes, sums)
        ctx.temperature, ctx.rows = temperature, rows
        return (sums[:, 0] - sums[:, 1]).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("nt_xent: there are no second derivatives over a group")
        unit, everybody, index, all_indexes, sums = ctx.saved_tensors
        rows: Share = ctx.rows
        share_of_grad = (grad * (len(rows.counts) / rows.total)).expand(rows.total)
        sides = torch.stack([share_of_grad, -share_of_grad, sums[:, 0], sums[:, 1]])
        # A row is pulled by its own log-sum-exp, and by those of all others, which are known here.
        result = torch.ops.sslfast.score_lse_bwd(
            *(unit, everybody, index, all_indexes, rows.start, ctx.temperature),
            *(sides[:, rows.rows].contiguous(), sides),
        )
        return result, None, None, None, None, None
