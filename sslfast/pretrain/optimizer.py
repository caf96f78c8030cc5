"""What moves the weights: SGD, LARS or AdamW, a warm-up and a cosine."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sslfast.pretrain.config import PretrainConfig


class Lars(torch.optim.Optimizer):
    r"""Layer-wise adaptive rates: SGD with momentum whose steps are proportional to a weight's length.

    With g the gradient plus ``weight_decay`` times the weight w, :math:`v \leftarrow m v + c \frac{|w|}{|g|} g` and
    :math:`w \leftarrow w - \eta v`; where a norm is 0, the factor is 1. Groups with ``adapt=False`` get plain momentum.
    You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017.

    Args:
        parameters: tensors or groups, as torch.optim takes them.
        lr: learning rate eta.
        momentum: m.
        weight_decay: of groups that do not say otherwise.
        trust: c.
    """

    def __init__(
        self, parameters: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            updates = [weight.grad for weight in weights]
            if group["weight_decay"]:
                updates = list(torch._foreach_add(updates, weights, alpha=group["weight_decay"]))
            if group["adapt"]:
                updates = list(torch._foreach_mul(updates, _factors(weights, updates, group["trust"])))
            moments = []
            for weight in weights:
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                moments.append(state["momentum_buffer"])
            torch._foreach_mul_(moments, group["momentum"])
            torch._foreach_add_(moments, updates)
            torch._foreach_add_(weights, moments, alpha=-group["lr"])


def _factors(weights: list[Tensor], updates: list[Tensor], trust: float) -> list[Tensor]:
    # All on the device: a norm of 0 must not stop the host.
    of_weights, of_updates = (torch.stack(list(torch._foreach_norm(some))) for some in (weights, updates))
    factors = torch.where((of_weights > 0) & (of_updates > 0), trust * of_weights / of_updates, 1.0)
    return list(factors.unbind())


def build_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """Make the optimiser of all weights of ``model``; vectors (biases, norms) are neither decayed nor adapted."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay, "factor": 1.0},
        {
            "params": [p for p in model.parameters() if p.ndim <= 1],
            "weight_decay": 0.0,
            "factor": config.bias_rate,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, foreach=True)
    for group in groups:
        group["adapt"] = group["params"][0].ndim > 1
    return Lars(groups, config.learning_rate, config.momentum, trust=config.trust)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def learning_rate(config: PretrainConfig, step: int, steps: int) -> float:
    """Give the learning rate of a step: a linear rise to the highest, then a cosine to the last."""
    rise = max(1, round(config.warmup * steps))
    if step < rise:
        start = config.learning_rate * config.warmup_from
        return config.learning_rate * (step + 1) / rise + start * (1 - (step + 1) / rise)
    fall = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
    return config.learning_rate * fall + config.learning_rate * config.final_rate * (1 - fall)
