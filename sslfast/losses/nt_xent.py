"""SimCLR's and MoCo's contrastive loss as a module."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._reference import nt_xent as reference
from sslfast.losses._gathering import gathering_group, plain_number, require_distributed
from sslfast.losses.memory_bank import MemoryBankModule
from sslfast.ops._arguments import (
    in_full_precision,
    require_number,
    require_same_matrices,
    require_tensors,
    under_autocast,
)
from sslfast.ops.nt_xent import nt_xent


class NTXentLoss(nn.Module):
    """The contrastive loss of SimCLR and, with a memory bank, of MoCo; see :func:`sslfast.nt_xent` for the formula.

    Args:
        temperature: dimensionless; a negative one (which lightly allows) is computed in plain PyTorch, by one process.
            Likewise everything where ``cross_entropy`` was replaced or given a hook: it is then called with the logits.
        memory_bank_size: ``(rows, dim)`` of the bank whose rows are the negatives; 0 for none: the negatives are the
            other rows of the batch.
        gather_distributed: take the batches of all ranks for one. Every rank returns the loss of the whole batch; the
            mean of the gradients over the ranks is the gradient of the whole batch.

    Raises:
        ValueError: a temperature nearer to zero than 1e-8; a size that the bank refuses; ``gather_distributed`` with a
            torch that has no ``torch.distributed``.
    """

    def __init__(
        self, temperature: float = 0.5, memory_bank_size: int | Sequence[int] = 0, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed=gather_distributed)
        self.temperature = temperature = plain_number(temperature)
        self.gather_distributed = gather_distributed
        # Called only where somebody has changed it.
        self.cross_entropy: nn.Module = nn.CrossEntropyLoss(reduction="mean")
        self.eps = 1e-8
        require_number("NTXentLoss", "temperature", temperature, positive=False)
        if abs(temperature) < self.eps:
            raise ValueError(f"NTXentLoss: abs(temperature) must be at least 1e-8, got {temperature}")
        require_distributed("NTXentLoss", "gather_distributed", gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the scalar loss of two batches of projections, (N, D) each; row i of both shows one image.

        With a memory bank, the rows of ``out0`` are the anchors and those of ``out1`` their positives; those are stored
        in the bank, for later batches, if ``out0`` requires a gradient.
        """
        group = gathering_group(self.gather_distributed)
        # All that can be refused is refused here: a batch that the loss refuses must not be stored.
        temperature = require_number("NTXentLoss", "temperature", self.temperature, positive=False)
        require_number("NTXentLoss", "temperature", abs(temperature))
        own = None if is_mean_over_rows(self.cross_entropy) else self.cross_entropy
        if group is not None and own is not None:
            raise ValueError("NTXentLoss: a cross_entropy of your own is for one process, got a group")
        out0, out1 = under_autocast(out0, out1)
        require_tensors("NTXentLoss", out0=out0, out1=out1)
        require_same_matrices("NTXentLoss", "(N, D)", out0=out0, out1=out1)
        if self.memory_bank.size[0] > 0:
            depth = self.memory_bank.bank.shape[1]
            if out0.shape[1] != depth:
                raise ValueError(
                    f"NTXentLoss: out0 and out1 must have the {depth} columns of the memory bank, "
                    f"got {tuple(out0.shape)}"
                )
            keys = nn.functional.normalize(out1.detach().to(self.memory_bank.bank.dtype), dim=1)
            # Under no_grad nothing is stored, whatever the network requires.
            _, negatives = self.memory_bank(keys, update=out0.requires_grad and torch.is_grad_enabled())
            if own is not None:
                return _with(own, out0, out1, temperature, negatives.to(out0.device))
            return against_bank(out0, out1, negatives, self.temperature, group)
        if own is not None:
            return _with(own, out0, out1, temperature, None)
        if self.temperature > 0:
            return nt_xent(out0, out1, self.temperature, group=group)
        if group is not None:
            ranks = torch.distributed.get_world_size(group)
            raise ValueError(f"NTXentLoss: a negative temperature is for one process, got a group of {ranks}")
        full = in_full_precision(out0), in_full_precision(out1)
        return reference.nt_xent(*full, self.temperature).to(out0.dtype)

    def extra_repr(self) -> str:
        """Show the temperature."""
        return f"temperature={self.temperature}"


def is_mean_over_rows(entropy: Any) -> bool:
    """Tell whether a ``cross_entropy`` is the one that the kernels compute: the mean over all rows, and no more.

    One that was made inside ``torch.compile`` does not show its options there: it counts as another one.
    """
    return (
        type(entropy) is nn.CrossEntropyLoss
        and entropy.weight is None
        and entropy.reduction == "mean"
        and entropy.label_smoothing == 0
        and entropy.ignore_index < 0
        and "forward" not in entropy.__dict__
        and not entropy._forward_hooks
        and not entropy._forward_pre_hooks
        and not entropy._backward_hooks
        and not entropy._backward_pre_hooks
    )


def _with(entropy: nn.Module, z0: Tensor, z1: Tensor, temperature: float, negatives: Tensor | None) -> Tensor:
    full = in_full_precision(z0), in_full_precision(z1)
    loss: Tensor = entropy(*reference.logits_and_labels(*full, temperature, negatives))
    return loss.to(z0.dtype)


def against_bank(z0: Tensor, z1: Tensor, negatives: Tensor, temperature: float, group: Any) -> Tensor:
    """Return the loss with the rows of a bank, ``(D, M)`` on any device and of any precision, as negatives."""
    # cos(-a, b) / t = cos(a, b) / -t
    anchors = z0 if temperature > 0 else -z0
    return nt_xent(anchors, z1, abs(temperature), negatives=negatives.to(z0.device), group=group)
