"""Draws the parameters of a trial from the trials before it."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from sslfast.search.bank import stream
from sslfast.search.space import HeadSpace

SAMPLERS = ("tpe", "random")
"""What a search may draw with."""


@dataclass(frozen=True)
class Sampler:
    """How a search draws.

    Args:
        name: ``"tpe"`` or ``"random"``.
        options: of Optuna's TPESampler; what is not named has the version's default.
        every_layer: draw the widths of all layers in every trial (see ``HeadSpace.suggest``).
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    every_layer: bool = False

    def draw(
        self, space: HeadSpace, known: Sequence[FrozenTrial], seed: int, number: int
    ) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Draw trial ``number`` in a study of its own in memory: a function of the arguments alone.

        Args:
            space: what to draw from.
            known: the trials before it; running ones are kept away from.
            seed: of the search.
            number: of the trial.

        Returns:
            Parameters and their distributions.
        """
        key = stream(seed, 0, number) % 2**32
        sampler: optuna.samplers.BaseSampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self.name == "random":
                sampler = optuna.samplers.RandomSampler(seed=key)
            else:
                sampler = optuna.samplers.TPESampler(seed=key, **self.options)
        scratch = optuna.create_study(direction="maximize", sampler=sampler)
        scratch.add_trials(known)
        trial = scratch.ask()
        space.suggest(trial, every_layer=self.every_layer)
        return trial.params, trial.distributions

    def describe(self) -> dict[str, Any]:
        """Give what ``result.json`` keeps: nothing is left to a version's defaults."""
        name = "TPESampler" if self.name == "tpe" else "RandomSampler"
        return {"name": name, "optuna": optuna.__version__, "every_layer": self.every_layer, **self.options}


def make_sampler(name: str, trials: int) -> Sampler:
    """Give the sampler of a search over ``trials`` trials, its options pinned: Optuna's defaults change.

    ``multivariate`` draws parameters jointly. Ten random trials come first, fewer in a short search. Which form was
    adopted, and what the others came to, is in docs/tune.md.
    """
    if name == "random":
        return Sampler("random")
    options = {
        "multivariate": True,
        "group": False,
        "constant_liar": True,
        "n_startup_trials": min(10, math.ceil(trials / 3)),
        "n_ei_candidates": 24,
    }
    return Sampler("tpe", options)
