"""The search space of classifier heads: Table I of the autotuning paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from optuna.trial import Trial

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

    Raises:
        UsageError: a range is empty, or holds a value that no head can have.
    """

    layers: tuple[int, int] = (1, 3)
    units: tuple[int, int] = (128, 1024)
    units_step: int = 64
    learning_rate: tuple[float, float] = (1e-4, 1e-1)
    dropout: tuple[float, float] = (0.3, 0.5)
    dropout_step: float = 0.1

    def __post_init__(self) -> None:
        """Refuse a space that holds no head."""
        for name in ("layers", "units", "learning_rate", "dropout"):
            low, high = getattr(self, name)
            if not low <= high:
                raise UsageError(
                    f"the search space is empty: {name} from {low} to {high}; the first must not be larger"
                )
        if self.layers[0] < 1 or self.units[0] < 1 or self.units_step < 1 or self.dropout_step <= 0:
            raise UsageError(f"layers, units and steps must be at least 1 and positive, got {self}")
        if self.learning_rate[0] <= 0:
            raise UsageError(f"learning rates must be positive, got {self.learning_rate[0]}")
        if self.dropout[0] < 0 or self.dropout[1] >= 1:
            raise UsageError(f"dropout must lie in [0, 1), got {self.dropout}")

    @classmethod
    def paper(cls) -> Self:
        """Give Table I: 1-3 layers of 128..1024 units (step 64), lr 1e-4..1e-1 (log), dropout 0.3..0.5 (step 0.1)."""
        return cls()

    def suggest(self, trial: Trial) -> HeadSpec:
        """Draw one head; the width of layer i is a parameter only of trials that have a layer i."""
        count = trial.suggest_int("layers", *self.layers)
        units = tuple(trial.suggest_int(f"units_{index}", *self.units, step=self.units_step) for index in range(count))
        learning_rate = trial.suggest_float("learning_rate", *self.learning_rate, log=True)
        dropout = trial.suggest_float("dropout", *self.dropout, step=self.dropout_step)
        return HeadSpec(units, dropout, learning_rate)

    def spec(self, params: Mapping[str, Any]) -> HeadSpec:
        """Give the head that a trial's parameters stand for."""
        units = tuple(int(params[f"units_{index}"]) for index in range(int(params["layers"])))
        return HeadSpec(units, float(params["dropout"]), float(params["learning_rate"]))
