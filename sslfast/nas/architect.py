"""The step of the architecture: Adam on alphas and betas, by the loss on images that the weights do not see."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Architect:
    """Moves alphas and betas, to the first or the second order (Liu et al. 2019, section 2.3 and equation 7).

    First order: the gradient of L_valid(w, a). Second order: that of L_valid(w', a) with the weights after a step of
    their own optimiser, w' = w - e (m v + dL_train/dw + d w), whose second term
    e d2L_train/dadw dL_valid/dw' is a difference of two gradients at w +- r dL_valid/dw'.

    Args:
        model: called with a batch's tensors it gives the loss; its parameters are w.
        architecture: a: leaves that require gradients.
        learning_rate: of Adam.
        weight_decay: L2 of a.
        clip: longest gradient of a; 0: any.
    """

    DIFFERENCE = 1e-2
    """Length of r dL_valid/dw' (Liu et al. 2019, footnote 2)."""

    def __init__(
        self,
        model: nn.Module,
        architecture: Sequence[Tensor],
        *,
        learning_rate: float,
        weight_decay: float,
        clip: float = 0.0,
    ) -> None:
        self.model = model
        self.architecture = list(architecture)
        self.clip = clip
        self.optimizer = torch.optim.Adam(
            self.architecture, lr=learning_rate, betas=(0.5, 0.999), weight_decay=weight_decay
        )

    def step(
        self,
        valid: Sequence[Tensor],
        train: Sequence[Tensor] | None = None,
        network_optimizer: torch.optim.Optimizer | None = None,
    ) -> Tensor:
        """Move the architecture once, and return the loss on ``valid``, a scalar.

        Args:
            valid: the batch that the architecture is judged on, as the model takes it.
            train: the batch of the weights' next step; given with its optimiser, the step is of the second order.
            network_optimizer: SGD with momentum, of the weights; its learning rate is e.
        """
        if train is None or network_optimizer is None:
            loss: Tensor = self.model(*valid)
            gradients: Sequence[Tensor] = torch.autograd.grad(loss, self.architecture, materialize_grads=True)
        else:
            loss, gradients = self._second_order(valid, train, network_optimizer)
        for leaf, gradient in zip(self.architecture, gradients, strict=True):
            leaf.grad = gradient.detach()
        if self.clip:
            nn.utils.clip_grad_norm_(self.architecture, self.clip)
        self.optimizer.step()
        return loss.detach()

    def _second_order(
        self, valid: Sequence[Tensor], train: Sequence[Tensor], optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, list[Tensor]]:
        weights: dict[str, Tensor] = dict(self.model.named_parameters())
        group = optimizer.param_groups[0]
        rate, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        slopes = torch.autograd.grad(self.model(*train), list(weights.values()), materialize_grads=True)
        moved = {}
        with torch.no_grad():
            for (name, weight), slope in zip(weights.items(), slopes, strict=True):
                velocity = optimizer.state[weight].get("momentum_buffer")
                change = decay * weight + slope
                change = change if velocity is None else change + momentum * velocity
                moved[name] = (weight - rate * change).requires_grad_()
        # The statistics that this pass leaves belong to weights that are not kept.
        statistics = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        loss = functional_call(self.model, {**moved, **statistics}, tuple(valid))
        found = torch.autograd.grad(loss, [*self.architecture, *moved.values()], materialize_grads=True)
        direct = found[: len(self.architecture)]
        direction = dict(zip(weights, found[len(self.architecture) :], strict=True))
        length = torch.cat([slope.flatten() for slope in direction.values()]).norm()
        radius = self.DIFFERENCE / length
        plus, minus = (self._slopes_at(weights, direction, sign * radius, train) for sign in (1, -1))
        return loss, [
            own - rate * (high - low) / (2 * radius) for own, high, low in zip(direct, plus, minus, strict=True)
        ]

    def _slopes_at(
        self, weights: dict[str, Tensor], direction: dict[str, Tensor], radius: Tensor, train: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        with torch.no_grad():
            shifted = {name: weight + radius * direction[name] for name, weight in weights.items()}
        loss = functional_call(self.model, shifted, tuple(train))
        return torch.autograd.grad(loss, self.architecture, materialize_grads=True)


def first_not_finite(architecture: dict[str, Tensor], ends: Sequence[tuple[int, int]]) -> str | None:
    """Name the first edge whose alpha or beta is infinite or NaN; None where all are numbers.

    Args:
        architecture: alphas and betas by name, one row for each edge.
        ends: (state, node) of each edge.
    """
    for name, values in architecture.items():
        bad = ~values.detach().isfinite().reshape(len(values), -1).all(1)
        if bad.any():
            state, node = ends[int(bad.nonzero()[0])]
            kind, cell = name.split("_")
            return f"the {kind.removesuffix('s')} of edge {state} -> {node} of the {cell} cell"
    return None
