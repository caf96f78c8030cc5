"""``sslfast tune``: search a classifier head on stored features."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sslfast.progress import console

if TYPE_CHECKING:
    from sslfast.features import FeatureStore
    from sslfast.search import SearchResult
    from sslfast.search.rows import Labelled


@dataclass(frozen=True)
class Options:
    """What to search, and how long.

    Args:
        features: a feature store of labelled images, as extract writes it.
        val_fraction: share of its rows that is held out to choose epoch and trial.
        trials: heads to try.
        epochs: passes over the features per head.
        batch_size: rows of a step.
        parallel: trials drawn at a time; 1 is the paper's sequential form.
        learning_rate_from: smallest learning rate of the search; the paper's table says 1e-4, its text 1e-5.
        storage: an Optuna storage URL in place of the journal file.
        seed: decides everything random.
        device: auto, cpu or cuda.
        dtype: of the products; auto is bfloat16 where the device has it.
        out: folder of the run; by default runs/<time>-tune.
        resume: go on with the run in --out that was broken off.
        json: print the result as JSON.
    """

    features: Path
    val_fraction: float = 0.1
    trials: int = 50
    epochs: int = 30
    batch_size: int = 64
    parallel: int = 10
    learning_rate_from: float = 1e-4
    storage: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
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
    from sslfast.errors import UsageError
    from sslfast.run import new_run_folder
    from sslfast.search import HeadSpace, search_heads

    if options.resume and options.out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with")
    device = str(resolve_device(options.device))
    space = HeadSpace(learning_rate=(options.learning_rate_from, HeadSpace.paper().learning_rate[1]))
    from sslfast.features import FeatureStore

    store = FeatureStore.open(options.features)
    train, val, classes = split_store(store, options.val_fraction, options.seed)
    result = search_heads(
        train,
        val,
        space,
        out=options.out or new_run_folder("tune"),
        classes=classes,
        backbone_fingerprint=store.manifest["backbone"]["fingerprint"],
        trials=options.trials,
        epochs=options.epochs,
        batch_size=options.batch_size,
        parallel=options.parallel,
        storage=options.storage,
        seed=options.seed,
        resume=options.resume,
        device=device,
        dtype=options.dtype,
    )
    if options.json:
        content = asdict(result)
        print(json.dumps({**content, "folder": str(result.folder), "head": str(result.folder / "head.safetensors")}))
        return
    _print_table(result)
    console.print(
        f"next: sslfast export --backbone BACKBONE.safetensors --head {result.folder / 'head.safetensors'} "
        f"--out {result.folder / 'model.onnx'}",
        markup=False,
        soft_wrap=True,
    )


def split_store(
    store: "FeatureStore", fraction: float, seed: int
) -> "tuple[Labelled, Labelled, tuple[str, ...] | None]":
    """Divide a store's rows: training features of the views identity and flip, validation features of identity.

    Returns:
        ``((views, N, D), (N,))``, ``((M, D), (M,))`` and the class names.

    Raises:
        DataError: the store has no labels.
        UsageError: the fraction is not between 0 and 1.
    """
    import torch

    from sslfast.data import holdout
    from sslfast.errors import DataError

    labels = store.labels
    if labels is None:
        raise DataError(f"{store.path} has no labels to tune a head with; extract a labelled data set")
    rest, held_out = (torch.as_tensor(rows) for rows in holdout(labels.numpy(), fraction, seed))
    identity = store.load("identity")
    views = [identity[rest]]
    if "flip" in store.views:
        views.append(store.load("flip")[rest])
    return (torch.stack(views), labels[rest]), (identity[held_out], labels[held_out]), store.classes


def _print_table(result: "SearchResult") -> None:
    from rich.console import Console
    from rich.table import Table

    from sslfast.search import HeadSpace

    budget = result.budget
    table = Table(title=f"best of {budget['trials']} trials, accuracy on {budget['val_rows']:,} held-out rows")
    for column in ("trial", "head", "accuracy", "best epoch", "seconds"):
        table.add_column(column, justify="left" if column == "head" else "right")
    ranked = sorted(
        result.trials, key=lambda trial: (-(trial.value if trial.value is not None else -1.0), trial.number)
    )
    for trial in ranked[:10]:
        accuracy = "failed" if trial.value is None or trial.epoch is None else f"{100 * trial.value:.2f} %"
        epoch = "" if trial.epoch is None else f"{trial.epoch + 1} of {budget['epochs']}"
        head = HeadSpace.paper().spec(trial.params).describe()
        table.add_row(str(trial.number), head, accuracy, epoch, f"{trial.seconds:.1f}")
    Console(highlight=False).print(table)
    print(
        f"{result.folder / 'head.safetensors'}  ({budget['trials']} trials x {budget['epochs']} epochs on "
        f"{budget['train_rows']:,} rows, {budget['seconds']:.0f} s, seed {result.recipe['seed']})"
    )
