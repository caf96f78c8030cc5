"""Trains many classifier heads at once on the same minibatches of cached features."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy
import torch
from torch import Tensor

from sslfast._reference.head_bank import (
    FIRST_WIDTH,
    NOISE_STEP,
    OPTIMIZERS,
    pack,
    parameter_count,
    state_size,
    unpack,
)
from sslfast.models.head import HeadSpec
from sslfast.ops import head_bank as _head_bank  # noqa: F401

DROPOUT_STEPS = 65536
"""Dropout probabilities are multiples of one over this."""


@dataclass(frozen=True)
class Optimizer:
    r"""How a head's weights follow their gradient g; the defaults are the autotuning paper's.

    - ``"sgd"``: Nesterov's, :math:`m \leftarrow \mu m + g`, :math:`w \leftarrow w - \eta (g + \mu m)`.
    - ``"adam"`` and ``"adamw"`` (decay apart from the gradient), as ``torch.optim`` has them.
    - ``"lars"``: as ``"sgd"``, a weight's gradient and decay times :math:`c |w| / (|g| + \lambda |w| + \epsilon)`,
      biases without decay (You, Gitman and Ginsburg, 2017).

    Args:
        name: one of the four.
        momentum: of SGD and LARS; of Adam the decay of the first moment. In [0, 1).
        second_decay: decay of Adam's second moment, in [0, 1).
        epsilon: what Adam and LARS add to a denominator.
        weight_decay: :math:`\lambda`, on weights and biases.
        trust: LARS's coefficient c.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """

    name: str = "sgd"
    momentum: float = 0.9
    second_decay: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    trust: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.name!r}")
        for name in ("momentum", "second_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("epsilon", "weight_decay", "trust"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")

    def numbers(self) -> list[float]:
        """Give the numbers in the order of the operator's table."""
        return [self.momentum, self.second_decay, self.epsilon, self.weight_decay, self.trust]


@dataclass
class _Place:
    """A head of the bank, or where one was: ``steps`` of its optimiser, and ``before`` it began anew."""

    spec: HeadSpec
    optimizer: Optimizer
    number: int
    state: Tensor | None
    steps: int = 0
    before: int = 0


