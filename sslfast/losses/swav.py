"""The SwAV loss as a module."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslfast.losses._gathering import gathering_group, plain_number, require_distributed
from sslfast.ops.sinkhorn import sinkhorn
from sslfast.ops.swav_loss import swav_loss


class SwaVLoss(nn.Module):
    """SwAV's swapped prediction of assignments; see :func:`sslfast.swav_loss` for the formula.

    Args:
        temperature: of the predictions, > 0.
        sinkhorn_iterations: rounds of the assignment.
        sinkhorn_epsilon: temperature of the assignment, > 0.
        sinkhorn_gather_distributed: assign the batches of all ranks together. Every rank returns the loss of the whole
            batch; the mean of the gradients over the ranks is the gradient of the whole batch.

    Raises:
        ValueError: ``sinkhorn_gather_distributed`` with a torch that has no ``torch.distributed``.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        require_distributed("SwaVLoss", "sinkhorn_gather_distributed", sinkhorn_gather_distributed)
        self.temperature = plain_number(temperature)
        self.sinkhorn_iterations = plain_number(sinkhorn_iterations)
        self.sinkhorn_epsilon = plain_number(sinkhorn_epsilon)
        self.sinkhorn_gather_distributed = sinkhorn_gather_distributed

    def subloss(self, z: Tensor, q: Tensor) -> Tensor:
        """Return the cross entropy, a scalar, of the scores ``z`` against the assignments ``q``, (B, K) each."""
        return -(q * nn.functional.log_softmax(z / self.temperature, dim=1)).sum(dim=1).mean()

    def forward(
        self,
        high_resolution_outputs: Sequence[Tensor],
        low_resolution_outputs: Sequence[Tensor],
        queue_outputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the loss, shape ``(1,)`` as lightly's.

        Args:
            high_resolution_outputs: scores of rows and prototypes, (B, K) per view, of the views that are assigned.
            low_resolution_outputs: those of the views that only predict; may be empty.
            queue_outputs: those of former batches, one tensor per assigned view; they only take part in the assignment.
        """
        high_resolution_outputs, low_resolution_outputs = (
            _views(high_resolution_outputs),
            _views(low_resolution_outputs),
        )
        if queue_outputs is not None:
            queue_outputs = _queue(_views(queue_outputs), high_resolution_outputs)
        if "subloss" in self.__dict__ or type(self).subloss is not _SUBLOSS:
            return self._with_own_subloss(high_resolution_outputs, low_resolution_outputs, queue_outputs)
        loss = swav_loss(
            high_resolution_outputs,
            low_resolution_outputs,
            queue_outputs,
            temperature=self.temperature,
            iterations=self.sinkhorn_iterations,
            epsilon=self.sinkhorn_epsilon,
            group=gathering_group(self.sinkhorn_gather_distributed),
        )
        return loss.reshape(1)

    def _with_own_subloss(self, high: Sequence[Tensor], low: Sequence[Tensor], queue: Any) -> Tensor:
        """Call a subclass's or an instance's own ``subloss`` once per pair, as lightly does."""
        group = gathering_group(self.sinkhorn_gather_distributed)
        views = [*high, *low]
        total = high[0].new_zeros(1)
        for assigned, scores in enumerate(high):
            rows = scores.detach() if queue is None else torch.cat([scores.detach(), queue[assigned].detach()])
            q = sinkhorn(rows, self.sinkhorn_iterations, self.sinkhorn_epsilon, group=group)[: len(scores)]
            for predicted, z in enumerate(views):
                if predicted != assigned:
                    total = total + self.subloss(z, q) / (len(views) - 1)
        return total / len(high)

    def extra_repr(self) -> str:
        """Show the temperatures and the number of rounds."""
        return (
            f"temperature={self.temperature}, sinkhorn_iterations={self.sinkhorn_iterations}, "
            f"sinkhorn_epsilon={self.sinkhorn_epsilon}"
        )


_SUBLOSS = SwaVLoss.subloss
"""What the kernels compute."""


def _views(outputs: Any) -> Any:
    """Return a list where the views came stacked, (V, B, K)."""
    return list(outputs.unbind(0)) if isinstance(outputs, Tensor) and outputs.dim() == 3 else outputs


def _queue(queue: Any, high: Any) -> Any:
    """Leave out what belongs to no view, and give the rest the views' dtype where that holds all its numbers."""
    if not all(isinstance(views, (list, tuple)) for views in (queue, high)):
        return queue  # for the checks to name
    return [_in_dtype_of(view, held) for view, held in zip(high, queue, strict=False)]


def _in_dtype_of(view: Any, held: Any) -> Any:
    tensors = isinstance(view, Tensor) and isinstance(held, Tensor)
    if tensors and held.dtype != view.dtype and torch.promote_types(held.dtype, view.dtype) == view.dtype:
        return held.to(view.dtype)
    return held
