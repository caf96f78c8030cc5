"""From weights of operations and edges to the two best edges of each node, and to the best operations of each edge."""

from collections.abc import Sequence

from torch import Tensor

from sslfast.nas.cell import edge_ends
from sslfast.nas.genotype import Gene, skips

SKIP = "skip_connect"


def choose(
    weights: Tensor,
    edge_weights: Tensor | None,
    primitives: Sequence[Sequence[str]],
    most_skips: int | None = None,
) -> list[Gene]:
    """Choose a cell's genes.

    With more than ``most_skips`` skip connections, the one of least weight is struck out and the cell is chosen anew,
    until no more are left (Chen et al. 2019, section 3.3.2).

    Args:
        weights: of the operations, (edges, primitives), soft-maxed.
        edge_weights: of the edges, (edges,); None: all alike.
        primitives: names of each edge's columns.
        most_skips: that may be kept; None: any number.

    Returns:
        Two genes a node, the stronger first; of equal ones the one from the earlier state.
    """
    strengths = (weights if edge_weights is None else weights * edge_weights[:, None]).tolist()
    for row, names in zip(strengths, primitives, strict=True):
        if "none" in names:
            row[names.index("none")] = -1.0
    while True:
        kept = _strongest(strengths, primitives)
        genes = [(primitives[edge][column], state) for edge, column, state in kept]
        if most_skips is None or skips(genes) <= most_skips:
            return genes
        left = [
            (strengths[edge][column], edge, column)
            for edge, column, _ in kept
            if primitives[edge][column] == SKIP and strengths[edge][column] > 0
        ]
        if not left:  # the edges have nothing else
            return genes
        _, edge, column = min(left)
        strengths[edge][column] = 0.0


def _strongest(strengths: list[list[float]], primitives: Sequence[Sequence[str]]) -> list[tuple[int, int, int]]:
    """Give (edge, column, state) of two edges a node."""
    best = [max(range(len(row)), key=row.__getitem__) for row in strengths]
    steps = 0
    while len(edge_ends(steps)) < len(strengths):
        steps += 1
    found = []
    first = 0
    for node in range(steps):
        edges = range(first, first + 2 + node)
        ranked = sorted(edges, key=lambda edge: -strengths[edge][best[edge]])[:2]
        found += [(edge, best[edge], edge - first) for edge in ranked]
        first += 2 + node
    return found


def keep_best(weights: Tensor, primitives: Sequence[Sequence[str]], count: int) -> tuple[tuple[str, ...], ...]:
    """Leave each edge its ``count`` operations of largest weight, in their order (P-DARTS, section 3.2).

    Args:
        weights: of the operations, (edges, primitives), soft-maxed.
        primitives: names of each edge's columns.
        count: that are kept; "none" is one of them only where something else is too.
    """
    kept = []
    for row, names in zip(weights.tolist(), primitives, strict=True):
        ranked = sorted(range(len(names)), key=lambda column: -row[column])
        if count == 1:
            ranked = [column for column in ranked if names[column] != "none"]
        kept.append(tuple(names[column] for column in sorted(ranked[:count])))
    return tuple(kept)
