"""A training step of a whole bank of heads: one fixed sequence of PyTorch's kernels over tensors that stay in place.

Nothing in a step asks the device for a number, no shape depends on data, and what changes from step to step (rows,
dropout's noise, learning rates, where the loss goes) is found through a counter on the device. So a CUDA graph can
hold the step; on a CPU the same step runs eagerly, which is how it is tested. ``graph`` captures it.

The first layers of all heads are one product, and so are their weights' gradients: features are read once for all
heads. Later layers, and each head's optimiser, are branches of their own that may overlap.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sslfast._head_bank.layout import Block, Columns, HeadPlan, state_views
from sslfast._head_bank.noise import Noise
from sslfast._head_bank.update import RATES, rates_of, update

RUN_STEPS = 64
"""Rows, noise and rates of so many steps are laid out at a time."""
RUN_BYTES = 64 << 20
"""Fewer, where their rows would take more than this."""

Product = Callable[[Tensor, Tensor, Tensor], object]
"""Writes the product of two matrices into the third."""


class Branches(Protocol):
    """Where kernels are put that do not need one another."""

    def branch(self, number: int) -> AbstractContextManager[object]:
        """Put what follows beside other branches, after all that came before the branch's first use; -1: aside."""

    def join(self) -> None:
        """Let what follows wait for all branches."""


class Serial:
    """No branches: one kernel after another."""

    def branch(self, number: int) -> AbstractContextManager[object]:
        """Change nothing."""
        return nullcontext()

    def join(self) -> None:
        """Change nothing."""


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write the product of two matrices."""
    torch.mm(a, b, out=out)


def multiply_widened(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write the product of two bfloat16 matrices with float32 sums, where no kernel does."""
    torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


@dataclass(frozen=True)
class Layer:
    """What a step keeps of a layer's units, each (batch, units).

    Args:
        output: before the activation.
        gate: what a hidden layer's output, and its error, are multiplied by: 0 where it is negative or dropped.
        cells: of a hidden layer, what enters products with its values.
        error: gradient of the output.
        error_cells: what enters products with it; the error itself, or its copy in bfloat16.
    """

    output: Tensor
    gate: Tensor
    cells: Tensor
    error: Tensor
    error_cells: Tensor

    @classmethod
    def make(cls, like: Tensor, units: int, cells: torch.dtype) -> "Layer":
        """Make a layer of so many units, with the rows, device and dtype of a tensor."""
        output, gate, error = (like.new_zeros(len(like), units) for _ in range(3))
        return cls(output, gate, output.to(cells, copy=True), error, error.to(cells))

    def at(self, rows: slice, units: slice = slice(None)) -> "Layer":
        """Give some of the rows and units."""
        every = (self.output, self.gate, self.cells, self.error, self.error_cells)
        return Layer(*(tensor[rows, units] for tensor in every))


