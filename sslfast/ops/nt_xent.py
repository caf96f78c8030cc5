"""NT-Xent (SimCLR) loss of two views: the public function, and the op's fake, autograd and vmap halves."""

from typing import Any

import torch
from torch import Tensor

from sslfast._reference import nt_xent as reference
from sslfast.ops import _arguments as arguments
from sslfast.ops._differentiable import differentiable
from sslfast.ops._distributed import mean_over_ranks, require_group, share
from sslfast.ops.nt_xent_indexed import across_ranks, indexed
from sslfast.ops.score_lse import score_lse
from sslfast.ops.unit_rows import unit_rows

LOWEST_TEMPERATURE = 0.025
"""Below it exp(-2 / temperature) leaves float32; the running maximum of ``score_lse`` takes over."""


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float = 0.5,
    *,
    negatives: Tensor | None = None,
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""Return the normalised-temperature cross entropy between two batches of views.

    With :math:`u` the 2N rows scaled to unit length, :math:`s_{ij} = u_i \cdot u_j / \tau` and :math:`p(i)` the other
    view of row i,

    .. math:: L = \frac{1}{2N} \sum_i \Big[ \log \sum_{j \ne i} e^{s_{ij}} - s_{i\,p(i)} \Big].

    With ``negatives``, MoCo's form: only the N rows of z0 are anchors, each against its own z1 and all negatives.

    No 2N x 2N matrix is stored, forward or backward. Second derivatives, ``torch.func`` transforms and
    ``torch.compile`` work. Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020;
    He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020.

    Args:
        z0: projections of the first views, shape ``(N, D)``; float32, float64, float16 or bfloat16. Half precision is
            computed in float32. Rows need not have unit length; a row of zeros counts as orthogonal to all others.
        z1: projections of the second views, with the shape, dtype and device of ``z0``; row i belongs to row i.
        temperature: :math:`\tau`, dimensionless, > 0.
        negatives: shape ``(D, M)``, one column each, on the device of ``z0``, of any floating-point dtype; used as
            they are, without normalisation.
        group: a process group whose ranks each hold some rows of one batch. The value is that of the whole batch, the
            gradient that of the whole batch times the number of ranks, so that the mean which
            ``DistributedDataParallel`` takes is right.

    Returns:
        The mean loss over the 2N (with negatives: N) rows, a scalar in the dtype of ``z0``; float32 under autocast.

    Raises:
        TypeError: an argument is no tensor or no number, or a dtype is not supported or differs.
        ValueError: a shape or device differs, the batch is empty, or the temperature is not positive and finite.
    """
    z0, z1 = arguments.under_autocast(z0, z1)
    arguments.require_tensors("nt_xent", z0=z0, z1=z1)
    arguments.require_same_matrices("nt_xent", "(N, D)", z0=z0, z1=z1)
    tau = arguments.require_number("nt_xent", "temperature", temperature)
    joined = require_group("nt_xent", group)
    if negatives is not None:
        loss = _against(z0, z1, negatives, tau, group if joined else None)
    elif joined:
        loss = _across_ranks(z0, z1, tau, group)
    elif tau < LOWEST_TEMPERATURE or z0.shape[0] == 1:
        image = torch.arange(z0.shape[0], device=z0.device).repeat(2)
        loss = indexed(unit_rows(arguments.in_full_precision(torch.cat([z0, z1]))), image, tau)
    else:
        loss = _forward(z0, z1, tau)[0]
    return loss if loss.dtype == z0.dtype else loss.to(z0.dtype)


def _against(z0: Tensor, z1: Tensor, negatives: Tensor, temperature: float, group: Any) -> Tensor:
    arguments.require_tensors("nt_xent", negatives=negatives)
    if negatives.device != z0.device:
        raise ValueError(f"nt_xent: z0 is on {z0.device}, negatives is on {negatives.device}")
    if negatives.dim() != 2 or negatives.shape[0] != z0.shape[1] or negatives.shape[1] == 0:
        raise ValueError(
            f"nt_xent: negatives must be (D, M) with D = {z0.shape[1]} and M > 0, got {tuple(negatives.shape)}"
        )
    u0, u1 = (unit_rows(arguments.in_full_precision(z)) for z in (z0, z1))
    # In float64: the loss is a difference of two numbers of size 1 / temperature, and each row has one positive only.
    positive = (u0.double() * u1.double()).sum(dim=1) / temperature
    lse, _ = score_lse(u0, negatives.to(u0.dtype).T, temperature=temperature)
    # -log of the positive's share, e^p / (e^p + e^lse).
    losses = -torch.nn.functional.logsigmoid(positive - lse)
    return losses.mean() if group is None else mean_over_ranks(losses, group)


def _across_ranks(z0: Tensor, z1: Tensor, temperature: float, group: Any) -> Tensor:
    unit = unit_rows(arguments.in_full_precision(torch.cat([z0, z1])))
    rows = share(len(unit), group, unit.device)
    # Both views of an image follow each other rank by rank: images are numbered through.
    firsts = [start // 2 for start in rows.starts]
    images = [
        torch.arange(first, first + count // 2, device=unit.device).repeat(2)
        for first, count in zip(firsts, rows.counts, strict=True)
    ]
    return across_ranks(unit, images[rows.rank], torch.cat(images), temperature, rows, group)


@torch.library.register_fake("sslfast::nt_xent_fwd")  # type: ignore[untyped-decorator]
def _(z0: Tensor, z1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if z0.dtype in arguments.HALF else z0.dtype
    return z0.new_empty((), dtype=dtype), z0.new_empty(2 * z0.shape[0], dtype=dtype)


@torch.library.register_fake("sslfast::nt_xent_bwd")  # type: ignore[untyped-decorator]
def _(grad: Tensor, z0: Tensor, z1: Tensor, lse: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return z0.new_empty(z0.shape), z1.new_empty(z1.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    z0, z1, ctx.temperature = inputs
    _, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(z0, z1, lse)


def _backward_rule(ctx: Any, grad: Tensor, _grad_lse: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_backward(grad, *ctx.saved_tensors, ctx.temperature), None


def _forward_vmap(
    info: Any, in_dims: tuple[int | None, ...], z0: Tensor, z1: Tensor, temperature: float
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    results = [_forward(*one, temperature) for one in arguments.problems(info, in_dims, (z0, z1))]
    return (torch.stack([loss for loss, _ in results]), torch.stack([lse for _, lse in results])), (0, 0)


def _save_for_second(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor]
) -> None:
    grad, z0, z1, _, ctx.temperature = inputs
    ctx.save_for_backward(grad, z0, z1)


def _second_backward_rule(
    ctx: Any, cotangent0: Tensor, cotangent1: Tensor
) -> tuple[Tensor, Tensor, Tensor, None, None]:
    # lse is a function of the rows: its share is in their gradients.
    grad, z0, z1 = ctx.saved_tensors
    of_grad, of_z0, of_z1 = reference.nt_xent_bwd_bwd(cotangent0, cotangent1, grad, z0, z1, ctx.temperature)
    return of_grad, of_z0, of_z1, None, None


def _backward_vmap(
    info: Any, in_dims: tuple[int | None, ...], grad: Tensor, z0: Tensor, z1: Tensor, lse: Tensor, temperature: float
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    results = [_backward(*one, temperature) for one in arguments.problems(info, in_dims, (grad, z0, z1, lse))]
    return (torch.stack([one for one, _ in results]), torch.stack([two for _, two in results])), (0, 0)


_forward = differentiable("nt_xent_fwd", save=_save, backward=_backward_rule, vmap=_forward_vmap)
_backward = differentiable("nt_xent_bwd", save=_save_for_second, backward=_second_backward_rule, vmap=_backward_vmap)