class HeadBank:
    r"""Train M unlike heads at once; each ends as it would alone, whatever its neighbours are.

    Hidden layers are :math:`h' = \mathrm{dropout}(\mathrm{relu}(W h + b))`, the loss is the mean cross-entropy of a
    minibatch. First weights and dropout of a head depend on ``(seed, its number)`` only. On the CPU a head is trained
    by one core at a time, its weight gradient goes into the optimiser tile by tile and is never stored, and
    minibatches are laid out once for all heads; no Python runs per head and step. On a GPU the step of all heads is one
    captured graph.

    Args:
        specs: widths and dropout of each head (the learning rate of a step is an argument of ``train``).
        in_features: length D of a feature vector.
        classes: number of classes.
        seed: decides first weights and dropout, together with a head's number.
        optimizers: one for all heads, or one each; by default the one that a head's spec names.
        numbers: of the heads; by default 0, 1, ...
        dtype: of weights and features, ``torch.float32`` or ``torch.float64``.
        half: products of bfloat16 (weights and their sums stay float32); see ``can_use_half``.
        device: where to train.

    Raises:
        ValueError: an argument is out of range, or the processor has no bfloat16 products.
    """

    def __init__(
        self,
        specs: Sequence[HeadSpec],
        in_features: int,
        classes: int,
        seed: int = 0,
        *,
        optimizers: Optimizer | Sequence[Optimizer] | None = None,
        numbers: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        half: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if in_features < 1 or classes < 2:
            raise ValueError(
                f"there must be a feature and two classes, got {in_features} features and {classes} classes"
            )
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be float32 or float64, got {dtype}")
        if half and (dtype != torch.float32 or not can_use_half(device)):
            raise ValueError("half needs dtype float32 and a processor that multiplies bfloat16 (AVX512-BF16)")
        self.in_features, self.classes, self.seed = in_features, classes, seed
        self.dtype, self.half = dtype, half
        self.device = torch.empty(0, device=device).device  # "cuda" is one device of several
        if optimizers is None:
            optimizers = [Optimizer(spec.optimizer) for spec in specs]
        each = [optimizers] * len(specs) if isinstance(optimizers, Optimizer) else list(optimizers)
        named = list(range(len(specs))) if numbers is None else list(numbers)
        if len(each) != len(specs) or len(named) != len(specs):
            raise ValueError(
                f"{len(specs)} heads need as many optimizers and numbers, got {len(each)} and {len(named)}"
            )
        self._places: list[_Place] = []
        for spec, optimizer, number in zip(specs, each, named, strict=True):
            self._places.append(self._new(spec, optimizer, number))

    def __len__(self) -> int:
        """Count the places, those of stopped heads too."""
        return len(self._places)

    @property
    def running(self) -> list[int]:
        """The places whose heads are trained."""
        return [index for index, place in enumerate(self._places) if place.state is not None]

    def train(
        self,
        features: Tensor,
        labels: Tensor,
        order: Tensor,
        rates: Sequence[Sequence[float]] | Tensor,
        batch_size: int = 64,
    ) -> Tensor:
        """Train every running head on the rows that ``order`` names, ``batch_size`` of them a step.

        Args:
            features: (N, D), or (V, N, D): V views of the rows; finite.
            labels: (N,), int64, in [0, classes).
            order: int64; row r of view v is v N + r. The last step has what is left.
            rates: learning rate of each running head in each step, (running heads, steps).
            batch_size: rows of a step.

        Returns:
            The mean loss (running heads, steps), float64, before each step.

        Raises:
            ValueError: shapes, dtypes, devices or labels do not fit.
        """
        x, y = self._rows(features, labels)
        if order.dtype != torch.int64 or order.dim() != 1:
            raise ValueError(f"order must be int64 of one dimension, got {order.dtype} {tuple(order.shape)}")
        batch_size = operator.index(batch_size)
        steps = -(-len(order) // batch_size) if batch_size >= 1 else 0
        if steps < 1:
            raise ValueError(
                f"there must be a row and batch_size must be at least 1, got {len(order)} and {batch_size}"
            )
        schedule = torch.as_tensor(rates, dtype=torch.float64)
        running = self.running
        if schedule.shape != (len(running), steps):
            raise ValueError(
                f"rates must be {(len(running), steps)} (running heads, steps), got {tuple(schedule.shape)}"
            )
        if not ((schedule >= 0) & schedule.isfinite()).all():
            raise ValueError("rates must be at least 0 and finite, got one that is not")
        if order.min() < 0 or order.max() >= len(x):
            raise ValueError(
                f"order must name rows from 0 to {len(x) - 1}, got {int(order.min())} to {int(order.max())}"
            )
        if not running:
            return torch.empty(0, steps, dtype=torch.float64)
        places = [self._places[index] for index in running]
        numbers = torch.tensor([place.optimizer.numbers() for place in places], dtype=torch.float64)
        losses: Tensor = torch.ops.sslfast.head_bank_train(
            x,
            y,
            order,
            self._table(places),
            numbers,
            schedule,
            [place.state for place in places],
            batch_size,
            self.half,
        )
        for place in places:
            place.steps += steps
        return losses

    def evaluate(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Give accuracy (NaN where a logit is not finite) and mean cross-entropy of each running head, without dropout.

        Products are float32 (or float64), whatever they are in training.
        """
        x, y = self._rows(features, labels)
        places = [self._places[index] for index in self.running]
        if not places:
            return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
        found = torch.ops.sslfast.head_bank_evaluate(
            x, y, self._table(places), [place.state for place in places], False
        )
        return found[:, 0] / len(x), found[:, 1] / len(x)

    def load(self, index: int, weights: Sequence[Tensor]) -> None:
        """Give the head at a place other weights, in the order of ``weights``.

        Its optimiser begins anew, moments and count of steps; dropout's noise goes on.

        Raises:
            ValueError: the head was stopped, or its weights have other shapes.
        """
        place = self._places[index]
        if place.state is None:
            raise ValueError(f"the head at place {index} was stopped")
        widths = self._widths(place.spec)
        wanted = [shape for inputs, outputs in pairwise(widths) for shape in ((outputs, inputs), (outputs,))]
        given = [tuple(weight.shape) for weight in weights]
        if given != wanted:
            raise ValueError(f"the weights of the head at place {index} have the shapes {wanted}, got {given}")
        state = torch.zeros(state_size(widths, place.optimizer.name), dtype=self.dtype)
        pack([weight.to(self.dtype) for weight in weights], state[: parameter_count(widths)])
        place.state = state.to(self.device)
        place.before, place.steps = place.before + place.steps, 0

    def stop(self, index: int) -> None:
        """Train the head at a place no longer, and forget its weights."""
        self._places[index].state = None

    def replace(self, index: int, spec: HeadSpec, number: int, optimizer: Optimizer | None = None) -> None:
        """Put a new head at a place; its neighbours do not notice."""
        self._places[index] = self._new(spec, optimizer or self._places[index].optimizer, number)

    def weights(self, index: int) -> list[Tensor]:
        """Give a copy of weight (out, in) and bias (out) of each layer."""
        place = self._places[index]
        if place.state is None:
            raise ValueError(f"the head at place {index} was stopped")
        widths = self._widths(place.spec)
        return unpack(place.state[: parameter_count(widths)], widths)

    def _widths(self, spec: HeadSpec) -> list[int]:
        return [self.in_features, *spec.units, self.classes]

    def _new(self, spec: HeadSpec, optimizer: Optimizer, number: int) -> _Place:
        if not 0 <= spec.dropout < 1:  # also refuses NaN
            raise ValueError(f"dropout must lie in [0, 1), got {spec.dropout}")
        if any(units < 1 for units in spec.units):
            raise ValueError(f"a hidden layer must have at least 1 unit, got {spec.units}")
        widths = self._widths(spec)
        state = torch.zeros(state_size(widths, optimizer.name), dtype=self.dtype)
        start = torch.Generator().manual_seed(stream(self.seed, 2, number))
        pack([weight.to(self.dtype) for weight in first_weights(widths, start)], state[: parameter_count(widths)])
        return _Place(spec, optimizer, number, state.to(self.device))

    def _table(self, places: Sequence[_Place]) -> Tensor:
        room = max(len(place.spec.units) for place in places) + 1
        table = torch.zeros(len(places), FIRST_WIDTH + room, dtype=torch.int64)
        for row, place in zip(table, places, strict=True):
            dropped = min(round(place.spec.dropout * DROPOUT_STEPS), DROPOUT_STEPS - 1)
            outputs = [*place.spec.units, self.classes]
            # The operator counts one kind of steps; noise hashes key and step as key + NOISE_STEP step.
            key = stream(self.seed, 3, place.number) + place.before * NOISE_STEP
            key = (key + (1 << 63)) % (1 << 64) - (1 << 63)
            row[: FIRST_WIDTH + len(outputs)] = torch.tensor(
                [OPTIMIZERS.index(place.optimizer.name), place.steps, dropped, key, len(outputs), *outputs]
            )
        return table

    def _rows(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not (isinstance(features, Tensor) and isinstance(labels, Tensor)):
            raise TypeError(
                f"features and labels must be tensors, got {type(features).__name__} and {type(labels).__name__}"
            )
        if features.dim() not in (2, 3) or features.shape[-1] != self.in_features or not features.numel():
            raise ValueError(
                f"features must be (rows, {self.in_features}) or (views, rows, {self.in_features}) and not empty, "
                f"got {tuple(features.shape)}"
            )
        if features.dtype != self.dtype or features.device != self.device:
            raise ValueError(
                f"features must be {self.dtype} on {self.device}, got {features.dtype} on {features.device}"
            )
        if labels.dtype != torch.int64 or labels.shape != features.shape[-2:-1]:
            raise ValueError(
                f"labels must be int64, one for each of {features.shape[-2]} rows, "
                f"got {labels.dtype} {tuple(labels.shape)}"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.classes:
            raise ValueError(f"labels must lie from 0 to {self.classes - 1}, got {low} to {high}")
        return features.flatten(0, -2), labels


def can_use_half(device: torch.device | str = "cpu") -> bool:
    """Say whether products of bfloat16 are there: AVX512-BF16 on the CPU, every CUDA device that PyTorch serves."""
    if torch.device(device).type != "cpu":
        return True
    return bool(torch.ops.sslfast.cpu_has_bfloat16())


def first_weights(widths: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Draw weight and bias of each layer as torch.nn.Linear does: uniform within 1 / sqrt(inputs)."""
    weights = []
    for inputs, outputs in pairwise(widths):
        bound = 1 / math.sqrt(inputs)
        for shape in ((outputs, inputs), (outputs,)):
            weights.append(torch.empty(shape).uniform_(-bound, bound, generator=generator))
    return weights


def stream(*key: int) -> int:
    """Give a seed that depends on every number of ``key``, and is unlike that of any other key."""
    return int(numpy.random.SeedSequence(key).generate_state(1, numpy.uint64)[0] >> numpy.uint64(1))
