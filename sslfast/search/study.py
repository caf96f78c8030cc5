"""The head search: Optuna's TPE asks, a bank of heads trains, a storage remembers; a kill changes nothing."""

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sslfast.errors import SslfastError, UsageError
from sslfast.files import read_json
from sslfast.models.head import HeadSpec, head_metadata, save_head
from sslfast.options import check_seed
from sslfast.progress import Bar, bar, console
from sslfast.run import Run
from sslfast.search.importance import importances
from sslfast.search.pruning import PRUNERS, Pruning, pruner_options
from sslfast.search.result import SearchResult, gather
from sslfast.search.rows import Labelled, check_labels, check_widths, checked, fingerprint
from sslfast.search.sampler import SAMPLERS, make_sampler
from sslfast.search.sources import Source, standardised
from sslfast.search.space import HeadSpace
from sslfast.search.storage import describe, open_folder_journal, open_storage, told
from sslfast.search.train import DTYPES, Recipe, Trained, resolve_dtype, train_heads
from sslfast.search.trials import Trials, check_same_search

STUDY_NAME = "sslfast-heads"

POLL_SECONDS = 1.0
"""How often a process that has nothing left to try looks at what the others do."""


def search_heads(
    train: Labelled | Source,
    val: Labelled | None = None,
    space: HeadSpace | None = None,
    *,
    out: Path | str,
    classes: Sequence[str] | None = None,
    backbone_fingerprint: str = "",
    trials: int = 50,
    epochs: int = 30,
    batch_size: int = 64,
    parallel: int = 10,
    sampler: str = "tpe",
    pruner: str = "none",
    storage: str | BaseStorage | None = None,
    study_name: str = STUDY_NAME,
    seed: int = 0,
    resume: bool = False,
    device: str = "cpu",
    dtype: str = "auto",
    title: str = "tune",
) -> SearchResult:
    """Search the classifier head of the highest validation accuracy at its best epoch (Kishore and Mukherjee, 2022).

    Trials are asked for in batches of ``parallel``: a draw depends on the batches before it, on the trials of its own
    batch that were drawn earlier, and on ``(seed, trial number)``. So the same call gives the same trials and values,
    and a search that was killed and resumed ends as an unbroken one. Writes ``journal.log``, ``result.json`` and
    ``head.safetensors`` in ``out``.

    With ``storage`` several processes may work on one study, each in a folder of its own: together they make
    ``trials`` trials, and each returns when the last one is finished. Then a draw depends on what is finished when it
    is made.

    Args:
        train: features to train on; with several views, each row is seen in a random one per epoch. Or rows of a
            feature store, validation rows among them, as ``sources.open_rows`` gives them.
        val: held-out features (M, D) and labels; they choose epoch and trial, and are never trained on.
        space: what to search; by default the paper's.
        out: the run folder; one process at a time holds it.
        classes: class names; by default 0, 1, ... up to the largest training label.
        backbone_fingerprint: of the backbone that made the features; it is kept in the head's file.
        trials: heads to try in all.
        epochs: passes over the training rows per head.
        batch_size: rows of a step.
        parallel: trials of a batch; 1 is the paper's sequential form.
        sampler: what draws: "tpe" or "random".
        pruner: what stops trials early: "none" (the paper's), "median" or "halving".
        storage: in place of the journal file an Optuna storage, its URL, or the path of a journal ending in ``.log``.
        study_name: of the study in it.
        seed: decides everything random.
        resume: continue the search that ``out`` holds, if there is one.
        device: where to train; "cpu" or a CUDA device.
        dtype: of the products, "float32" or "bfloat16" (weights are float32 always), or "auto": bfloat16 where the
            device multiplies it in hardware.
        title: shown before the progress bar.

    Raises:
        UsageError: an option that makes no sense, or a folder or study that holds another search.
        DataError: features or labels that cannot be trained on; it names the row.
        SslfastError: every trial failed, or the folder or the storage cannot be written.
    """
    space = space or HeadSpace.paper()
    check_seed(seed)
    _check_counts(trials=trials, epochs=epochs, batch_size=batch_size, parallel=parallel)
    _check_choices(dtype=(dtype, ("auto", *DTYPES)), sampler=(sampler, SAMPLERS), pruner=(pruner, PRUNERS))
    dtype = resolve_dtype(dtype, device)
    if isinstance(train, Source):
        labels, data = (train.labels.cpu(), train.validation_labels.cpu()), train.fingerprint
    elif val is None:
        raise UsageError("val is missing: held-out features and labels, which choose epoch and trial")
    else:
        train, val = checked("training", train, views=True), checked("validation", val, views=False)
        check_widths(train, val)
        labels, data = (train[1], val[1]), fingerprint((*train, *val))
    names = tuple(map(str, classes)) if classes is not None else tuple(map(str, range(int(labels[0].max()) + 1)))
    check_labels(*labels, names)
    recipe = Recipe(epochs, batch_size, dtype=dtype, seed=seed)
    config = {
        "space": dataclasses.asdict(space),
        "recipe": dataclasses.asdict(recipe),
        "trials": trials,
        "parallel": parallel,
        "sampler": make_sampler(sampler, trials).describe(),
        "pruner": {"name": pruner, **pruner_options(pruner, epochs)},
        "classes": names,
        "backbone_fingerprint": backbone_fingerprint,
        "data": data,
        "device": torch.device(device).type,
    }
    folder = Path(out)
    where = describe(storage)
    whole = {**config, "storage": where, "study_name": study_name}
    with Run(folder, whole, resume=resume) as run, _quiet_optuna(), told(str(folder)):
        search = _Search(folder, config, space, recipe, names, storage, study_name)
        try:
            if isinstance(train, Source):
                rows = train
            else:
                assert val is not None
                rows = standardised(train, val, len(names)).to(device)
            search.run(rows, title)
            result = search.result(rows)
        finally:
            search.trials.close()
        result.save()
        run.log(f"best trial {result.best.number}: {result.best.value}")
    return result


