"""What share of the differences between trials each hyperparameter explains."""

from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

LEAST_TRIALS = 8
"""Of fewer complete trials nothing can be said."""


def importances(trials: Iterable[FrozenTrial]) -> dict[str, float]:
    """Give fANOVA's shares (Hutter, Hoos and Leyton-Brown, 2014), which sum to 1; empty where nothing can be said.

    Parameters that some trials do not have are left out, and so are widths of layers that heads do not have: a width
    is asked about only where every head has the layer.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(complete) < LEAST_TRIALS or len({trial.value for trial in complete}) < 2:
        return {}
    fewest = min(int(trial.params["layers"]) for trial in complete)
    unused = {name for name in complete[0].params if name.startswith("units_") and int(name[6:]) >= fewest}
    study = optuna.create_study(direction="maximize")
    for trial in complete:
        kept = {name: value for name, value in trial.params.items() if name not in unused}
        study.add_trial(
            create_trial(
                value=trial.value,
                params=kept,
                distributions={name: trial.distributions[name] for name in kept},
            )
        )
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    return {name: float(share) for name, share in found.items()}
