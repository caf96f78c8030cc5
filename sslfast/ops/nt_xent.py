"""NT-Xent (SimCLR) loss: the public function, and the op's fake, autograd and vmap halves."""

from typing import Any

import torch
from torch import Tensor

from sslfast._reference import nt_xent as reference
from sslfast.ops._differentiable import differentiable
from sslfast.ops.unit_rows import unit_rows

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


_AUTOCAST_DEVICES = frozenset(
    device for device in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia") if torch.amp.is_autocast_available(device)
)
"""Asked once: torch.compile of torch 2.11 cannot look into the question."""


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.5) -> Tensor:
    r"""Return the normalised-temperature cross entropy between two batches of views.

    With :math:`u` the 2N rows scaled to unit length, :math:`s_{ij} = u_i \cdot u_j / \tau` and :math:`p(i)` the other
    view of row i,

    .. math:: L = \frac{1}{2N} \sum_i \Big[ \log \sum_{j \ne i} e^{s_{ij}} - s_{i\,p(i)} \Big].

    No 2N x 2N matrix is stored, forward or backward. Second derivatives, ``torch.func`` transforms and
    ``torch.compile`` work. Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020.

    Args:
        z0: projections of the first views, shape ``(N, D)``; float32, float64, float16 or bfloat16. Half precision is
            computed in float32. Rows need not have unit length; a row of zeros counts as orthogonal to all others.
        z1: projections of the second views, with the shape, dtype and device of ``z0``; row i belongs to row i.
        temperature: :math:`\tau`, dimensionless, > 0.

    Returns:
        The mean loss over the 2N rows, a scalar in the dtype of ``z0``; float32 under autocast.

    Raises:
        TypeError: an argument is no tensor or no number, or a dtype is not supported or differs.
        ValueError: a shape or device differs, the batch is empty, or the temperature is not positive and finite.
    """
    _check_tensors(z0, z1)
    device = z0.device.type
    if device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
        z0, z1 = (z.float() if z.dtype in (torch.float16, torch.bfloat16) else z for z in (z0, z1))
    _check(z0, z1, temperature)
    z = torch.cat([z0, z1])
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    loss: Tensor = _forward(unit_rows(z), float(temperature))[0]
    return loss.to(z0.dtype)


def _check_tensors(z0: Tensor, z1: Tensor) -> None:
    for name, z in (("z0", z0), ("z1", z1)):
        if not isinstance(z, Tensor):
            raise TypeError(f"nt_xent: {name} must be a tensor, got {type(z).__name__}")


def _check(z0: Tensor, z1: Tensor, temperature: float) -> None:
    for name, z in (("z0", z0), ("z1", z1)):
        if z.layout != torch.strided:
            raise TypeError(f"nt_xent: {name} must be a dense tensor, got layout {z.layout}")
        if z.dtype not in DTYPES:
            raise TypeError(f"nt_xent: {name} must be float32, float64, float16 or bfloat16, got {z.dtype}")
    if z1.dtype != z0.dtype:
        raise TypeError(f"nt_xent: z1 must have z0's dtype {z0.dtype}, got {z1.dtype}")
    if z0.device != z1.device:
        raise ValueError(f"nt_xent: z0 is on {z0.device}, z1 is on {z1.device}; both must be on one device")
    if z0.dim() != 2 or z0.shape != z1.shape:
        raise ValueError(f"nt_xent: z0 and z1 must both be (N, D), got {tuple(z0.shape)} and {tuple(z1.shape)}")
    if z0.shape[0] == 0 or z0.shape[1] == 0:
        raise ValueError(f"nt_xent: z0 and z1 must not be empty, got {tuple(z0.shape)}")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"nt_xent: temperature must be a number, got {type(temperature).__name__}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"nt_xent: temperature must be positive and finite, got {temperature}")


@torch.library.register_fake("sslfast::nt_xent_fwd")  # type: ignore[untyped-decorator]
def _(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return z.new_empty(()), z.new_empty(z.shape[:1])


@torch.library.register_fake("sslfast::nt_xent_bwd")  # type: ignore[untyped-decorator]
def _(grad: Tensor, z: Tensor, lse: Tensor, temperature: float) -> Tensor:
    return z.new_empty(z.shape)


def _save(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    z, ctx.temperature = inputs
    _, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(z, lse)


def _backward_rule(ctx: Any, grad: Tensor, _grad_lse: Tensor) -> tuple[Tensor, None]:
    z, lse = ctx.saved_tensors
    return _backward(grad, z, lse, ctx.temperature), None


def _forward_vmap(
    info: Any, in_dims: tuple[int | None, ...], z: Tensor, temperature: float
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    results = [_forward(*one, temperature) for one in _problems(info, in_dims, (z,))]
    return (torch.stack([loss for loss, _ in results]), torch.stack([lse for _, lse in results])), (0, 0)


def _save_for_second(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    grad, z, _, ctx.temperature = inputs
    ctx.save_for_backward(grad, z)


def _second_backward_rule(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None, None]:
    # lse is a function of z: its share is in the gradient of z.
    grad, z = ctx.saved_tensors
    of_grad, of_z = reference.nt_xent_bwd_bwd(cotangent, grad, z, ctx.temperature)
    return of_grad, of_z, None, None


def _backward_vmap(
    info: Any, in_dims: tuple[int | None, ...], grad: Tensor, z: Tensor, lse: Tensor, temperature: float
) -> tuple[Tensor, int]:
    problems = _problems(info, in_dims, (grad, z, lse))
    return torch.stack([_backward(*one, temperature) for one in problems]), 0


def _problems(info: Any, in_dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """Cut tensors along their mapped dimensions: one tuple of arguments per problem."""
    columns = [
        (tensor,) * info.batch_size if dim is None else tensor.unbind(dim)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]
    return list(zip(*columns, strict=True))


_forward = differentiable("nt_xent_fwd", save=_save, backward=_backward_rule, vmap=_forward_vmap)
_backward = differentiable("nt_xent_bwd", save=_save_for_second, backward=_second_backward_rule, vmap=_backward_vmap)
