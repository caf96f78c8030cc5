"""The Barlow Twins loss as a module."""

from torch import Tensor, nn

from sslfast.losses._gathering import gathering_group, plain_number, require_distributed
from sslfast.ops.barlow_twins import barlow_twins


class BarlowTwinsLoss(nn.Module):
    """Barlow Twins' redundancy reduction; see :func:`sslfast.barlow_twins` for the formula.

    Args:
        lambda_param: weight of the terms off the diagonal.
        gather_distributed: take the batches of all ranks for one, in the mean and variance of each feature too (as the
            paper's code does with synchronised batch normalisation; lightly normalises each rank's rows alone).

    Raises:
        ValueError: ``gather_distributed`` with a torch that has no ``torch.distributed``.
    """

    def __init__(self, lambda_param: float = 5e-3, gather_distributed: bool = False) -> None:
        super().__init__()
        self.lambda_param = plain_number(lambda_param)
        self.gather_distributed = gather_distributed
        require_distributed("BarlowTwinsLoss", "gather_distributed", gather_distributed)

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Return the scalar loss of two batches of projections, (N, D) each; row i of both shows one image."""
        return barlow_twins(z_a, z_b, self.lambda_param, group=gathering_group(self.gather_distributed))

    def extra_repr(self) -> str:
        """Show the weight."""
        return f"lambda_param={self.lambda_param}"
