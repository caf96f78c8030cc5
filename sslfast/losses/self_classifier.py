"""The Self-Classifier loss as a module."""

from collections.abc import Sequence

from torch import Tensor, nn

from sslfast.losses._gathering import gathering_group, plain_number, require_distributed
from sslfast.ops.self_classifier import self_classifier


class SelfClassifierLoss(nn.Module):
    """Self-Classifier's loss over two global and any number of local views; see :func:`sslfast.self_classifier`.

    Args:
        row_temperature: temperature of the soft-max over classes, > 0.
        column_temperature: temperature of the soft-max over the batch, > 0.
        eps: added inside the logarithm; least sum that a normalisation divides by.
        gather_distributed: take the batches of all ranks for one.

    Raises:
        ValueError: ``gather_distributed`` with a torch that has no ``torch.distributed``.
    """

    def __init__(
        self,
        row_temperature: float = 0.1,
        column_temperature: float = 0.05,
        eps: float = 1e-8,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.row_temperature = plain_number(row_temperature)
        self.column_temperature = plain_number(column_temperature)
        self.eps = plain_number(eps)
        self.gather_distributed = gather_distributed
        require_distributed("SelfClassifierLoss", "gather_distributed", gather_distributed)

    def forward(self, logits: Sequence[Tensor] | Sequence[Sequence[Tensor]]) -> Tensor:
        """Return the scalar loss of a list over views of logits, (B, K) each, or of a list over heads of such lists."""
        return self_classifier(
            logits,
            self.row_temperature,
            self.column_temperature,
            eps=self.eps,
            group=gathering_group(self.gather_distributed),
        )

    def extra_repr(self) -> str:
        """Show the temperatures."""
        return f"row_temperature={self.row_temperature}, column_temperature={self.column_temperature}, eps={self.eps}"