class _Search:
    """One search in progress."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        space: HeadSpace,
        recipe: Recipe,
        classes: tuple[str, ...],
        storage: str | BaseStorage | None,
        study_name: str,
    ) -> None:
        self.folder, self.config, self.space, self.recipe, self.classes = folder, config, space, recipe, classes
        self.sampler = make_sampler(
            "random" if config["sampler"]["name"] == "RandomSampler" else "tpe", config["trials"]
        )
        self.storage = open_folder_journal(folder) if storage is None else open_storage(storage)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=study_name,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),
        )
        self.alone = storage is None
        if not self.alone:
            check_same_search(self.study, config)
        self.trials = Trials(self.study, self.storage, config["trials"], config["parallel"], alone=self.alone)
        self.started = time.monotonic()
        self.seconds_before = float(self.study.user_attrs.get("seconds", 0.0))

    def run(self, rows: Source, title: str) -> None:
        """Train what is left of the trials, batch by batch, and wait for what others train."""
        done = [trial for trial in self.trials.current().values() if trial.state.is_finished()]
        epochs = self.recipe.epochs
        with bar(title, self.trials.count * epochs, "epoch", len(done) * epochs) as shown:
            while True:
                for slot, reason in self.trials.reap():
                    if not self.alone:
                        console.print(f"trial {slot} is tried again: {reason}", markup=False)
                jobs = self.trials.take(self.space, self.sampler, self.recipe.seed)
                if jobs:
                    self.train(jobs, rows, shown)
                    if self.alone:
                        self.study.set_user_attr("seconds", self.seconds())
                elif len(self.trials.current()) == self.trials.count:
                    if not self.trials.running():
                        break
                    shown.note(f"waiting for {self.trials.running()} trials of other processes")
                    time.sleep(POLL_SECONDS)

    def seconds(self) -> float:
        """Give the wall time of the search, all its sessions together."""
        return self.seconds_before + time.monotonic() - self.started

    def train(self, jobs: Sequence[FrozenTrial], rows: Source, shown: Bar) -> None:
        """Train a batch and write what comes of it into the study; keep the weights of the best trial."""
        by_slot = {int(trial.user_attrs["slot"]): trial for trial in jobs}
        pruning = self.pruning(min(by_slot))
        lost: set[int] = set()
        started = time.monotonic()

        def on_epoch(slot: int, epoch: int, accuracy: float) -> bool:
            shown.advance()
            if not self.trials.report(by_slot[slot], epoch, accuracy):
                lost.add(slot)
                return False
            return not pruning.stops(slot, epoch, accuracy)

        specs = {slot: self.space.spec(trial.params) for slot, trial in by_slot.items()}
        found = train_heads(list(specs.items()), rows, self.recipe, on_epoch)
        seconds = (time.monotonic() - started) / len(jobs)
        for slot, trial in by_slot.items():
            trained = found[slot]
            shown.advance(self.recipe.epochs - len(trained.accuracies))
            if slot in lost or not self.trials.note(trial, seconds=seconds):
                continue
            if not self.trials.note_for_optuna(trial, pruning.notes(slot)):
                continue
            if not math.isfinite(trained.value):
                self.trials.note(trial, reason="training diverged: logits that are not finite")
                self.trials.finish(trial, TrialState.FAIL)
                continue
            if slot in pruning.pruned:
                self.trials.note(trial, reason=f"pruned after epoch {len(trained.accuracies)}")
                self.trials.finish(trial, TrialState.PRUNED, trained.accuracies[-1])
                continue
            if not self.trials.note(trial, epoch=trained.epoch):
                continue
            best = self.trials.best()
            if best is None or (trained.value, -slot) > (best.value, -best.user_attrs["slot"]):
                # The weights first: a kill between the two leaves a trial that runs again.
                self.keep(trained, rows, specs[slot], slot)
            self.trials.finish(trial, TrialState.COMPLETE, trained.value)
        best = self.trials.best()
        if best is not None:
            shown.note(f"best {best.value:.4f} (trial {best.user_attrs['slot']})")

    def pruning(self, slot: int) -> Pruning:
        """Give what may stop the trials of the batch that ``slot`` belongs to."""
        first = slot - slot % self.trials.parallel
        current = self.trials.current()
        before = [trial for other, trial in current.items() if other < first and trial.state.is_finished()]
        batch = {other: trial for other, trial in current.items() if first <= other < first + self.trials.parallel}
        return Pruning(self.config["pruner"]["name"], self.recipe.epochs, before, batch)

    def keep(self, trained: Trained, rows: Source, spec: HeadSpec, slot: int) -> None:
        """Write ``head.safetensors``."""
        save_head(
            trained.head(rows, spec),
            self.folder / "head.safetensors",
            self.classes,
            self.config["backbone_fingerprint"],
            {"trial": str(slot)},
        )

    def result(self, rows: Source) -> SearchResult:
        """Gather the finished study; the winner is trained again where its weights are not there."""
        current = self.trials.current()
        found = gather(current, self.space)
        best = self.trials.best()
        if best is None:
            raise SslfastError(f"all {self.trials.count} trials failed; the first: {found[0].reason}")
        slot = int(best.user_attrs["slot"])
        spec = self.space.spec(best.params)
        there = head_metadata(self.folder / "head.safetensors")
        # Where the storage was lost, the same trial may have been another head.
        if (there.get("trial"), there.get("spec")) != (str(slot), json.dumps(dataclasses.asdict(spec))):
            self.keep(train_heads([(slot, spec)], rows, self.recipe)[slot], rows, spec, slot)
        finished = self.folder / "result.json"
        if not self.alone:
            seconds = max(trial.finished or 0.0 for trial in found)
        else:
            seconds = read_json(finished)["budget"]["seconds"] if finished.exists() else self.seconds()
        budget = {
            "trials": self.trials.count,
            "epochs": self.recipe.epochs,
            "batch_size": self.recipe.batch_size,
            "train_rows": len(rows.labels),
            "val_rows": len(rows.validation_labels),
            "views": rows.views,
            "parallel": self.trials.parallel,
            "seconds": seconds,
        }
        recipe = {**dataclasses.asdict(self.recipe), "pruner": self.config["pruner"]}
        shares = importances(current.values())
        return SearchResult(self.folder, found[slot], found, budget, self.config["sampler"], recipe, shares)


def _check_counts(**options: int) -> None:
    for name, value in options.items():
        if not isinstance(value, int):
            raise UsageError(f"{name.replace('_', '-')} must be a whole number, got {value!r}")
        if value < 1:
            raise UsageError(f"{name.replace('_', '-')} must be at least 1, got {value}")


def _check_choices(**options: tuple[str, Sequence[str]]) -> None:
    for name, (value, choices) in options.items():
        if value not in choices:
            raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Silence Optuna's log lines: the progress bar says the same."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
