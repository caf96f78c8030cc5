"""Fine-tuning and frozen transfer: a head is trained on a backbone that learns along, or does not."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.data import Dataset, check_same_classes, printable
from sslfast.device import resolve_device, resolve_dtype
from sslfast.errors import DataError, DivergedError, UsageError
from sslfast.evaluate.classification import classification_report
from sslfast.evaluate.faults import NO_FAULTS, Faults
from sslfast.evaluate.finetuned import (
    FinetunedModel,
    HeadKind,
    Rows,
    batches,
    decoded,
    image_features,
    predict_logits,
)
from sslfast.evaluate.guards import check_no_random_layer, check_normalisation, check_selection
from sslfast.models import Backbone
from sslfast.options import check_number, check_seed
from sslfast.pretrain.state import load_training_state, save_training_state
from sslfast.progress import bar, tell_skipped
from sslfast.run import Run

NOISE = 0.05
"""Standard deviation of the noise of "noise-and-flips", as a share of a pixel's range; ours, the report has none."""

LOWER = "try a lower learning rate"


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that decides the result of a fine-tuning, apart from backbone and images.

    Args:
        mode: "finetune": every weight learns; "transfer": only the head does, the backbone's batch statistics stand
            still, too.
        epochs: passes over the training images.
        batch_size: images of a step, at most (of 2: three in one step, where the images are odd in number); the batches
            of an epoch differ by one image at most.
        learning_rate: of Adam, until the validation loss stays where it is.
        factor: what the learning rate is multiplied with then (``ReduceLROnPlateau``).
        patience: epochs without a lower validation loss before that.
        head: "linear": ReLU and a linear layer; "convolutions": two of them and a linear layer, on the last map.
        dropout: of the head of convolutions.
        augmentation: of the training images: "none", or "noise-and-flips": Gaussian noise, and flips in both
            directions, each with probability 1/2.
        seed: of the head, the order, the augmentation and dropout.
        dtype: of the backbone's products: float32, bfloat16 (autocast), or auto: bfloat16 where the processor has it.
    """

    mode: Literal["finetune", "transfer"] = "finetune"
    epochs: int = 50
    batch_size: int = 64
    learning_rate: float = 1e-4
    factor: float = 0.1
    patience: int = 10
    head: HeadKind = "linear"
    dropout: float = 0.5
    augmentation: Literal["none", "noise-and-flips"] = "none"
    seed: int = 0
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        for name, known in (
            ("mode", ("finetune", "transfer")),
            ("head", ("linear", "convolutions")),
            ("augmentation", ("none", "noise-and-flips")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; there are: {', '.join(known)}")
        for name, least in (("epochs", 1), ("batch_size", 2), ("patience", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        check_number("learning_rate", self.learning_rate, 0, open_low=True)
        check_number("factor", self.factor, 0, 1, open_low=True)
        check_number("dropout", self.dropout, 0, 1)
        check_seed(self.seed)


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned model, and how it came about.

    Args:
        model: with the weights after the epoch of the highest validation accuracy (the first of equals).
        last: the same model after the last epoch.
        history: per epoch ``epoch`` (from 0), ``loss`` (mean over the training images), ``val_loss``,
            ``val_accuracy``, ``val_f1`` (macro: the plain mean over classes), ``learning_rate``, ``steps``, ``seconds``
            (of this epoch's training alone) and what ``after_epoch`` gave.
        epoch: of ``model``, from 0.
        val_accuracy: of ``model``.
        seconds: of the training, validation included; all parts of one that was resumed together.
        config: what decided it.
        faults: what was done wrong on purpose.
    """

    model: FinetunedModel
    last: FinetunedModel
    history: list[dict[str, Any]]
    epoch: int
    val_accuracy: float
    seconds: float
    config: FinetuneConfig
    faults: Faults

    def predict(self, dataset: Dataset, which: Literal["best", "last"] = "best", device: str = "auto") -> Tensor:
        """Give the predicted class of each image (N,), int64, by the weights after the best or the last epoch."""
        where = resolve_device(device)
        model = copy.deepcopy(self.model if which == "best" else self.last).to(where)
        compute = resolve_dtype(self.config.dtype, where)
        with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
            torch.manual_seed(self.config.seed)  # for the fault under which dropout is on
            return predict_logits(model, dataset, self.config.batch_size, self.faults, compute).argmax(1)


AfterEpoch = Callable[[int, FinetunedModel], dict[str, Any]]
"""Called after an epoch's validation with its number (from 0) and the model; what it gives joins the epoch's line."""


