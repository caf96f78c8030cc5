"""The linear probe: how well one linear layer on frozen features tells the classes apart."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sslfast.data import holdout
from sslfast.errors import DataError, UsageError
from sslfast.evaluate.baselines import C_GRID, choose_strength, logistic_head, predict_probabilities
from sslfast.evaluate.config import ProbeConfig
from sslfast.evaluate.guards import check_selection
from sslfast.evaluate.logistic import fit_logistic
from sslfast.evaluate.samples import Given, Samples, pair
from sslfast.features import FeatureStore
from sslfast.models.head import Head, HeadSpec
from sslfast.options import check_number, check_seed
from sslfast.progress import bar
from sslfast.search.bank import HeadBank
from sslfast.search.sources import Rows, Source, StoredRows, open_rows, standardised, too_large
from sslfast.search.train import Recipe, resolve_dtype, train_epoch, validation_accuracy

SCORED_ROWS = 8192
"""Test rows are scored so many at a time."""


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier.

    Args:
        name: for tables.
        head: features to logits, in evaluation mode; it standardises its features itself.
        validation_accuracy: of the choice, on held-out training rows, in [0, 1].
        detail: what was chosen.
        epoch_rule: which weights these are.
        curve: per epoch of SGD the mean training loss (nats), and the accuracy on the held-out rows.
        seed: of it.
        seconds: wall time.
    """

    name: str
    head: Head
    validation_accuracy: float
    detail: str
    epoch_rule: str
    curve: tuple[dict[str, float], ...]
    seed: int
    seconds: float


@dataclass(frozen=True)
class ProbeScore:
    """A probe on test rows.

    Args:
        probe: the classifier.
        accuracy: on the test rows, in [0, 1].
        predicted: class of every test row (M,), int64.
    """

    probe: Probe
    accuracy: float
    predicted: Tensor


def linear_probe(
    train: Given,
    test: Given,
    config: ProbeConfig | None = None,
    *,
    val: Given | None = None,
    device: str | torch.device = "cpu",
    memory: str = "auto",
    **changes: object,
) -> ProbeScore:
    """Train a linear classifier on frozen features, choose its one number on held-out training rows, and test it once.

    With ``solver="sgd"`` one head per learning rate is trained, all in one bank on the same minibatches; every row is
    seen once an epoch in one of its views. With ``solver="lbfgs"`` every C is fitted at once on at most 10,000 of the
    training rows and the best of them on all. Test rows are read when everything else is finished.

    Args:
        train: training features, in all their views.
        test: test features from the same backbone.
        config: see `ProbeConfig`.
        val: rows to choose by instead of a part of the training rows; the test rows are refused.
        device: where SGD runs.
        memory: whether a store is loaded ("load"), read chunk by chunk ("stream") or what fits ("auto"); L-BFGS loads.
        changes: of single options of ``config``: ``solver="lbfgs"``, say.

    Raises:
        DataError: the rows do not belong together, there is one class only, a feature is not finite, or training
            diverged at every learning rate.
        UsageError: an option makes no sense.
    """
    settings = replace(config or ProbeConfig(), **changes)  # type: ignore[arg-type]
    _, tested, _ = pair(train, test)
    probe = fit_probe(train, settings, test=test, val=val, device=device, memory=memory)
    return score_probe(probe, tested)


def score_probe(probe: Probe, test: Samples | Given) -> ProbeScore:
    """Score a fitted probe on test rows, once."""
    rows = test if isinstance(test, Samples) else Samples(test, "test")
    predicted = torch.cat([predict_probabilities(probe.head, part).argmax(1) for part in rows.parts(SCORED_ROWS)])
    return ProbeScore(probe, int((predicted == rows.labels).sum()) / len(rows), predicted)


def fit_probe(
    train: Given,
    config: ProbeConfig,
    *,
    test: Given | None = None,
    val: Given | None = None,
    device: str | torch.device = "cpu",
    memory: str = "auto",
) -> Probe:
    """Fit the probe of `linear_probe`; test rows are not looked at, only compared with what is chosen by."""
    _check(config)
    rows = Samples(train, "training")
    if len(torch.unique(rows.labels)) < 2:
        raise DataError("the training rows have one class only; a classifier needs two")
    check_selection(train if val is None else val, test)
    if val is not None:
        _, _, classes = pair(train, val)
    else:
        classes = len(rows.names) if rows.names is not None else int(rows.labels.max()) + 1
        if test is not None:
            _, _, classes = pair(train, test)
    if config.solver == "lbfgs":
        return _fit_lbfgs(train, val, classes, config, rows)
    return _fit_sgd(train, val, classes, config, rows, device, memory)


