"""Stops trials early that do worse than others did; off in the paper's recipe."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

PRUNERS = ("none", "median", "halving")
"""What may stop a trial."""


def pruner_options(name: str, epochs: int) -> dict[str, Any]:
    """Give the options of Optuna's pruner, pinned.

    ``median``: after five complete trials and a sixth of the epochs, a trial stops whose best accuracy so far is below
    the median of the complete trials' at that epoch. ``halving``: the best third goes on after a ninth and after a
    third of the epochs (asynchronous successive halving, Li et al., 2020).
    """
    if name == "median":
        return {"n_startup_trials": 5, "n_warmup_steps": max(1, epochs // 6), "interval_steps": 1, "n_min_trials": 1}
    if name == "halving":
        return {
            "min_resource": max(1, math.ceil(epochs / 9)),
            "reduction_factor": 3,
            "min_early_stopping_rate": 0,
            "bootstrap_count": 0,
        }
    return {}


class Pruning:
    """Optuna's pruner over a copy of the study in memory, as it was before a batch began.

    Trials of the batch that are finished already, because a search was resumed, count as far as the others of their
    batch would have seen them: so the copy, and not the study, is asked.

    Args:
        name: one of ``PRUNERS``.
        epochs: of a trial.
        before: finished trials of the slots before the batch.
        batch: all trials of the batch, by slot.
    """

    def __init__(self, name: str, epochs: int, before: Sequence[FrozenTrial], batch: Mapping[int, FrozenTrial]) -> None:
        self.epochs = epochs
        self.pruned: set[int] = set()
        self._pruner: optuna.pruners.BasePruner | None = None
        if name == "none":
            return
        options = pruner_options(name, epochs)
        kind = optuna.pruners.MedianPruner if name == "median" else optuna.pruners.SuccessiveHalvingPruner
        self._pruner = kind(**options)
        self._study = optuna.create_study(direction="maximize", pruner=self._pruner)
        self._study.add_trials(before)
        self._storage = self._study._storage
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        self._identity: dict[int, int] = {}
        for slot, trial in sorted(batch.items()):
            finished = trial.state.is_finished()
            copy = create_trial(
                state=TrialState.RUNNING,
                params=trial.params,
                distributions=trial.distributions,
                system_attrs=trial.system_attrs if finished else {},
                intermediate_values=trial.intermediate_values if finished else {},
            )
            self._identity[slot] = self._storage.create_new_trial(study_id, template_trial=copy)

    def stops(self, slot: int, epoch: int, accuracy: float) -> bool:
        """Say whether a trial of the batch is to stop after an epoch."""
        if self._pruner is None:
            return False
        identity = self._identity[slot]
        self._storage.set_trial_intermediate_value(identity, epoch, accuracy)
        # Asked after the last epoch, too: halving notes there how far a trial came.
        stop = self._pruner.prune(self._study, self._storage.get_trial(identity)) and epoch + 1 < self.epochs
        if stop:
            self.pruned.add(slot)
        return stop

    def notes(self, slot: int) -> dict[str, Any]:
        """Give what the pruner keeps with a trial, for those who come later."""
        if self._pruner is None:
            return {}
        return dict(self._storage.get_trial(self._identity[slot]).system_attrs)