def finetune(
    backbone: Backbone,
    train: Dataset,
    val: Dataset,
    config: FinetuneConfig,
    run: Run,
    *,
    faults: Faults = NO_FAULTS,
    device: str = "auto",
    save_seconds: float = 20.0,
    after_epoch: AfterEpoch | None = None,
) -> FinetuneResult:
    """Train a head on a backbone's features, and the backbone with it or not.

    Cross-entropy, Adam, ``ReduceLROnPlateau`` on the validation loss: the training of Jimenez and Hale (2023), as they
    meant it. Validation and prediction run in evaluation mode. Where nothing before the head changes, its features are
    computed once. A killed training goes on from its last saved epoch and ends with the same weights.

    Args:
        backbone: to start from; it is left as it is.
        train: labelled images to learn from.
        val: other labelled images of the same classes; the learning rate and the epoch are chosen on them.
        config: what decides the result.
        run: receives metrics.jsonl, a line per epoch, and training.safetensors, the state.
        faults: what is to be done wrong on purpose, to see what it costs.
        device: auto, cpu or cuda.
        save_seconds: least time between two saves of the state.
        after_epoch: looks at the model after an epoch.

    Raises:
        DataError: images without labels, of other classes, too few of them, or validation images of a test split or
            of the training set.
        DivergedError: the loss became infinite or NaN; the state saved last is kept.
        UsageError: there is no such device or dtype; a weight of the backbone was not in its checkpoint; or images
            are normalised otherwise than a known checkpoint was trained with.
    """
    where = resolve_device(device)
    compute = resolve_dtype(config.dtype, where)
    classes = _check(train, val, faults)
    if faults.wrong_input is None:
        check_normalisation(backbone)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(config.seed)
        model = FinetunedModel(backbone, classes, config.head, config.dropout, faults).to(where)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if faults.random_layer is None:
            check_no_random_layer(model, [model.backbone], model.head.parameters())
        model.requires_grad_(config.mode == "finetune")
        model.head.requires_grad_(True)
        training = _Training(model, _read(train, model), _read(val, model), config, faults, compute)
        return training.run(run, save_seconds, after_epoch)


class _Training:
    """One training: model, optimiser, schedule and what they see."""

    def __init__(
        self,
        model: FinetunedModel,
        train: Dataset,
        val: Dataset,
        config: FinetuneConfig,
        faults: Faults,
        compute: torch.dtype,
    ) -> None:
        assert train.labels is not None and val.labels is not None
        self.model, self.config, self.faults, self.compute = model, config, faults, compute
        self.labels = torch.from_numpy(train.labels)
        self.val_labels = torch.from_numpy(val.labels)
        self.train, self.val = train, val
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(learning, config.learning_rate, fused=True)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=config.factor, patience=config.patience
        )
        self.train_features: Tensor | None = None
        self.val_features: Tensor | None = None
        if config.mode == "transfer" and not (faults.frozen_batch_norm_learns or faults.training_mode_at_test):
            model.eval()  # nothing before the head changes: what it sees is made once
            self.val_features = self._features(val)
            if config.augmentation == "none":
                self.train_features = self._features(train)

    def run(self, run: Run, save_seconds: float, after_epoch: AfterEpoch | None) -> FinetuneResult:
        """Train from the last saved state on to the end."""
        model, config = self.model, self.config
        both = nn.ModuleDict({"model": model, "best": copy.deepcopy(model)})
        state = run.folder / "training.safetensors"
        first, before = 0, 0.0
        if state.exists():
            first, before, _ = load_training_state(state, both, self.optimizer)
        run.keep_metrics(lambda line: line["epoch"] < first)
        history = run.metrics()
        for line in history:
            self.scheduler.step(line["val_loss"])  # what it remembers is a function of the losses that it has seen
        started = saved = time.monotonic()
        with bar(config.mode, config.epochs * len(self.train), "img", first * len(self.train)) as shown:
            for epoch in range(first, config.epochs):
                line = {"epoch": epoch, **self._epoch(epoch, shown.advance), **self._validate(epoch)}
                if after_epoch is not None:
                    line.update(after_epoch(epoch, model))
                if line["val_accuracy"] > max((old["val_accuracy"] for old in history), default=-1.0):
                    both["best"].load_state_dict(model.state_dict())
                history.append(line)
                run.metric(**line)
                self.scheduler.step(line["val_loss"])
                shown.note(f"loss {line['loss']:.3f}, validation {100 * line['val_accuracy']:.1f} %")
                now = time.monotonic()
                if now - saved > save_seconds or epoch + 1 == config.epochs:
                    save_training_state(state, both, self.optimizer, epoch + 1, before + now - started)
                    saved = now
        values = [line["val_accuracy"] for line in history]
        best = values.index(max(values))
        ended: dict[str, Any] = {name: one.cpu().eval() for name, one in both.items()}
        seconds = before + (time.monotonic() - started if first < config.epochs else 0.0)
        return FinetuneResult(ended["best"], ended["model"], history, best, values[best], seconds, config, self.faults)

    def _epoch(self, epoch: int, advance: Callable[[int], None]) -> dict[str, Any]:
        """Train once over all images; order, augmentation and dropout are a function of seed and epoch alone."""
        random = np.random.default_rng([self.config.seed, epoch])
        torch.manual_seed(int(random.integers(2**62)))
        self.model.train()
        if self.config.mode == "transfer" and not self.faults.frozen_batch_norm_learns:
            self.model.backbone.eval()  # its dropout and its batch statistics belong to what does not learn
        total, rate = 0.0, self.optimizer.param_groups[0]["lr"]
        started = time.monotonic()
        parts = batches(random.permutation(len(self.train)), self.config.batch_size)
        for step, rows in enumerate(parts):
            logits = self.model.head(self._training_features(rows))
            loss = F.cross_entropy(logits, self.labels[torch.from_numpy(rows)].to(logits.device))
            value = loss.item()
            if not math.isfinite(value):
                where = f"epoch {epoch + 1}, step {step + 1}, learning rate {rate:g}"
                raise DivergedError(f"the loss became {value} ({where}); {LOWER}")
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += value * len(rows)
            advance(len(rows))
        seconds = time.monotonic() - started
        return {"loss": total / len(self.train), "learning_rate": rate, "steps": len(parts), "seconds": seconds}

    def _training_features(self, rows: Rows) -> Tensor:
        if self.train_features is not None:
            return self.train_features[torch.from_numpy(rows)]
        images = torch.from_numpy(self.train.images(rows))
        if self.config.augmentation == "noise-and-flips":
            images = noise_and_flips(images)
        with torch.set_grad_enabled(self.config.mode == "finetune"):
            return image_features(self.model, images, self.compute)

    @torch.no_grad()
    def _validate(self, epoch: int) -> dict[str, Any]:
        if self.val_features is None:
            logits = predict_logits(self.model, self.val, self.config.batch_size, self.faults, self.compute)
        else:
            self.model.eval()
            logits = torch.cat([self.model.head(part).cpu() for part in torch.split(self.val_features, 4096)])
        loss = float(F.cross_entropy(logits, self.val_labels))
        if not math.isfinite(loss):
            raise DivergedError(f"the validation loss became {loss} (epoch {epoch + 1}); {LOWER}")
        predicted = logits.argmax(1)
        accuracy = float((predicted == self.val_labels).double().mean())
        return {
            "val_loss": loss,
            "val_accuracy": accuracy,
            "val_f1": macro_f1(self.val_labels, predicted, logits.shape[1]),
        }

    @torch.no_grad()
    def _features(self, dataset: Dataset) -> Tensor:
        parts = []
        with bar("features", len(dataset), "img") as shown:
            for rows in batches(np.arange(len(dataset)), self.config.batch_size):
                parts.append(image_features(self.model, torch.from_numpy(dataset.images(rows)), self.compute))
                shown.advance(len(rows))
        return torch.cat(parts)