def _check(config: ProbeConfig) -> None:
    check_seed(config.seed)
    if config.solver not in ("sgd", "lbfgs"):
        raise UsageError(f"solver must be sgd or lbfgs, got {config.solver!r}")
    if config.epoch_rule not in ("last", "best"):
        raise UsageError(f"epoch_rule must be last or best, got {config.epoch_rule!r}")
    if config.dtype not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"dtype must be auto, float32 or bfloat16, got {config.dtype!r}")
    for name in ("epochs", "batch_size", "max_iterations"):
        check_number(name, getattr(config, name), 1)
    check_number("weight_decay", config.weight_decay, 0)
    if not config.learning_rates:
        raise UsageError("learning_rates are missing: give one or more to choose from")
    for value in config.learning_rates:
        check_number("a learning rate", value, 0, open_low=True)
    for value in config.strengths:
        check_number("C", value, 0, open_low=True)


def _fit_sgd(
    train: Given, val: Given | None, classes: int, config: ProbeConfig, rows: Samples,
    device: str | torch.device, memory: str,
) -> Probe:  # fmt: skip
    start = time.monotonic()
    # One decision for both stages: which form the rows have changes no number.
    streamed = isinstance(train, FeatureStore) and val is None and too_large(train, memory, device)
    chosen_on = _divided(train, val, classes, config, device, streamed)
    recipe = Recipe(
        config.epochs, config.batch_size, config.momentum, config.weight_decay, resolve_dtype(config.dtype, device),
        config.seed,
    )  # fmt: skip
    title = "linear probe, learning rates"
    selection = _train(chosen_on, config.learning_rates, recipe, title, keep_best=config.epoch_rule == "best")
    score, place, epoch = selection.best(config.epoch_rule)
    if not score >= 0:
        raise DataError(
            f"the linear probe diverged at every learning rate ({', '.join(f'{r:g}' for r in config.learning_rates)}); "
            "give smaller ones"
        )
    rate = config.learning_rates[place]
    detail = f"lr {rate:g}{_chosen(rate, config.learning_rates)}"
    rule = f"best epoch on held-out rows, {epoch + 1} of {config.epochs}"
    weights, final, curve = selection.weights[place], chosen_on, selection.curve(place)
    if config.epoch_rule == "last":
        final = _whole(train, classes, device, streamed) if val is None else chosen_on
        if val is None:
            again = _train(final, (rate,), recipe, "linear probe, all rows", validate=False)
            weights = again.weights[0]
            if not weights:
                raise DataError(f"the linear probe diverged on all rows at learning rate {rate:g}; give smaller ones")
        rule = f"last epoch of {config.epochs}"
    head = Head(rows.width, classes, HeadSpec((), 0.0, rate))
    names = [name for name, _ in head.layers.named_parameters(prefix="layers")]
    state = {
        "mean": final.mean.cpu(),
        "std": final.std.cpu(),
        **dict(zip(names, (w.cpu() for w in weights), strict=True)),
    }
    head.load_state_dict(state)
    return Probe(
        "linear probe, SGD", head.eval(), score, f"{detail}, batch {config.batch_size}, views {final.views}", rule,
        tuple(curve), config.seed, time.monotonic() - start,
    )  # fmt: skip


@dataclass
class _Trained:
    """What training a head per learning rate gave; of one that diverged the accuracy is NaN and weights are missing."""

    accuracies: list[list[float]]
    losses: list[list[float]]
    weights: list[list[Tensor]]

    def best(self, rule: str) -> tuple[float, int, int]:
        """Give accuracy, place and epoch of the best head, the first of equals; an accuracy of NaN is below all."""
        found = (-1.0, 0, 0)
        for place, curve in enumerate(self.accuracies):
            if not self.weights[place]:
                continue
            epoch = len(curve) - 1 if rule == "last" else int(np.argmax(curve))
            if curve[epoch] > found[0]:
                found = curve[epoch], place, epoch
        return found

    def curve(self, place: int) -> list[dict[str, float]]:
        """Give loss and accuracy per epoch."""
        return [
            {"epoch": epoch + 1, "train_loss": loss, "validation_accuracy": accuracy}
            for epoch, (loss, accuracy) in enumerate(zip(self.losses[place], self.accuracies[place], strict=True))
        ]


