"""Where the numbers of all heads of a bank lie while a device trains them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from sslfast._reference.head_bank import OPTIMIZERS, PANEL, parameter_count, rounded_up, widths_of


@dataclass(frozen=True)
class HeadPlan:
    """What a head's kernels are made for; heads of equal plans can be trained by one captured step.

    Args:
        optimizer: its name.
        dropped: of 65536 activations.
        key: of the dropout's noise.
        widths: from the features to the classes.
        numbers: momentum, second decay, epsilon, weight decay, trust.
    """

    optimizer: str
    dropped: int
    key: int
    widths: tuple[int, ...]
    numbers: tuple[float, ...]

    @property
    def padded(self) -> list[int]:
        """The widths, rounded up."""
        return [rounded_up(width) for width in self.widths]

    @property
    def adaptive(self) -> bool:
        """Whether it has a second moment."""
        return self.optimizer in ("adam", "adamw")


def plans_of(heads: Tensor, numbers: Tensor, inputs: int) -> tuple[HeadPlan, ...]:
    """Read the operator's two tables, but for the steps done."""
    return tuple(
        HeadPlan(OPTIMIZERS[head[0]], head[2], head[3], tuple(widths_of(inputs, head)), tuple(own))
        for head, own in zip(heads.tolist(), numbers.tolist(), strict=True)
    )


class Columns:
    """Places of the heads' units beside one another.

    Args:
        plans: the heads.
    """

    def __init__(self, plans: Sequence[HeadPlan]) -> None:
        deep = [index for index, plan in enumerate(plans) if len(plan.widths) > 2]
        self.linear = [index for index, plan in enumerate(plans) if len(plan.widths) == 2]
        """Heads without hidden layers: their first layer gives logits."""
        self.first: list[slice] = [slice(0)] * len(plans)
        """Of each head: its units among those of all first layers. Hidden units come first."""
        self.hidden: list[list[slice]] = [[] for _ in plans]
        """Of each head and hidden layer: its units among all hidden units of the bank."""
        at = 0
        for index in deep + self.linear:
            self.first[index] = slice(at, at + plans[index].padded[1])
            at += plans[index].padded[1]
        self.first_count = at
        self.first_hidden = at = sum(plans[index].padded[1] for index in deep)
        """Hidden units of all first layers: they are the first of both lists."""
        for index in deep:
            self.hidden[index].append(self.first[index])
            for width in plans[index].padded[2:-1]:
                self.hidden[index].append(slice(at, at + width))
                at += width
        self.hidden_count = at


class Block:
    """A number for every parameter of the bank: the weights, a moment, the gradients, or what enters products.

    The first layers stand together, (all their outputs, inputs); the later ones of a head lie in one piece.

    Args:
        plans: the heads.
        columns: where their units are.
        dtype: of the numbers, zero at first.
        device: where they lie.
    """

    def __init__(
        self, plans: Sequence[HeadPlan], columns: Columns, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.weight = torch.zeros(columns.first_count, plans[0].padded[0], dtype=dtype, device=device)
        self.bias = torch.zeros(columns.first_count, dtype=dtype, device=device)
        sizes = [parameter_count(plan.padded[1:]) for plan in plans]
        self.upper = torch.zeros(sum(sizes), dtype=dtype, device=device)
        self.runs: list[list[Tensor]] = []
        """Of each head: the pieces that it lies in."""
        self.layers: list[list[tuple[Tensor, Tensor]]] = []
        """Of each head: weight (outputs, inputs) and bias (outputs) of each layer, widths rounded up."""
        for plan, own, upper in zip(plans, columns.first, torch.split(self.upper, sizes), strict=True):
            layers = [(self.weight[own], self.bias[own])]
            self.runs.append([*layers[0], *([upper] if len(upper) else [])])
            at = 0
            for inputs, outputs in pairwise(plan.padded[1:]):
                end = at + inputs * outputs
                layers.append((upper[at:end].view(outputs, inputs), upper[end : end + outputs]))
                at = end + outputs
            self.layers.append(layers)

    def copy_cells(self, other: "Block") -> None:
        """Take the weights of another block, rounded to this one's dtype."""
        self.weight.copy_(other.weight)
        self.upper.copy_(other.upper)


def state_views(blocks: Sequence[Block], plans: Sequence[HeadPlan], states: Sequence[Tensor]) -> list[list[Tensor]]:
    """Give two lists of equally shaped views: of the blocks' numbers, and of the same numbers in the heads' states.

    A state holds weights and moments one after another, each as ``_reference.head_bank.pack`` lays them out.
    """
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for index, (plan, state) in enumerate(zip(plans, states, strict=True)):
        size = parameter_count(plan.widths)
        count = 3 if plan.adaptive else 2
        if state.shape != (count * size,):
            raise ValueError(f"head_bank_train: state {index} must be ({count * size},), got {tuple(state.shape)}")
        for block, part in zip(blocks, torch.split(state, size), strict=False):
            sizes = [tensor.numel() for layer in block.layers[index] for tensor in layer]
            places = iter(pairwise([0, *accumulate(sizes)]))
            for weight, bias in block.layers[index]:
                for mine, other in _panels(weight, part[slice(*next(places))]):
                    ours.append(mine)
                    theirs.append(other)
                ours.append(bias)
                theirs.append(part[slice(*next(places))])
    return [ours, theirs]


def _panels(weight: Tensor, packed: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    outputs, inputs = weight.shape
    whole = outputs // PANEL
    size = whole * PANEL * inputs
    if whole:
        rows = weight[: whole * PANEL].view(whole, PANEL, inputs)
        yield rows, packed[:size].view(whole, inputs, PANEL).transpose(1, 2)
    if outputs % PANEL:
        yield weight[whole * PANEL :], packed[size:].view(inputs, -1).t()
