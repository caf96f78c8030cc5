"""The head search: Optuna's TPE asks, a bank of heads trains, a journal remembers; a kill changes nothing."""

import dataclasses
import hashlib
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from sslfast.device import resolve_dtype
from sslfast.errors import DataError, SslfastError, UsageError, first_line
from sslfast.files import read_json
from sslfast.models.head import HeadSpec, head_metadata, save_head
from sslfast.options import check_seed
from sslfast.progress import Bar, bar, console
from sslfast.run import Run
from sslfast.search.bank import stream
from sslfast.search.journal import journal_backend, repair_journal
from sslfast.search.result import SearchResult, TrialResult
from sslfast.search.sources import Source, standardised
from sslfast.search.space import HeadSpace
from sslfast.search.train import DTYPES, Job, Recipe, Trained, train_heads

STUDY_NAME = "sslfast-heads"

Labelled = tuple[Tensor, Tensor]
"""Features, float32, (N, D) or (views, N, D), and labels, int64, (N,)."""


def sampler_options(trials: int) -> dict[str, Any]:
    """Give the TPE options of a search, pinned because Optuna's defaults change between versions.

    ``multivariate`` draws what all heads have jointly; widths that only some have are drawn one by one (``group``,
    which would join them too, is experimental in Optuna 5). Ten random trials come first, fewer in a short search.
    """
    return {
        "multivariate": True,
        "group": False,
        "constant_liar": True,
        "n_startup_trials": min(10, math.ceil(trials / 3)),
        "n_ei_candidates": 24,
    }


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
    storage: str | None = None,
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
        storage: an Optuna storage URL in place of the journal file.
        seed: decides everything random.
        resume: continue the search that ``out`` holds, if there is one.
        device: where to train; "cpu" or a CUDA device.
        dtype: of the products, "float32" or "bfloat16" (weights are float32 always), or "auto": bfloat16 where the
            device multiplies it in hardware.
        title: shown before the progress bar.

    Raises:
        UsageError: an option that makes no sense, or a folder that holds another search.
        DataError: features or labels that cannot be trained on; it names the row.
        SslfastError: every trial failed, or the folder cannot be written.
    """
    space = space or HeadSpace.paper()
    check_seed(seed)
    _check_options(trials=trials, epochs=epochs, batch_size=batch_size, parallel=parallel, dtype=dtype)
    # bfloat16 does not change the validation accuracy: docs/tune.md has the measurement.
    dtype = str(resolve_dtype(dtype, torch.device(device))).removeprefix("torch.")
    if isinstance(train, Source):
        labels, fingerprint = (train.labels.cpu(), train.validation_labels.cpu()), train.fingerprint
    elif val is None:
        raise UsageError("val is missing: held-out features and labels, which choose epoch and trial")
    else:
        train, val = _checked("training", train, views=True), _checked("validation", val, views=False)
        _check_widths(train, val)
        labels, fingerprint = (train[1], val[1]), _fingerprint((*train, *val))
    names = tuple(map(str, classes)) if classes is not None else tuple(map(str, range(int(labels[0].max()) + 1)))
    _check_labels(*labels, names)
    recipe = Recipe(epochs, batch_size, dtype=dtype, seed=seed)
    sampler = sampler_options(trials)
    config = {
        "space": dataclasses.asdict(space),
        "recipe": dataclasses.asdict(recipe),
        "trials": trials,
        "parallel": parallel,
        "sampler": sampler,
        "classes": names,
        "backbone_fingerprint": backbone_fingerprint,
        "data": fingerprint,
        "device": torch.device(device).type,
        "storage": storage,
    }
    folder = Path(out)
    with Run(folder, config, resume=resume) as run, _quiet_optuna(), _writing_in(folder):
        search = _Search(folder, space, recipe, sampler, trials, parallel, seed, storage, names, backbone_fingerprint)
        if isinstance(train, Source):
            rows = train
        else:
            assert val is not None
            rows = standardised(train, val, len(names)).to(device)
        search.run(rows, title)
        result = search.result(rows)
        result.save()
        run.log(f"best trial {result.best.number}: {result.best.value}")
    return result


class _Search:
    """One search in progress."""

    def __init__(
        self,
        folder: Path,
        space: HeadSpace,
        recipe: Recipe,
        sampler: dict[str, Any],
        trials: int,
        parallel: int,
        seed: int,
        storage: str | None,
        classes: tuple[str, ...],
        backbone_fingerprint: str,
    ) -> None:
        self.folder, self.space, self.recipe, self.sampler = folder, space, recipe, sampler
        self.trials, self.parallel, self.seed = trials, parallel, seed
        self.classes, self.backbone_fingerprint = classes, backbone_fingerprint
        self.storage = self._open(storage)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=STUDY_NAME,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),
        )
        self.started = time.monotonic()
        self.seconds_before = float(self.study.user_attrs.get("seconds", 0.0))

    def _open(self, storage: str | None) -> optuna.storages.BaseStorage:
        if storage is not None:
            try:
                return optuna.storages.get_storage(storage)
            except Exception as error:  # of SQLAlchemy, of a database's module, of the database
                raise UsageError(
                    f"--storage cannot be opened ({first_line(error)}); give a URL such as sqlite:///trials.db"
                ) from error
        path = self.folder / "journal.log"
        repair = repair_journal(path)
        if repair.lost:
            console.print(repair.describe(), markup=False)
        return optuna.storages.JournalStorage(journal_backend(path))

    def frozen(self) -> list[FrozenTrial]:
        """Give the trials so far, in order of number."""
        return self.study.get_trials(deepcopy=False)

    def best(self) -> FrozenTrial | None:
        """Give the best finished trial, the first of equals."""
        finished = [trial for trial in self.frozen() if trial.state == TrialState.COMPLETE]
        return max(finished, key=lambda trial: (trial.value, -trial.number), default=None)

    def run(self, rows: Source, title: str) -> None:
        """Train what is left of the trials, batch by batch."""
        done = [trial for trial in self.frozen() if trial.state.is_finished()]
        epochs = self.recipe.epochs
        with bar(title, self.trials * epochs, "epoch", sum(len(trial.intermediate_values) for trial in done)) as shown:
            for first in range(0, self.trials, self.parallel):
                jobs = self.ask(range(first, min(first + self.parallel, self.trials)))
                if jobs:
                    self.train(jobs, rows, shown)
                    self.study.set_user_attr("seconds", self.seconds())

    def seconds(self) -> float:
        """Give the wall time of the search, all its sessions together."""
        return self.seconds_before + time.monotonic() - self.started

    def ask(self, numbers: Iterable[int]) -> list[tuple[int, HeadSpec]]:
        """Draw the trials of a batch that are not there yet; give those that are not finished.

        A trial is written with all its parameters in one line, so it is there whole or not at all.
        """
        jobs = []
        for number in numbers:
            known = self.frozen()
            if number >= len(known):
                params, distributions = self.draw(number, known)
                self.study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.RUNNING,
                        params=params,
                        distributions=distributions,
                        user_attrs={"number": number},
                    )
                )
                known = self.frozen()
            if not known[number].state.is_finished():
                jobs.append((number, self.space.spec(known[number].params)))
        return jobs

    def draw(self, number: int, known: list[FrozenTrial]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw the parameters of trial ``number`` from the trials before it, in a study of its own in memory."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=stream(self.seed, 0, number) % 2**32, **self.sampler)
        scratch = optuna.create_study(direction="maximize", sampler=sampler)
        scratch.add_trials(known[:number])
        trial = scratch.ask()
        self.space.suggest(trial)
        return trial.params, trial.distributions

    def train(self, jobs: Sequence[Job], rows: Source, shown: Bar) -> None:
        """Train a batch and write what comes of it into the study; keep the weights of the best trial."""
        known = {trial.number: trial for trial in self.frozen()}
        started = time.monotonic()

        def on_epoch(number: int, epoch: int, accuracy: float) -> bool:
            self.storage.set_trial_intermediate_value(known[number]._trial_id, epoch, accuracy)
            shown.advance()
            return True

        found = train_heads(jobs, rows, self.recipe, on_epoch)
        seconds = (time.monotonic() - started) / len(jobs)
        for number, spec in jobs:
            trained, identity = found[number], known[number]._trial_id
            self.storage.set_trial_user_attr(identity, "seconds", seconds)
            if not math.isfinite(trained.value):
                self.storage.set_trial_user_attr(identity, "reason", "training diverged: logits that are not finite")
                self.study.tell(number, state=TrialState.FAIL)
                shown.advance(self.recipe.epochs - len(trained.accuracies))
                continue
            self.storage.set_trial_user_attr(identity, "epoch", trained.epoch)
            best = self.best()
            if best is None or (trained.value, -number) > (best.value, -best.number):
                # The weights first: a kill between the two leaves a trial that runs again.
                self.keep(trained, rows, spec, number)
            self.study.tell(number, trained.value)
        best = self.best()
        if best is not None:
            shown.note(f"best {best.value:.4f} (trial {best.number})")

    def keep(self, trained: Trained, rows: Source, spec: HeadSpec, number: int) -> None:
        """Write ``head.safetensors``."""
        save_head(
            trained.head(rows, spec),
            self.folder / "head.safetensors",
            self.classes,
            self.backbone_fingerprint,
            {"trial": str(number)},
        )

    def result(self, rows: Source) -> SearchResult:
        """Gather the finished study; the winner is trained again where its weights are not there."""
        best = self.best()
        found = tuple(_trial_result(trial) for trial in self.frozen()[: self.trials])
        if best is None:
            raise SslfastError(f"all {self.trials} trials failed; the first: {found[0].reason}")
        if head_metadata(self.folder / "head.safetensors").get("trial") != str(best.number):
            spec = self.space.spec(best.params)
            self.keep(train_heads([(best.number, spec)], rows, self.recipe)[best.number], rows, spec, best.number)
        finished = self.folder / "result.json"
        seconds = read_json(finished)["budget"]["seconds"] if finished.exists() else self.seconds()
        budget = {
            "trials": self.trials,
            "epochs": self.recipe.epochs,
            "batch_size": self.recipe.batch_size,
            "train_rows": len(rows.labels),
            "val_rows": len(rows.validation_labels),
            "views": rows.views,
            "parallel": self.parallel,
            "seconds": seconds,
        }
        sampler = {"name": "TPESampler", "optuna": optuna.__version__, **self.sampler}
        return SearchResult(self.folder, found[best.number], found, budget, sampler, dataclasses.asdict(self.recipe))


def _trial_result(trial: FrozenTrial) -> TrialResult:
    complete = trial.state == TrialState.COMPLETE
    return TrialResult(
        trial.number,
        trial.state.name,
        dict(trial.params),
        trial.value if complete else None,
        trial.user_attrs.get("epoch") if complete else None,
        tuple(trial.intermediate_values[step] for step in sorted(trial.intermediate_values)),
        trial.user_attrs.get("seconds", 0.0),
        None if complete else trial.user_attrs.get("reason"),
    )


def _check_options(**options: Any) -> None:
    for name in ("trials", "epochs", "batch_size", "parallel"):
        value = options[name]
        if value is not None and value < 1:
            raise UsageError(f"{name.replace('_', '-')} must be at least 1, got {value}")
    if options["dtype"] not in ("auto", *DTYPES):
        raise UsageError(f"dtype must be one of auto, {', '.join(DTYPES)}, got {options['dtype']!r}")


def _checked(what: str, rows: Labelled, *, views: bool) -> Labelled:
    features, labels = (value if isinstance(value, Tensor) else torch.as_tensor(value) for value in rows)
    if features.dim() not in ((2, 3) if views else (2,)):
        shape = "(rows, length) or (views, rows, length)" if views else "(rows, length)"
        raise DataError(f"{what} features must be of shape {shape}, got {tuple(features.shape)}")
    if labels.dim() != 1 or len(labels) != features.shape[-2]:
        raise DataError(
            f"{what} labels do not match the features: {features.shape[-2]} rows of features, "
            f"labels of shape {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"{what} labels must be whole numbers, got {labels.dtype}")
    if not len(labels):
        raise DataError(f"there are no {what} rows")
    features = features.detach().cpu().float()
    # A sum is finite where all its terms are, except where it overflows: then the slow look decides.
    if not math.isfinite(float(features.sum())):
        bad = ~torch.isfinite(features).all(-1)
        if bool(bad.any()):
            row = int(bad.nonzero()[0][-1])
            raise DataError(
                f"{what} features have {int(bad.sum())} rows with NaN or infinity, the first is row {row}; extract anew"
            )
    return features.contiguous(), labels.detach().cpu().long().contiguous()


def _check_widths(train: Labelled, val: Labelled) -> None:
    if train[0].shape[-1] != val[0].shape[-1]:
        raise DataError(
            f"training features have length {train[0].shape[-1]}, validation features {val[0].shape[-1]}; "
            "they must come from one backbone"
        )


def _check_labels(train: Tensor, val: Tensor, classes: tuple[str, ...]) -> None:
    for what, labels in (("training", train), ("validation", val)):
        bad = (labels < 0) | (labels >= len(classes))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise DataError(
                f"{what} row {row} has label {int(labels[row])}, but there are {len(classes)} classes "
                f"(labels 0 to {len(classes) - 1})"
            )
    counts = torch.bincount(train, minlength=len(classes))
    if bool((counts == 0).any()):
        absent = classes[int((counts == 0).nonzero()[0])]
        raise DataError(f"class {absent!r} has no training row; a head cannot learn it")
    if len(classes) < 2:
        raise DataError("there is one class only; a classifier needs two")


def _fingerprint(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()[:32]


@contextmanager
def _writing_in(folder: Path) -> Iterator[None]:
    """Say where it was that Optuna's journal could not be written."""
    try:
        yield
    except OSError as error:
        raise SslfastError(
            f"cannot write in {folder}: {error.strerror or error}; make room, --resume continues"
        ) from error


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Silence Optuna's log lines: the progress bar says the same."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