def noise_and_flips(images: Tensor) -> Tensor:
    """Flip images (N, H, W, 3), uint8, each in both directions with probability 1/2, and add Gaussian noise."""
    across, down = (torch.rand(2, len(images)) < 0.5)[..., None, None, None]
    images = torch.where(across, images.flip(2), images)
    images = torch.where(down, images.flip(1), images)
    noise = 255 * NOISE * torch.randn(images.shape)
    return (images + noise).round_().clamp_(0, 255).to(torch.uint8)


def macro_f1(labels: Tensor, predicted: Tensor, classes: int) -> float:
    """Give the plain mean of the F1 scores of the classes that occur or were predicted."""
    names = [str(number) for number in range(classes)]
    return classification_report(labels.numpy(), predicted.numpy(), names).macro.f1


def _read(dataset: Dataset, model: FinetunedModel) -> Dataset:
    """Decode images in memory, and tell those that cannot be read."""
    read = decoded(dataset, model)
    tell_skipped(read.skipped[len(dataset.skipped) :], dataset.split)
    return read


def _check(train: Dataset, val: Dataset, faults: Faults) -> int:
    check_same_classes(train, val)
    assert train.classes is not None
    for dataset, least in ((train, 2), (val, 1)):
        name = f"{printable(dataset.name)} {dataset.split}"
        if len(dataset) < least:
            raise DataError(f"{name}: {len(dataset)} images are too few to train on")
        assert dataset.labels is not None
        if not 0 <= dataset.labels.min() <= dataset.labels.max() < len(train.classes):
            raise DataError(f"{name}: a label is not one of 0 to {len(train.classes) - 1}")
    if not faults.swapped_splits:
        check_selection(val)
    both = {*train.ids} & {*val.ids} if (train.name, train.split) == (val.name, val.split) else set()
    if both:
        raise DataError(
            f"{len(both)} images are in training and in validation, {printable(min(both))} among them; divide them"
        )
    return len(train.classes)
