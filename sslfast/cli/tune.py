"""``sslfast tune``: search a classifier head on stored features."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sslfast.progress import console

if TYPE_CHECKING:
    from sslfast.search import HeadSpace, SearchResult
    from sslfast.search.sources import Source


@dataclass(frozen=True)
class Options:
    """What to search, and how long.

    Args:
        features: a feature store of labelled images, as extract writes it.
        test_features: a store of test images that nothing is chosen on; every row of the table is scored there once.
        val_fraction: share of its rows that is held out to choose epoch and trial.
        trials: heads to try.
        epochs: passes over the features per head.
        batch_size: rows of a step.
        parallel: trials drawn at a time; 1 is the paper's sequential form.
        learning_rate_from: smallest learning rate of the search; the paper's table says 1e-4, its text 1e-5.
        optimizers: of sgd, adam, adamw and lars; with more than one, the optimiser is searched as well.
        pruner: stop bad heads early by the median rule or by successive halving; the paper does not.
        baselines: fit logistic regression, k-NN, the linear head and a random search of the same budget beside it.
        unfreeze_at: train the winner once more, the whole model learning after this many epochs of its head alone.
        unfreeze_epochs: how many epochs it learns; 0: to the end.
        backbone: checkpoint that the features were extracted with; unfreezing needs it.
        data: name of the data set they were extracted from, where the store does not say it as extract took it.
        data_dir: where the data set lies, besides the usual places.
        seeds: searches, with the seeds from --seed on; the table gives mean and deviation.
        storage: an Optuna storage URL, or a journal file ending in .log, that several processes may share.
        study_name: of the study in it; who gives the same one works on the same study.
        seed: decides everything random.
        device: auto, cpu or cuda.
        dtype: of the products; auto is bfloat16 where the device has it.
        memory: load reads the features into memory, stream reads them chunk by chunk in every epoch (the search is
            the same, logistic regression and k-NN are left out); auto loads them where that takes at most half of the
            memory that is free.
        out: folder of the run; by default runs/<time>-tune. Processes on one study have one each.
        resume: go on with the run in --out that was broken off.
        json: print the result as JSON.
    """

    features: Path
    test_features: Path | None = None
    val_fraction: float = 0.1
    trials: int = 50
    epochs: int = 30
    batch_size: int = 64
    parallel: int = 10
    learning_rate_from: float = 1e-4
    optimizers: tuple[Literal["sgd", "adam", "adamw", "lars"], ...] = ("sgd",)
    pruner: Literal["none", "median", "halving"] = "none"
    baselines: bool = True
    unfreeze_at: int | None = None
    unfreeze_epochs: int = 1
    backbone: Path | None = None
    data: str | None = None
    data_dir: Path | None = None
    seeds: int = 1
    storage: str | None = None
    study_name: str = "sslfast-heads"
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    memory: Literal["auto", "load", "stream"] = "auto"
    out: Path | None = None
    resume: bool = False
    json: bool = False


def run(options: Options) -> None:
    """Search, and print the trials, the best head and the next command.

    Raises:
        UsageError: an option that makes no sense, or a GPU asked for where none is.
        SslfastError: the store cannot be read, has no labels, or no trial succeeded.
    """
    from sslfast.device import resolve_device
    from sslfast.errors import SslfastError, UsageError
    from sslfast.features import FeatureStore
    from sslfast.recipes.scored import TestRows
    from sslfast.recipes.tuning import add_row, tune_and_compare
    from sslfast.recipes.unfreeze import Unfreezing
    from sslfast.recipes.unfrozen import prepare, unfrozen_row
    from sslfast.run import new_run_folder
    from sslfast.search import HeadSpace
    from sslfast.search.sources import labels_of, open_rows, too_large

    if options.resume and options.out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with")
    unfreezing = None
    if options.unfreeze_at is not None:
        if options.backbone is None:
            raise UsageError("--unfreeze-at needs --backbone: the checkpoint that the features were extracted with")
        unfreezing = Unfreezing(options.unfreeze_at, options.unfreeze_epochs or None)
        unfreezing.last(options.epochs)
    if options.seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {options.seeds}")
    device = str(resolve_device(options.device))
    space = HeadSpace(
        learning_rate=(options.learning_rate_from, HeadSpace.paper().learning_rate[1]), optimizers=options.optimizers
    )
    store = FeatureStore.open(options.features)
    # Once for all seeds: their tables are put together row by row.
    memory = "stream" if too_large(store, options.memory, device) else "load"
    _, names = labels_of(store)
    test = None
    if options.test_features is not None:
        test = TestRows(FeatureStore.open(options.test_features), store, names)

    ready = None
    if options.backbone is not None and unfreezing is not None:
        tested = None if test is None else test.store
        ready = prepare(options.backbone, store, tested, space, data=options.data, data_dir=options.data_dir)

    def parts(seed: int) -> "Source":
        return open_rows(store, options.val_fraction, seed, memory=memory, device=device)

    folder = options.out or new_run_folder("tune")
    results, table = tune_and_compare(
        parts,
        test,
        space,
        out=folder,
        classes=names,
        seeds=range(options.seed, options.seed + options.seeds),
        baselines=options.baselines,
        backbone_fingerprint=store.manifest["backbone"]["fingerprint"],
        trials=options.trials,
        epochs=options.epochs,
        batch_size=options.batch_size,
        parallel=options.parallel,
        pruner=options.pruner,
        storage=options.storage,
        study_name=options.study_name,
        resume=options.resume,
        device=device,
        dtype=options.dtype,
    )
    result = max(results, key=lambda one: one.best.value or 0.0)
    unfrozen = None
    if unfreezing is not None and ready is not None:
        try:
            unfrozen = unfrozen_row(
                ready,
                store,
                None if test is None else test.store,
                result,
                space,
                unfreezing,
                val_fraction=options.val_fraction,
                classes=names,
                device=device,
                seeds=options.seeds,
                resume=True,
            )
        except SslfastError:
            if not options.json:  # the search is finished whatever became of this
                _print_trials(result, space)
                _print_table(table)
            raise
        add_row(folder, table, unfrozen)
    if options.json:
        paths = {"folder": str(result.folder), "head": str(result.folder / "head.safetensors")}
        print(json.dumps({**asdict(result), **paths, "table": table}))
        return
    _print_trials(result, space)
    _print_table(table)
    print(
        f"{result.folder / 'head.safetensors'}  ({result.budget['trials']} trials x {result.budget['epochs']} epochs "
        f"on {result.budget['train_rows']:,} rows, {result.budget['seconds']:.0f} s, seed {result.recipe['seed']})"
    )
    best, backbone = result.folder, "BACKBONE.safetensors"
    if unfrozen is not None and (unfrozen.validation_accuracy or 0.0) > (result.best.value or 0.0):
        best = result.folder / "unfrozen"
        backbone = str(best / "backbone.safetensors")
    console.print(
        f"next: sslfast export --backbone {backbone} --head {best / 'head.safetensors'} "
        f"--out {result.folder / 'model.onnx'}",
        markup=False,
        soft_wrap=True,
    )


def _print_trials(result: "SearchResult", space: "HeadSpace") -> None:
    from rich.console import Console
    from rich.table import Table

    budget = result.budget
    table = Table(title=f"best of {budget['trials']} trials, accuracy on {budget['val_rows']:,} held-out rows")
    for column in ("trial", "head", "accuracy", "best epoch", "seconds"):
        table.add_column(column, justify="left" if column == "head" else "right")
    ranked = sorted(
        result.trials, key=lambda trial: (-(trial.value if trial.value is not None else -1.0), trial.number)
    )
    for trial in ranked[:10]:
        ended = {"FAIL": "failed", "PRUNED": "pruned"}.get(trial.state, trial.state.lower())
        accuracy = ended if trial.value is None or trial.epoch is None else f"{100 * trial.value:.2f} %"
        epoch = "" if trial.epoch is None else f"{trial.epoch + 1} of {budget['epochs']}"
        table.add_row(str(trial.number), space.spec(trial.params).describe(), accuracy, epoch, f"{trial.seconds:.1f}")
    Console(highlight=False).print(table)


def _print_table(content: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from sslfast.recipes.tuning import worth_in_words

    seeds = len(content["seeds"])
    title = f"mean ± deviation of {seeds} seeds" if seeds > 1 else "one seed"
    table = Table(title=f"{title}; {content['split']}")
    for column in ("classifier", "validation", "test", "detail", "seconds"):
        table.add_column(column, justify="left" if column in ("classifier", "detail") else "right")
    for row in content["rows"]:
        table.add_row(
            row["name"],
            _percent(row["validation_accuracy"], row["validation_deviation"]),
            _percent(row["test_accuracy"], row["test_deviation"]),
            row["detail"],
            f"{row['seconds']:.1f}",
        )
    Console(highlight=False).print(table)
    if content["worth"]:
        print(worth_in_words(content["worth"]))


def _percent(value: float | None, deviation: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
