"""An edge of the supernet: the weighted sum of all its operations."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sslfast._reference.primitives import PRIMITIVES
from sslfast.nas.operations import build_operation
from sslfast.ops.mixed_edge import mixed_edge


class MixedOp(nn.Module):
    """The weighted sum of several operations on the first C / k channels, shuffled with the channels that bypass them.

    y = shuffle(concat(sum_o w_o o(x[:, :C/k]), bypass(x[:, C/k:]))), where bypass is the identity at stride 1 and a
    maximum over 2 x 2 pixels at stride 2, and shuffle sends channel g C/k + i to channel i k + g. A pool is followed by
    batch normalisation; no normalisation has a scale or a shift. Weights and buffers have the published names.
    Where all operations are of `PRIMITIVES`, `sslfast.mixed_edge` computes the edge; else, and where it does not apply,
    the modules do, one by one.

    Args:
        C: channels.
        stride: 1 or 2.
        k: only C / k of the channels take part: 4 in PC-DARTS, 1 in DARTS.
        primitives: the operations, of `sslfast.nas.operations.OPERATIONS`.
        skip_dropout: probability that an entry of skip_connect's output is dropped in training, at stride 1 (P-DARTS).

    Raises:
        ValueError: C is not a multiple of k, there is no such stride or operation, or there is none at all.

    Source: Xu et al., "PC-DARTS", 2020, equation 2 (the first channels in the place of random ones, as its code has
    it); Chen et al., "P-DARTS", 2019, section 3.3.2.
    """

    def __init__(
        self,
        C: int,
        stride: int,
        *,
        k: int = 4,
        primitives: Sequence[str] = PRIMITIVES,
        skip_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if k < 1 or k > C or C % k:
            raise ValueError(f"MixedOp: C must be a multiple of k, got C={C} and k={k}")
        if stride not in (1, 2):
            raise ValueError(f"MixedOp: stride must be 1 or 2, got {stride}")
        if not primitives or len(set(primitives)) < len(primitives):
            raise ValueError(f"MixedOp: primitives must be different operations, at least one, got {tuple(primitives)}")
        self.k = k
        self.stride = stride
        self.primitives = tuple(primitives)
        self.skip_dropout = skip_dropout
        self._ops = nn.ModuleList(self._built(C // k))
        self.fused = set(primitives) <= set(PRIMITIVES) and set(primitives) != {"none"} and skip_dropout < 1
        """Whether the fused edge is used where it applies."""

    def _built(self, channels: int) -> Iterator[nn.Module]:
        for name in self.primitives:
            op = build_operation(name, channels, self.stride, affine=False)
            yield nn.Sequential(op, nn.BatchNorm2d(channels, affine=False)) if "pool" in name else op

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Mix the operations.

        Args:
            x: (B, C, H, W).
            weights: one number for each primitive, (number of primitives,), usually soft-maxed.

        Returns:
            (B, C, ceil(H / stride), ceil(W / stride)).
        """
        if self.fused and self._applies(x):
            return self._fused(x, weights)
        channels = x.shape[1] // self.k
        mixed = self._mixed(x[:, :channels], weights)
        if self.k == 1:
            return mixed
        bypass = x[:, channels:]
        if self.stride == 2:
            bypass = functional.max_pool2d(bypass, 2, ceil_mode=True)
        return channel_shuffle(torch.cat([mixed, bypass], dim=1), self.k)

    def _applies(self, x: Tensor) -> bool:
        even = x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
        return x.device.type == "cpu" and (self.stride == 1 or even)

    def _fused(self, x: Tensor, weights: Tensor) -> Tensor:
        # The modules' order is the operator's: they are registered as they are met.
        parts = list(self._ops.modules())
        norms = [part for part in parts if isinstance(part, nn.BatchNorm2d)]
        statistics = [dict(norm.named_buffers()) for norm in norms]
        if self.training and norms:
            torch._foreach_add_([one["num_batches_tracked"] for one in statistics], 1)
        return mixed_edge(
            x,
            weights,
            [part.weight for part in parts if isinstance(part, nn.Conv2d)],
            [one[name] for one in statistics for name in ("running_mean", "running_var")],
            stride=self.stride,
            k=self.k,
            primitives=self.primitives,
            training=self.training,
            skip_dropout=self.skip_dropout,
        )

    def _mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        terms: list[Tensor] = [
            weight * self._output(name, op, x)
            for name, op, weight in zip(self.primitives, self._ops, weights, strict=True)
            if name != "none"  # adds zeros, and its weight's gradient is zero
        ]
        if not terms:
            nothing: Tensor = weights[0] * self._ops[0](x)
            return nothing
        # One after the other, as the published code adds: another order rounds otherwise.
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def _output(self, name: str, op: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = op(x)
        if name == "skip_connect" and self.stride == 1 and self.skip_dropout > 0:
            y = functional.dropout(y, self.skip_dropout, self.training)
        return y

    def extra_repr(self) -> str:
        """Say what the modules do not."""
        return f"stride={self.stride}, k={self.k}, skip_dropout={self.skip_dropout:g}"


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Send channel g C/groups + i to channel i groups + g.

    Args:
        x: (B, C, H, W), C a multiple of groups.
        groups: of channels.
    """
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)
