"""The supernet: a stack of cells whose edges are mixtures, and the architecture that its alphas stand for."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sslfast._reference.primitives import PRIMITIVES
from sslfast.nas.cell import Cell, edge_count, primitives_of_edges
from sslfast.nas.discretise import choose
from sslfast.nas.genotype import Genotype

SMALLEST = 4
"""Side in pixels that two reductions leave one pixel of."""

ARCHITECTURE = ("alphas_normal", "alphas_reduce", "betas_normal", "betas_reduce")


class SearchNetwork(nn.Module):
    """A stem, `layers` search cells, and a classifier of the pooled last cell.

    Cells number layers // 3 and 2 layers // 3 reduce: they halve the sides and double the channels. ``state_dict()``
    has exactly the entries of the published supernet. The architecture is in neither ``state_dict()`` nor
    ``parameters()`` but in `arch_parameters`: alphas, (edges, primitives), and betas, (edges,), normal before reduce.

    Args:
        C: channels of a node in the first cells.
        num_classes: outputs of the classifier.
        layers: cells.
        criterion: loss of logits and target, for `_loss`.
        steps: nodes of a cell.
        multiplier: how many of a cell's last nodes make its output.
        stem_multiplier: channels of the stem over C.
        k: only C / k of the channels of an edge take part.
        primitives_normal: of the normal cells' edges: names that all have, or one list for each edge.
        primitives_reduce: of the reduction cells' edges.
        edge_normalisation: whether a node weighs its edges by soft-maxed betas (PC-DARTS); without it there are none.
        skip_dropout: of the edges, see `MixedOp`.

    Raises:
        ValueError: as `Cell`, or no cells.

    Source: Liu et al., "DARTS", 2019; Xu et al., "PC-DARTS", 2020, section 3.3.
    """

    alphas_normal: Tensor
    alphas_reduce: Tensor
    betas_normal: Tensor
    betas_reduce: Tensor

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        steps: int = 4,
        multiplier: int = 4,
        stem_multiplier: int = 3,
        *,
        k: int = 4,
        primitives_normal: Sequence[str] | Sequence[Sequence[str]] = PRIMITIVES,
        primitives_reduce: Sequence[str] | Sequence[Sequence[str]] = PRIMITIVES,
        edge_normalisation: bool = True,
        skip_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if layers < 1 or steps < 1 or not 1 <= multiplier <= steps:
            raise ValueError(
                "SearchNetwork: layers and steps must be at least 1, multiplier between 1 and steps, "
                f"got layers={layers}, steps={steps}, multiplier={multiplier}"
            )
        self._arguments: dict[str, Any] = {
            "C": C, "num_classes": num_classes, "layers": layers, "criterion": criterion, "steps": steps,
            "multiplier": multiplier, "stem_multiplier": stem_multiplier, "k": k,
            "edge_normalisation": edge_normalisation,
        }  # fmt: skip
        self._steps = steps
        self._multiplier = multiplier
        self._criterion = criterion
        self.edge_normalisation = edge_normalisation
        self.primitives_normal = primitives_of_edges(primitives_normal, steps)
        self.primitives_reduce = primitives_of_edges(primitives_reduce, steps)

        channels = stem_multiplier * C
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        before_last, last, channels = channels, channels, C
        self.cells = nn.ModuleList()
        reduced = False
        for number in range(layers):
            reduces = number in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduces else 1
            names = self.primitives_reduce if reduces else self.primitives_normal
            self.cells.append(
                Cell(
                    *(steps, multiplier, before_last, last, channels, reduces, reduced),
                    k=k,
                    primitives=names,
                    skip_dropout=skip_dropout,
                )
            )
            reduced = reduces
            before_last, last = last, multiplier * channels
        self.features = last
        """Channels of the pooled last cell."""
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, num_classes)
        self._draw_architecture()

    def _draw_architecture(self) -> None:
        edges = edge_count(self._steps)
        shapes: dict[str, tuple[int, ...]] = {
            "alphas_normal": (edges, len(self.primitives_normal[0])),
            "alphas_reduce": (edges, len(self.primitives_reduce[0])),
            "betas_normal": (edges,),
            "betas_reduce": (edges,),
        }
        for name in ARCHITECTURE:
            if name.startswith("alphas") or self.edge_normalisation:
                setattr(self, name, (1e-3 * torch.randn(shapes[name])).requires_grad_())

    @property
    def skip_dropout(self) -> float:
        """Probability that an entry of a skip connection's output is dropped."""
        return float(self.cells[0]._ops[0].skip_dropout)  # type: ignore[union-attr,index,arg-type]

    @skip_dropout.setter
    def skip_dropout(self, probability: float) -> None:
        for cell in self.cells:
            for edge in cell._ops:  # type: ignore[union-attr]
                edge.skip_dropout = probability

    def new(self) -> Self:
        """Make a supernet of the same form with new weights and this one's architecture."""
        made = type(self)(
            **self._arguments,
            primitives_normal=self.primitives_normal,
            primitives_reduce=self.primitives_reduce,
            skip_dropout=self.skip_dropout,
        ).to(self.alphas_normal.device)
        with torch.no_grad():
            for mine, other in zip(self.arch_parameters(), made.arch_parameters(), strict=True):
                other.copy_(mine)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Map images (B, 3, H, W), H and W at least 4, to logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.embed(input))
        return logits

    def embed(self, input: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the pooled last cell (B, features).

        Raises:
            ValueError: the images are smaller than two reductions allow.
        """
        if min(input.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"SearchNetwork: images must have sides of at least {SMALLEST} pixels, for two reductions, "
                f"got {tuple(input.shape)}"
            )
        mixtures = self.mixtures()
        s0 = s1 = self.stem(input)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, *mixtures[bool(cell.reduction)])
        pooled: Tensor = self.global_pooling(s1).flatten(1)
        return pooled

    def mixtures(self) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
        """Give the weights of operations and edges, soft-maxed, of the normal and of the reduction cells."""
        return (
            (self.alphas_normal.softmax(-1), self._edge_weights("betas_normal")),
            (self.alphas_reduce.softmax(-1), self._edge_weights("betas_reduce")),
        )

    def _edge_weights(self, name: str) -> Tensor | None:
        if not self.edge_normalisation:
            return None
        nodes = getattr(self, name).split([2 + i for i in range(self._steps)])
        return torch.cat([betas.softmax(-1) for betas in nodes])

    def _loss(self, input: Tensor, target: Tensor) -> Tensor:
        assert self._criterion is not None
        return self._criterion(self(input), target)

    def arch_parameters(self) -> list[Tensor]:
        """Give [alphas_normal, alphas_reduce, betas_normal, betas_reduce], the betas where there are any."""
        return list(self.architecture().values())

    def architecture(self) -> dict[str, Tensor]:
        """Give the same by name."""
        return {name: getattr(self, name) for name in ARCHITECTURE if hasattr(self, name)}

    def genotype(self, *, most_skips: int | None = None) -> Genotype:
        """Give the architecture that alphas and betas stand for.

        On an edge the operation of largest weight counts, "none" left out; a node keeps the two edges of largest weight
        times the edge's own.

        Args:
            most_skips: skip connections that the normal cell may keep; None: any number (P-DARTS, section 3.3.2).
        """
        with torch.no_grad():
            (normal, normal_edges), (reduce, reduce_edges) = self.mixtures()
            concat = range(2 + self._steps - self._multiplier, 2 + self._steps)
            return Genotype(
                choose(normal, normal_edges, self.primitives_normal, most_skips),
                concat,
                choose(reduce, reduce_edges, self.primitives_reduce),
                concat,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Moves the architecture along with the weights, to another device or dtype.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for tensor in self.arch_parameters():
                tensor.data = fn(tensor.data)
                if tensor.grad is not None:
                    tensor.grad.data = fn(tensor.grad.data)
        return self
