"""Rows scaled to unit length: the op's fake, autograd and vmap halves. Losses call it; it has no public function."""

from typing import Any

import torch
from torch import Tensor

from sslfast._reference import unit_rows as reference
from sslfast.ops._differentiable import differentiable


def unit_rows(x: Tensor) -> Tensor:
    r"""Divide each row by its length.

    .. math:: u_i = x_i / \max(\|x_i\|, 10^{-12})

    Args:
        x: shape ``(M, D)``, float32 or float64.

    Returns:
        The unit rows, same shape and dtype; rows of zeros stay zeros.
    """
    unit: Tensor = _forward(x)[0]
    return unit


@torch.library.register_fake("sslfast::unit_rows_fwd")  # type: ignore[untyped-decorator]
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:1])


@torch.library.register_fake("sslfast::unit_rows_bwd")  # type: ignore[untyped-decorator]
def _(grad: Tensor, unit: Tensor, inverse_norm: Tensor) -> Tensor:
    return unit.new_empty(unit.shape)


def _save_outputs(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output)


def _backward_rule(ctx: Any, grad: Tensor | None, grad_inverse: Tensor | None) -> Tensor | None:
    unit, inverse_norm = ctx.saved_tensors
    result: Tensor | None = None
    if grad is not None:
        result = _backward(grad, unit, inverse_norm)
    if grad_inverse is not None:
        # Only second derivatives use the factor.
        of_inverse = reference.unit_rows_inverse_bwd(grad_inverse, unit, inverse_norm)
        result = of_inverse if result is None else result + of_inverse
    return result


def _forward_vmap(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    x = x.movedim(in_dims[0] or 0, 0)
    unit, inverse_norm = _forward(x.flatten(0, 1))
    return (unit.reshape(x.shape), inverse_norm.reshape(x.shape[:2])), (0, 0)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _second_backward_rule(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return reference.unit_rows_bwd_bwd(cotangent, *ctx.saved_tensors)


def _backward_vmap(
    info: Any, in_dims: tuple[int | None, ...], grad: Tensor, unit: Tensor, inverse_norm: Tensor
) -> tuple[Tensor, int]:
    tensors = [
        tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip((grad, unit, inverse_norm), in_dims, strict=True)
    ]
    result: Tensor = _backward(*(tensor.flatten(0, 1) for tensor in tensors))
    return result.reshape(tensors[1].shape), 0


_forward = differentiable("unit_rows_fwd", save=_save_outputs, backward=_backward_rule, vmap=_forward_vmap)
_backward = differentiable("unit_rows_bwd", save=_save_inputs, backward=_second_backward_rule, vmap=_backward_vmap)
