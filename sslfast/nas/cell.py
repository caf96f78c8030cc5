"""A cell of the supernet: every node takes every state before it, through a mixed edge."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslfast._reference.primitives import PRIMITIVES
from sslfast.nas.mixed_op import MixedOp
from sslfast.nas.operations import FactorizedReduce, ReLUConvBN


def edge_count(steps: int) -> int:
    """Count a cell's edges: node i takes the two inputs and the i nodes before it."""
    return sum(2 + i for i in range(steps))


def edge_ends(steps: int) -> list[tuple[int, int]]:
    """List each edge's (state, node), in the order of alpha's rows; nodes are states from 2 on."""
    return [(state, 2 + i) for i in range(steps) for state in range(2 + i)]


class Cell(nn.Module):
    """Nodes that sum their mixed edges, and the last nodes' channels side by side.

    node_j = sum_{i < j} b_ij mixed_ij(state_i, w_ij), with b_ij = 1 where there is no edge normalisation.

    Args:
        steps: nodes.
        multiplier: how many of the last states make the output.
        C_prev_prev: channels of the first input.
        C_prev: channels of the second input.
        C: channels of a node.
        reduction: whether the edges from the inputs have stride 2.
        reduction_prev: whether the cell before this one was such a cell.
        k: of the edges, see `MixedOp`.
        primitives: of each edge; or names alone, which all edges then have.
        skip_dropout: of the edges, see `MixedOp`.

    Raises:
        ValueError: as `MixedOp`, or the primitives are not one list for each edge.
    """

    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        *,
        k: int = 4,
        primitives: Sequence[str] | Sequence[Sequence[str]] = PRIMITIVES,
        skip_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0: nn.Module
        if reduction_prev:
            self.preprocess0 = FactorizedReduce(C_prev_prev, C, affine=False)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0, affine=False)
        self._steps = steps
        self._multiplier = multiplier
        self._ops = nn.ModuleList(
            MixedOp(C, 2 if reduction and state < 2 else 1, k=k, primitives=names, skip_dropout=skip_dropout)
            for (state, _), names in zip(edge_ends(steps), primitives_of_edges(primitives, steps), strict=True)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, weights2: Tensor | None = None) -> Tensor:
        """Run the cell.

        Args:
            s0: output of the cell before the last, (B, C_prev_prev, H0, W0).
            s1: output of the last cell, (B, C_prev, H, W).
            weights: of the operations, (edges, primitives).
            weights2: of the edges, (edges,): PC-DARTS's edge normalisation; None: all are 1.

        Returns:
            (B, multiplier x C, H', W').
        """
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edge = 0
        for _ in range(self._steps):
            node: Tensor | None = None
            for state in states:
                term = self._ops[edge](state, weights[edge])
                if weights2 is not None:
                    term = weights2[edge] * term
                node = term if node is None else node + term
                edge += 1
            assert node is not None
            states.append(node)
        return torch.cat(states[-self._multiplier :], dim=1)


def primitives_of_edges(primitives: Sequence[str] | Sequence[Sequence[str]], steps: int) -> tuple[tuple[str, ...], ...]:
    """Give each edge its own names.

    Args:
        primitives: names that all edges have, or one list for each edge.
        steps: nodes of the cell.

    Raises:
        ValueError: no names, not one list for each edge, edges with different numbers of names, or an edge that has
            none to choose but "none".
    """
    edges = edge_count(steps)
    if primitives and isinstance(primitives[0], str):
        each = (tuple(str(name) for name in primitives),) * edges
    else:
        each = tuple(tuple(names) for names in primitives)
    if len(each) != edges or len({len(names) for names in each}) != 1:
        raise ValueError(
            f"a cell of {steps} nodes needs equally many primitives for each of {edges} edges, "
            f"got {[len(names) for names in each]}"
        )
    for (state, node), names in zip(edge_ends(steps), each, strict=True):
        if not set(names) - {"none"}:
            raise ValueError(f"edge {state} -> {node} needs a primitive besides 'none', got {names}")
    return each
