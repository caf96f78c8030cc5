"""The trials of a study: which are to be tried, which somebody trains, and which were given up."""

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from sslfast.errors import UsageError
from sslfast.run import first_difference
from sslfast.search.leases import Holder, Lease
from sslfast.search.sampler import Sampler
from sslfast.search.space import HeadSpace

EXCESS = "another process was faster"
"""Why a trial is given up that two processes made at once."""


class Trials:
    """A budget of trials in a storage that other processes may use, too.

    A search of T trials has slots 0 to T - 1. A slot's parameters are drawn from the trials of the slots before it,
    and its head is trained with the slot as its number, so what a slot comes to does not depend on which attempt it
    is. An attempt is one of Optuna's trials: written with all its parameters, its slot and a lease in one operation,
    so it is there whole or not at all. An attempt whose lease has ended is failed, and its parameters are tried again
    in a new one. Of two attempts at a slot the earlier one counts and the other is given up at once: that many
    processes together make T trials exactly needs no lock.

    Args:
        study: Optuna's.
        count: T.
        parallel: slots of a batch.
        alone: no other process uses the storage; whatever runs in it is a dead process's.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, count: int, parallel: int, *, alone: bool) -> None:
        self.study, self.storage = study, storage
        self.count, self.parallel, self.alone = count, parallel, alone
        self.holder = Holder()
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._mine: set[int] = set()  # identities of the attempts that this process trains

    def attempts(self) -> list[FrozenTrial]:
        """Give all attempts at slots, in order."""
        every = self.study.get_trials(deepcopy=False)
        return [trial for trial in every if trial.user_attrs.get("slot", self.count) < self.count]

    def current(self) -> dict[int, FrozenTrial]:
        """Give the attempt that counts of each slot that has one, in order of slots."""
        found: dict[int, FrozenTrial] = {}
        for trial in self.attempts():
            if not given_up(trial):
                found.setdefault(trial.user_attrs["slot"], trial)
        return dict(sorted(found.items()))

    def best(self) -> FrozenTrial | None:
        """Give the best complete trial, of equals that of the first slot."""
        finished = [
            (trial.value, -slot) for slot, trial in self.current().items() if trial.state == TrialState.COMPLETE
        ]
        return self.current()[-max(finished)[1]] if finished else None

    def reap(self) -> list[tuple[int, str]]:
        """Fail the attempts whose lease has ended; give their slots and what became of them."""
        reaped = []
        for trial in self.attempts():
            if trial.state != TrialState.RUNNING or trial._trial_id in self._mine:
                continue
            lease = Lease.read(trial.user_attrs.get("lease"))
            reason = "it has no lease" if lease is None else lease.expired()
            if self.alone:
                reason = reason or "the process that trained it is gone"
            if reason is not None and self._give_up(trial._trial_id, reason):
                reaped.append((int(trial.user_attrs["slot"]), reason))
        return reaped

    def take(self, space: HeadSpace, sampler: Sampler, seed: int) -> list[FrozenTrial]:
        """Draw, or draw again, the next batch: free slots up to the next multiple of ``parallel``."""
        taken: list[FrozenTrial] = []
        filled = self.current()
        free = [slot for slot in range(self.count) if slot not in filled]
        for slot in free:
            if slot // self.parallel != free[0] // self.parallel:
                break
            attempt = self._attempt(slot, space, sampler, seed)
            if attempt is not None:
                taken.append(attempt)
        return taken

    def running(self) -> int:
        """Count the trials that others train."""
        return sum(trial.state == TrialState.RUNNING for trial in self.current().values())

    def report(self, trial: FrozenTrial, epoch: int, accuracy: float) -> bool:
        """Write an epoch's accuracy; False: the trial was given up to somebody else."""
        return self._set(trial, self.storage.set_trial_intermediate_value, {epoch: accuracy})

    def note(self, trial: FrozenTrial, **attributes: Any) -> bool:
        """Keep something with a trial that runs; False: it was given up to somebody else."""
        return self._set(trial, self.storage.set_trial_user_attr, attributes)

    def note_for_optuna(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> bool:
        """Keep what Optuna's pruners read with a trial that runs; False: it was given up to somebody else."""
        return self._set(trial, self.storage.set_trial_system_attr, attributes)

    def finish(self, trial: FrozenTrial, state: TrialState, value: float | None = None) -> None:
        """End a trial, unless it was given up to somebody else."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(trial._trial_id, state, None if value is None else [value])
        self._mine.discard(trial._trial_id)

    def close(self) -> None:
        """Give up what this process still trains, so that nobody waits for it; nothing is written afterwards."""
        self.holder.end()
        for identity in list(self._mine):
            with contextlib.suppress(Exception):  # the disk or the database, which is why we are here
                self._give_up(identity, "the search was interrupted")
        self._mine.clear()

    def _attempt(self, slot: int, space: HeadSpace, sampler: Sampler, seed: int) -> FrozenTrial | None:
        current = self.current()
        if slot in current:
            return None
        attempts = self.attempts()
        params: dict[str, Any]
        distributions: dict[str, BaseDistribution]
        before = next((trial for trial in attempts if trial.user_attrs["slot"] == slot), None)
        if before is not None:
            params, distributions = before.params, before.distributions
        else:
            known = [trial for other, trial in current.items() if other < slot]
            params, distributions = sampler.draw(space, known, seed, slot)
        attributes = {"slot": slot, "lease": self.holder.lease()}
        if self.alone:  # the journal's repair knows by it which lines are missing
            attributes["number"] = len(self.study.get_trials(deepcopy=False))
        template = create_trial(
            state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=attributes
        )
        identity = self.storage.create_new_trial(self._study_id, template_trial=template)
        self._mine.add(identity)
        if not self.alone:
            self.holder.keep(self._renew)
        counts = self.current().get(slot)
        if counts is None or counts._trial_id != identity:
            self._give_up(identity, EXCESS)
            self._mine.discard(identity)
            return None
        return counts

    def _renew(self) -> None:
        """Say that the trials of this process are still trained; it runs in a thread of its own."""
        for identity in list(self._mine):
            if self.holder.ended:
                return
            # A trial may just have ended. A fault of the disk or the database meets the search as well, which tells it.
            with contextlib.suppress(Exception):
                self.storage.set_trial_user_attr(identity, "lease", self.holder.lease())

    def _set(self, trial: FrozenTrial, setter: Callable[[int, Any, Any], None], values: Mapping[Any, Any]) -> bool:
        try:
            for key, value in values.items():
                setter(trial._trial_id, key, value)
        except UpdateFinishedTrialError:
            self._mine.discard(trial._trial_id)
            return False
        return True

    def _give_up(self, identity: int, reason: str) -> bool:
        try:
            self.storage.set_trial_user_attr(identity, "given_up", reason)
            return bool(self.storage.set_trial_state_values(identity, TrialState.FAIL))
        except UpdateFinishedTrialError:  # it came to an end in the meantime
            return False


def given_up(trial: FrozenTrial) -> bool:
    """Say whether an attempt was failed because of its process and not because of its head."""
    return trial.state == TrialState.FAIL and "given_up" in trial.user_attrs


def check_same_search(study: optuna.Study, config: dict[str, Any]) -> None:
    """Refuse a study that another search, or another program, has begun; mark a new one.

    Raises:
        UsageError: an option, or the data, is another one.
    """
    if study.direction != StudyDirection.MAXIMIZE:
        raise UsageError(
            f"study {study.study_name!r} was not made by a head search: it does not maximise; "
            "choose another --study-name"
        )
    # Counted before the mark is read: whoever marks a study does so before its first trial.
    trials = len(study.get_trials(deepcopy=False))
    found = study.user_attrs.get("search")
    if found is None and trials:
        raise UsageError(
            f"study {study.study_name!r} has {trials} trials of another program, or of a search that has its folder to "
            "itself, which goes on with --resume --out; choose another --study-name or --storage"
        )
    if found is None:
        study.set_user_attr("search", json.loads(json.dumps(config)))  # as a storage gives it back
        return
    different = first_difference(found, config)
    if different is not None:
        key, old, new = different
        raise UsageError(
            f"study {study.study_name!r} was started with {key}={old!r}, now it is {new!r}; "
            "join with the same options, or choose another --study-name"
        )
