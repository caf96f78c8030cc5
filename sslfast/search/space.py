"""The search space of classifier heads: Table I of the autotuning paper."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from optuna.trial import Trial

from sslfast._reference.head_bank import OPTIMIZERS
from sslfast.errors import UsageError
from sslfast.models.head import HeadSpec


@dataclass(frozen=True)
class HeadSpace:
    """The heads that a search may try; the defaults are Table I of Kishore and Mukherjee, 2022.

    The paper's table starts the learning rate at 1e-4, its text at 1e-5: ``HeadSpace(learning_rate=(1e-5, 1e-1))``
    is the other reading.

    Args:
        layers: fewest and most hidden layers, inclusive.
        units: smallest and largest width of a hidden layer, inclusive.
        units_step: distance of two widths.
        learning_rate: smallest and largest learning rate; drawn log-uniformly.
        dropout: smallest and largest dropout probability, inclusive.
        dropout_step: distance of two dropout probabilities.
        optimizers: of "sgd", "adam", "adamw", "lars"; with more than one, the optimiser is searched as well (the
            paper's abstract names it, its table does not).

    Raises:
        UsageError: a range is empty, or holds a value that no head can have.
    """

    layers: tuple[int, int] = (1, 3)
    units: tuple[int, int] = (128, 1024)
    units_step: int = 64
    learning_rate: tuple[float, float] = (1e-4, 1e-1)
    dropout: tuple[float, float] = (0.3, 0.5)
    dropout_step: float = 0.1
    optimizers: tuple[str, ...] = ("sgd",)

    def __post_init__(self) -> None:
        """Refuse a space that holds no head."""
        for name in ("layers", "units", "learning_rate", "dropout"):
            low, high = getattr(self, name)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise UsageError(f"{name} must go from one finite number to another, got {low} to {high}")
            if not low <= high:
                raise UsageError(
                    f"the search space is empty: {name} from {low} to {high}; the first must not be larger"
                )
        if any(number != int(number) for number in (*self.layers, *self.units, self.units_step)):
            raise UsageError(f"layers, units and their step must be whole numbers, got {self}")
        if self.layers[0] < 1 or self.units[0] < 1 or self.units_step < 1 or not 0 < self.dropout_step < math.inf:
            raise UsageError(f"layers, units and steps must be at least 1 and positive, got {self}")
        if self.learning_rate[0] <= 0:
            raise UsageError(f"learning rates must be positive, got {self.learning_rate[0]}")
        if self.dropout[0] < 0 or self.dropout[1] >= 1:
            raise UsageError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not self.optimizers or len(set(self.optimizers)) < len(self.optimizers):
            raise UsageError(f"there must be an optimizer, each named once, got {list(self.optimizers)}")
        unknown = [name for name in self.optimizers if name not in OPTIMIZERS]
        if unknown:
            raise UsageError(f"unknown optimizer {unknown[0]!r}; there are: {', '.join(OPTIMIZERS)}")

    @classmethod
    def paper(cls) -> Self:
        """Give Table I: 1-3 layers of 128..1024 units (step 64), lr 1e-4..1e-1 (log), dropout 0.3..0.5 (step 0.1)."""
        return cls()

    def suggest(self, trial: Trial, *, every_layer: bool = False) -> HeadSpec:
        """Draw one head; the width of layer i is a parameter only of trials that have a layer i.

        With ``every_layer`` every trial draws all widths and those of layers that it has not are ignored: all trials
        then have the same parameters, and a sampler can draw them jointly.
        """
        count = trial.suggest_int("layers", *self.layers)
        widths = [f"units_{index}" for index in range(self.layers[1])]
        for name in widths[:count]:
            trial.suggest_int(name, *self.units, step=self.units_step)
        trial.suggest_float("learning_rate", *self.learning_rate, log=True)
        trial.suggest_float("dropout", *self.dropout, step=self.dropout_step)
        if len(self.optimizers) > 1:
            trial.suggest_categorical("optimizer", self.optimizers)
        for name in widths[count:] if every_layer else ():  # last: the same random numbers then give the same head
            trial.suggest_int(name, *self.units, step=self.units_step)
        return self.spec(trial.params)

    def spec(self, params: Mapping[str, Any]) -> HeadSpec:
        """Give the head that a trial's parameters stand for."""
        units = tuple(int(params[f"units_{index}"]) for index in range(int(params["layers"])))
        optimizer = str(params.get("optimizer", self.optimizers[0]))
        return HeadSpec(units, float(params["dropout"]), float(params["learning_rate"]), optimizer)

    def used(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Give the parameters that the head depends on: without widths of layers that it has not."""
        unused = {f"units_{index}" for index in range(int(params["layers"]), self.layers[1])}
        return {name: value for name, value in params.items() if name not in unused}