def _train(
    rows: Source, rates: Sequence[float], recipe: Recipe, title: str, *, keep_best: bool = False, validate: bool = True
) -> _Trained:
    specs = [HeadSpec((), 0.0, rate) for rate in rates]
    bank = HeadBank(
        specs, len(rows.mean), rows.classes, recipe.seed, optimizers=[recipe.optimizer(spec) for spec in specs],
        numbers=[0] * len(rates), half=recipe.dtype == "bfloat16", device=rows.device,
    )  # fmt: skip
    first = torch.tensor(rates, dtype=torch.float64)
    done = _Trained([[] for _ in rates], [[] for _ in rates], [[] for _ in rates])
    with bar(title, recipe.epochs, "epoch") as shown:
        for epoch in range(recipe.epochs):
            running = bank.running
            if not running:
                break
            losses = train_epoch(bank, rows, recipe, epoch, first[running]).tolist()
            found = validation_accuracy(bank, rows).tolist() if validate else [math.nan] * len(running)
            for place, loss, accuracy in zip(running, losses, found, strict=True):
                if not math.isfinite(loss) or validate and not math.isfinite(accuracy):
                    bank.stop(place)
                    done.weights[place] = []
                    continue
                best = max(done.accuracies[place], default=-1.0)
                done.accuracies[place].append(accuracy)
                done.losses[place].append(loss)
                if not keep_best or accuracy > best:
                    done.weights[place] = bank.weights(place) if keep_best or epoch == recipe.epochs - 1 else []
            shown.advance()
    for place, weights in enumerate(done.weights):
        if not all(bool(torch.isfinite(weight).all()) for weight in weights):
            done.weights[place] = []
    return done


def _divided(
    train: Given, val: Given | None, classes: int, config: ProbeConfig, device: str | torch.device, streamed: bool
) -> Source:
    """Give rows to train on and rows to choose by."""
    if val is None and isinstance(train, FeatureStore):
        form = "stream" if streamed else "load"
        return open_rows(train, config.val_fraction, config.seed, memory=form, device=device)
    features, labels = _in_memory(train, "training")
    if val is not None:
        held, held_labels = _in_memory(val, "validation")
        return standardised((features, labels), (held[0], held_labels), classes).to(device)
    rest, out = (torch.from_numpy(part) for part in holdout(labels.numpy(), config.val_fraction, config.seed))
    return standardised((features[:, rest], labels[rest]), (features[0, out], labels[out]), classes).to(device)


def _chosen(value: float, offered: Sequence[float]) -> str:
    """Say from how many a value was chosen, and whether it is at an end: a better one may lie outside."""
    if len(offered) == 1:
        return ""
    end = ", the smallest" if value == min(offered) else ", the largest" if value == max(offered) else ""
    return f" chosen from {len(offered)}{end}"


def _whole(train: Given, classes: int, device: str | torch.device, streamed: bool) -> Source:
    """Give all rows to train on; what stands in the place of rows to choose by is never looked at."""
    if isinstance(train, FeatureStore):
        assert train.labels is not None
        views = ("identity", "flip") if "flip" in train.views else ("identity",)
        rows = StoredRows(train, np.arange(train.rows), np.arange(1), train.labels, classes, views, device)
        return rows if streamed else rows.load()
    features, labels = _in_memory(train, "training")
    return standardised((features, labels), (features[0, :1], labels[:1]), classes).to(device)


def _in_memory(given: Given, what: str) -> tuple[Tensor, Tensor]:
    """Give features (views, N, D), float32 and finite, and labels."""
    rows = Samples(given, what)
    if isinstance(given, FeatureStore):
        views = ("identity", "flip") if "flip" in given.views else ("identity",)
        return torch.stack([given.load(view) for view in views]), rows.labels
    features = torch.as_tensor(given[0]).float()
    features = features if features.dim() == 3 else features[None]
    if not bool(torch.isfinite(features).all()):
        row = int((~torch.isfinite(features)).any(0).any(1).nonzero()[0])
        raise DataError(f"{what} features hold NaN or infinity, first in row {row}; extract anew")
    return features, rows.labels


def _fit_lbfgs(train: Given, val: Given | None, classes: int, config: ProbeConfig, rows: Samples) -> Probe:
    start = time.monotonic()
    divided = _divided(train, val, classes, config, "cpu", False)
    assert isinstance(divided, Rows)
    grid = config.strengths or C_GRID
    present, labels = torch.unique(divided.labels, return_inverse=True)
    with bar("linear probe, L-BFGS", 2, "fit") as shown:
        strength, score, count = choose_strength(
            divided, present, labels, grid, min(100, config.max_iterations), seed=config.seed
        )
        shown.advance()
        whole = divided
        if val is None:  # the rows that have chosen are trained on in the end
            everything = _whole(train, classes, "cpu", False)
            assert isinstance(everything, Rows)
            whole = everything
            present, labels = torch.unique(whole.labels, return_inverse=True)
        fit = fit_logistic(whole.features[0], labels, len(present), [strength], config.max_iterations)
        shown.advance()
    converged = f"{'' if fit.converged[0] else 'not '}converged in {fit.steps[0]} steps"
    chosen = f"{_chosen(strength, grid)} on {count:,} rows" if len(grid) > 1 else ""
    head = logistic_head(fit.weight[0], fit.bias[0], present, whole.mean, whole.std, classes)
    return Probe(
        "linear probe, L-BFGS", head, score, f"C {strength:.3g}{chosen}, fitted on {len(labels):,}; {converged}",
        "converged fit, no epochs", (), config.seed, time.monotonic() - start,
    )  # fmt: skip
