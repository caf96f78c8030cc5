"""A head's weights one step along their gradients, with the learning rate on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sslfast._head_bank.layout import Block, HeadPlan

RATES = 4
"""Numbers of a head and step: rate, rate over Adam's first correction, one over the root of the second, steps done."""


def rates_of(plans: Sequence[HeadPlan], rates: Tensor, done: Tensor) -> Tensor:
    """Give the numbers that ``update`` reads, float64 (steps, RATES, heads), from rates (heads, steps)."""
    after = done[:, None] + torch.arange(rates.shape[1]) + 1
    momentum, second = (torch.tensor([plan.numbers[k] for plan in plans], dtype=torch.float64) for k in (0, 1))
    first_correction = 1 - momentum[:, None] ** after
    root = (1 - second[:, None] ** after).rsqrt()
    return torch.stack([rates, rates / first_correction, root, after.double()]).permute(2, 0, 1).contiguous()


def update(plan: HeadPlan, index: int, values: Block, moments: Sequence[Block], gradients: Block, now: Tensor) -> None:
    """Move a head's weights and moments, in place; the gradients are spoilt.

    float32: the optimisers that PyTorch fuses, one kernel that reads weight, moments and gradient once. float64:
    kernel by kernel, since those read the rate as float32.

    Args:
        plan: the head.
        index: its place in the bank.
        values: the weights.
        moments: one block, or two.
        gradients: of the weights.
        now: this step's numbers (RATES, heads), of the weights' dtype.
    """
    momentum, second_decay, epsilon, decay, trust = plan.numbers
    weights, grads, first = values.runs[index], gradients.runs[index], moments[0].runs[index]
    rate = now[0, index]
    if plan.optimizer == "lars":
        for (weight, _), (slope, _) in zip(values.layers[index], gradients.layers[index], strict=True):
            _lengthen(weight, slope, decay, epsilon, trust)
        decay = 0.0
    fused = weights[0].dtype == torch.float32
    if plan.adaptive:
        second = moments[1].runs[index]
        if fused:
            step = torch._fused_adam_ if plan.optimizer == "adam" else torch._fused_adamw_
            step(
                weights, grads, first, second, [], [now[3, index]] * len(weights), lr=rate, beta1=momentum,
                beta2=second_decay, weight_decay=decay, eps=epsilon, amsgrad=False, maximize=False,
            )  # fmt: skip
            return
        for weight, grad, m, v in zip(weights, grads, first, second, strict=True):
            if plan.optimizer == "adam":
                grad.add_(weight, alpha=decay)
            else:
                weight.mul_(1 - rate * decay)
            m.mul_(momentum).add_(grad, alpha=1 - momentum)
            v.mul_(second_decay).addcmul_(grad, grad, value=1 - second_decay)
            weight.sub_(m / v.sqrt().mul_(now[2, index]).add_(epsilon) * now[1, index])
    elif fused and momentum:
        torch._fused_sgd_(
            weights, grads, first, weight_decay=decay, momentum=momentum, lr=rate, dampening=0.0, nesterov=True,
            maximize=False, is_first_step=False,
        )  # fmt: skip
    else:
        for weight, grad, m in zip(weights, grads, first, strict=True):
            grad.add_(weight, alpha=decay)
            m.mul_(momentum).add_(grad)
            weight.addcmul_(grad.add_(m, alpha=momentum), rate, value=-1)


def _lengthen(weight: Tensor, slope: Tensor, decay: float, epsilon: float, trust: float) -> None:
    """Add the decay to a weight's gradient and give it LARS's length."""
    size, length = weight.norm(), slope.norm()
    scale = trust * size / (length + decay * size + epsilon)
    slope.add_(weight, alpha=decay).mul_(torch.where((size > 0) & (length > 0), scale, torch.ones_like(scale)))