class BankStep:
    """The step of a bank, and the tensors that it works on.

    Args:
        plans: the heads, one at least.
        batch: rows of a step, at most.
        dtype: of weights and sums, float32 or float64.
        half: products of bfloat16.
        device: where everything lies.
        branches: how kernels are put side by side.
        half_product: multiplies bfloat16 into float32.
    """

    def __init__(
        self,
        plans: Sequence[HeadPlan],
        batch: int,
        dtype: torch.dtype,
        half: bool,
        device: torch.device | str = "cpu",
        branches: Branches | None = None,
        half_product: Product = multiply_widened,
    ) -> None:
        self.plans, self.batch, self.half = tuple(plans), batch, half
        self.branches = branches or Serial()
        self._product: Product = half_product if half else multiply
        self.columns = columns = Columns(plans)
        cells = torch.bfloat16 if half else dtype

        def block(of: torch.dtype = dtype) -> Block:
            return Block(plans, columns, of, device)

        def zeros(*shape: int, of: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=of, device=device)

        self.values, self.gradients = block(), block()
        self.moments = [block() for _ in range(2 if any(plan.adaptive for plan in plans) else 1)]
        self.cells = block(cells) if half else self.values
        self.noise = Noise(plans, columns, batch, dtype, device)

        heads, inputs = len(plans), plans[0].padded[0]
        self.run_steps = max(1, min(RUN_STEPS, RUN_BYTES // (inputs * batch * cells.itemsize)))
        self.rows = zeros(self.run_steps * batch, inputs, of=cells)
        self.labels = zeros(self.run_steps * batch, of=torch.int64)
        self.hashes = zeros(self.run_steps + 1, self.noise.segments, 2, of=torch.int32)
        self.rates = zeros(self.run_steps, RATES, heads)
        self.losses = zeros(self.run_steps, heads, of=torch.float64)
        self.turn = zeros(1, of=torch.int64)
        """Which step of the run is next."""
        self._next = zeros(1, of=torch.int64)

        self._offsets, self._positions = torch.arange(batch, device=device), zeros(batch, of=torch.int64)
        self._x, self._y = zeros(batch, inputs, of=cells), zeros(batch, of=torch.int64)
        self._now = zeros(1, RATES, heads)
        self._classes = torch.arange(plans[0].widths[-1], device=device)
        self._is_class = zeros(batch, len(self._classes))
        self._logits, self._error = (zeros(heads, batch, plans[0].padded[-1]) for _ in range(2))
        self._error_cells = self._error.to(cells)
        self._first = Layer.make(self._is_class, columns.first_count, cells)
        everything = slice(None)
        self._hidden = [
            [
                Layer.make(self._is_class, own.stop - own.start, cells) if layer else self._first.at(everything, own)
                for layer, own in enumerate(units)
            ]
            for units in columns.hidden
        ]
        self._by_cost = sorted(range(heads), key=lambda index: -sum(map(len, self.values.runs[index])))

    def load(self, states: Sequence[Tensor]) -> None:
        """Read weights and moments from the heads' states."""
        for ours, theirs in zip(*state_views([self.values, *self.moments], self.plans, states), strict=True):
            ours.copy_(theirs)

    def store(self, states: Sequence[Tensor]) -> None:
        """Write weights and moments into the heads' states."""
        for ours, theirs in zip(*state_views([self.values, *self.moments], self.plans, states), strict=True):
            theirs.copy_(ours)

    def fill(self, features: Tensor, labels: Tensor, order: Tensor, hashes: Tensor, rates: Tensor) -> None:
        """Lay out a run: its rows and their labels, and of each step the noise's hashes and the rates."""
        self.rows[: len(order), : features.shape[1]].copy_(features.index_select(0, order))
        self.labels[: len(order)].copy_(labels.index_select(0, order % len(labels)))
        self.hashes[: len(hashes)].copy_(hashes)
        self.rates[: len(rates)].copy_(rates)
        self.turn.zero_()
        self._draw(self.turn)

    def __call__(self, count: int) -> None:
        """Train all heads on the next ``count`` rows of the run, a minibatch or the smaller last one."""
        branches, rows = self.branches, slice(count)
        x, y = self._x[rows], self._y[rows]
        torch.add(self._offsets[rows], self.turn, alpha=self.batch, out=self._positions[rows])
        torch.index_select(self.rows, 0, self._positions[rows], out=x)
        torch.index_select(self.labels, 0, self._positions[rows], out=y)
        torch.index_select(self.rates, 0, self.turn, out=self._now)
        if self.half:
            with branches.branch(-1):
                self.cells.upper.copy_(self.values.upper)
            self.cells.weight.copy_(self.values.weight)
        first = self._first.at(rows)
        hidden = first.at(slice(None), slice(self.columns.first_hidden))
        self._affine(self.values.bias, x, self.cells.weight, first.output)
        branches.join()
        self._activate(hidden, slice(self.columns.first_hidden))
        for number, index in enumerate(self._by_cost):
            with branches.branch(number):
                self._forward(index, rows)
        branches.join()
        with branches.branch(-1):  # no gradient waits for these two
            self._loss(y)
            self._draw(torch.add(self.turn, 1, out=self._next))
        self._output_error(y)
        for number, index in enumerate(self._by_cost):
            with branches.branch(number):
                self._backward(index, rows)
        branches.join()
        hidden.error.mul_(hidden.gate)
        self._parameter_gradients(first.error, first.error_cells, x, self.gradients.weight, self.gradients.bias)
        for number, index in enumerate(self._by_cost):
            with branches.branch(number):
                update(self.plans[index], index, self.values, self.moments, self.gradients, self._now[0])
        branches.join()
        self.turn.add_(1)

    def _affine(self, bias: Tensor, inputs: Tensor, weight: Tensor, output: Tensor) -> None:
        if self.half:
            self._product(inputs, weight.t(), output)
            output.add_(bias)
        else:
            torch.addmm(bias, inputs, weight.t(), out=output)

    def _activate(self, layer: Layer, own: slice) -> None:
        """ReLU and dropout: their derivative, and their value in cells."""
        scale = self.noise.scale.flatten(0, 1)[: len(layer.output), own]
        torch.ops.aten.threshold_backward.grad_input(scale, layer.output, 0, grad_input=layer.gate)
        torch.mul(layer.output, layer.gate, out=layer.cells)

    def _forward(self, index: int, rows: slice) -> None:
        """Give a head's logits from what its first layer gave."""
        logits = self._logits[index, rows]
        layers = [layer.at(rows) for layer in self._hidden[index]]
        if not layers:
            logits.copy_(self._first.at(rows, self.columns.first[index]).output)
        for number, below in enumerate(layers):
            bias, weight = self.values.layers[index][number + 1][1], self.cells.layers[index][number + 1][0]
            if number + 1 == len(layers):
                self._affine(bias, below.cells, weight, logits)
            else:
                self._affine(bias, below.cells, weight, layers[number + 1].output)
                self._activate(layers[number + 1], self.columns.hidden[index][number + 1])

    def _loss(self, y: Tensor) -> None:
        """Note every head's mean cross-entropy."""
        logs = torch.log_softmax(self._logits[:, : len(y), : len(self._classes)], 2)
        own = logs.gather(2, y[None, :, None].expand(len(logs), len(y), 1))
        self.losses.index_copy_(0, self.turn, own.sum((1, 2), dtype=torch.float64).div_(-len(y))[None])

    def _output_error(self, y: Tensor) -> None:
        """Give the gradient of every head's mean cross-entropy by its logits."""
        count, classes = len(y), len(self._classes)
        answers = torch.eq(y[:, None], self._classes, out=self._is_class[:count])
        chances = self._logits[:, :count, :classes].softmax(2)
        torch.div(chances.sub_(answers), count, out=self._error[:, :count, :classes])

    def _draw(self, turn: Tensor) -> None:
        """Draw the noise of a step; all rows, whatever the step before had."""
        if self.noise.drops:
            self.noise.draw(self.hashes, turn)

    def _backward(self, index: int, rows: slice) -> None:
        """Give the gradients of a head's later layers, and the error of its first one without ReLU and dropout."""
        error, cells = self._error[index, rows], self._error_cells[index, rows]
        for number, layer in reversed(list(enumerate(self._hidden[index], 1))):
            below = layer.at(rows)
            self._parameter_gradients(error, cells, below.cells, *self.gradients.layers[index][number])
            self._product(cells, self.cells.layers[index][number][0], below.error)
            if number > 1:
                below.error.mul_(below.gate)
            error, cells = below.error, below.error_cells
        if not self._hidden[index]:
            self._first.at(rows, self.columns.first[index]).error.copy_(error)

    def _parameter_gradients(self, error: Tensor, cells: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor) -> None:
        if self.half:
            cells.copy_(error)
        self._product(cells.t(), inputs, weight)
        torch.sum(error, 0, out=bias)


def train(
    step: BankStep,
    features: Tensor,
    labels: Tensor,
    order: Tensor,
    done: Tensor,
    rates: Tensor,
    replay: Callable[[int], None],
) -> Tensor:
    """Train on the rows of ``order``, run by run; ``replay`` does a step of so many rows.

    Args:
        step: with the heads' weights loaded.
        features: (rows, D), on the step's device.
        labels: (N,), N dividing rows.
        order: int64.
        done: steps that each head did before, int64 (heads,), on the CPU.
        rates: float64 (heads, steps), on the CPU.
        replay: the step, or its captured form.

    Returns:
        The losses, float64 (heads, steps), on the device.
    """
    steps, batch, device = rates.shape[1], step.batch, step.rows.device
    numbers = rates_of(step.plans, rates, done).to(device, step.rates.dtype)
    hashes = step.noise.hashes(done, steps).to(device)
    losses = torch.empty(steps, len(step.plans), dtype=torch.float64, device=device)
    for start in range(0, steps, step.run_steps):
        run = slice(start, min(steps, start + step.run_steps))
        rows = order[run.start * batch : run.stop * batch]
        step.fill(features, labels, rows, hashes[run], numbers[run])
        for at in range(0, len(rows), batch):
            replay(min(batch, len(rows) - at))
        losses[run] = step.losses[: run.stop - run.start]
    return losses.t()
