"""Losses as modules, called as lightly's are: they store options and call the ops."""

from torch import Tensor, nn

from sslfast.ops.nt_xent import nt_xent


class NTXentLoss(nn.Module):
    """SimCLR's contrastive loss; see :func:`sslfast.nt_xent` for the formula.

    Args:
        temperature: dimensionless, > 0.

    Raises:
        ValueError: the temperature is nearer to zero than 1e-8.
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        if abs(temperature) < 1e-8:
            raise ValueError(f"NTXentLoss: abs(temperature) must be at least 1e-8, got {temperature}")
        self.temperature = temperature

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the scalar loss of two batches of projections, (N, D) each; row i of both shows one image."""
        return nt_xent(out0, out1, self.temperature)

    def extra_repr(self) -> str:
        """Show the temperature."""
        return f"temperature={self.temperature}"
