"""Trains the winner's head again with some epochs in which the backbone learns, too."""

import copy
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.data import Dataset
from sslfast.errors import DataError, SslfastError, UsageError
from sslfast.features import FeatureStore, extract
from sslfast.files import read_json, write_json
from sslfast.models import Backbone, save_backbone
from sslfast.models.head import Head, HeadSpec, save_head
from sslfast.progress import Bar, bar
from sslfast.run import Run
from sslfast.search.bank import HeadBank, stream
from sslfast.search.sources import Source, StoredRows, too_large
from sslfast.search.train import Recipe, Trained, epoch_rows, learning_rates, train_epoch, validation_accuracy


@dataclass(frozen=True)
class Unfreezing:
    """When the whole model learns; the two readings of the paper's "the weights of the entire model at epoch ten only".

    Args:
        at: epochs of the head alone before it (10: the eleventh epoch, as Lightning's BackboneFinetuning counts).
        epochs: how many epochs the whole model learns; None: to the end.
    """

    at: int = 10
    epochs: int | None = 1

    def last(self, total: int) -> int:
        """Give the epoch at which the backbone is frozen again.

        Raises:
            UsageError: no epoch is left to unfreeze, or a number is out of range.
        """
        if not 0 <= self.at < total:
            raise UsageError(f"--unfreeze-at must lie between 0 and the last of {total} epochs, got {self.at}")
        if self.epochs is not None and self.epochs < 1:
            raise UsageError(f"--unfreeze-epochs must be at least 1, got {self.epochs}")
        return total if self.epochs is None else min(total, self.at + self.epochs)


@dataclass(frozen=True)
class Images:
    """Images whose features a store holds, and the rows of it that train and that validate.

    Args:
        dataset: decoded, all images of one size, in the store's order.
        labels: of every image (N,).
        rest: rows that are trained on.
        held_out: rows that choose the epoch.
        flip: whether training sees mirrored images, too.
    """

    dataset: Dataset
    labels: Tensor
    rest: Tensor
    held_out: Tensor
    flip: bool


def matching_images(dataset: Dataset, store: FeatureStore, size: int) -> Dataset:
    """Decode the images that a store was made of.

    Raises:
        DataError: they are other images, or others of them can be read.
    """
    check_images(dataset, store)
    decoded = dataset.decoded(None if dataset.image_size is not None else size)
    if tuple(map(str, decoded.ids)) != tuple(store.ids):
        raise DataError(f"{store.path} holds {len(store)} of the images, {len(decoded)} can be read now; extract anew")
    return decoded


def check_images(dataset: Dataset, store: FeatureStore) -> None:
    """Refuse images that a store was not made of.

    Raises:
        DataError: they are others.
    """
    if dataset.fingerprint() != store.manifest["dataset"]["fingerprint"]:
        raise DataError(f"{dataset.name} ({dataset.split}) is not what {store.path} was extracted from")


def unfreeze(
    backbone: Backbone,
    images: Images,
    store: FeatureStore,
    spec: HeadSpec,
    recipe: Recipe,
    unfreezing: Unfreezing,
    *,
    out: Path,
    classes: tuple[str, ...],
    number: int = 0,
    device: str = "cpu",
    resume: bool = False,
) -> dict[str, Any]:
    """Train a head with the recipe of the search, the backbone learning in some epochs.

    Up to ``at`` the head is trained on the stored features, exactly as in the search. Then head and backbone are
    trained on the images by Nesterov SGD, the learning rate going on along the head's cosine, batch normalisation and
    dropout as in training. Then features are extracted anew (into ``out/features``), and the head goes on on them. The
    standardisation stays what it was. Of all epochs the best on the held-out rows is kept: ``head.safetensors`` and the
    ``backbone.safetensors`` that belongs to it.

    Args:
        backbone: that made the features; it is left as it is.
        images: what to train on.
        store: their features.
        spec: the head.
        recipe: as in the search.
        unfreezing: when.
        out: the run folder.
        classes: class names.
        number: the trial's.
        device: where to train.
        resume: read what is there when it is finished; what is not is begun anew.

    Returns:
        ``value``, ``epoch``, ``accuracies`` of all epochs, ``learning`` (the epochs in which the backbone learnt) and
        ``seconds``.

    Raises:
        UsageError: no epoch is left to unfreeze, or another optimiser than SGD.
        SslfastError: training diverged.
    """
    end = unfreezing.last(recipe.epochs)
    if spec.optimizer != "sgd":
        raise UsageError(f"unfreezing trains with SGD, the winner's optimizer is {spec.optimizer}")
    config = {
        "spec": asdict(spec),
        "recipe": asdict(recipe),
        "unfreezing": asdict(unfreezing),
        "number": number,
        "backbone": backbone.fingerprint(),
        "rows": [len(images.rest), len(images.held_out)],
    }
    result_path = out / "result.json"
    with Run(out, config, resume=resume) as run, bar("unfreezing", recipe.epochs, "epoch") as shown:
        if result_path.exists():
            content: dict[str, Any] = read_json(result_path)
            return content
        started = time.monotonic()
        views = ("identity", "flip") if images.flip else ("identity",)
        rows = _rows(store, images, views, len(classes), device)
        work = _Work(rows, spec, recipe, number, shown)
        work.frozen(0, unfreezing.at)
        network = copy.deepcopy(backbone).to(device)
        work.learning(network, images, unfreezing.at, end, device)
        if end < recipe.epochs:
            # What a killed stage left is of its network: training again need not end at the same bits.
            shutil.rmtree(out / "features", ignore_errors=True)
            anew = extract(network.eval(), images.dataset, out / "features", views, device=device)
            work.rows = _rows(anew, images, views, len(classes), device, (rows.mean.cpu(), rows.std.cpu()))
            work.frozen(end, recipe.epochs)
        trained = Trained(tuple(work.accuracies), work.epoch, work.value, tuple(work.weights))
        kept = backbone if work.epoch < unfreezing.at else _with_state(backbone, work.backbone_state)
        save_backbone(kept, out / "backbone.safetensors")
        save_head(
            trained.head(rows, spec), out / "head.safetensors", classes, kept.fingerprint(), {"trial": str(number)}
        )
        found = {
            "value": work.value,
            "epoch": work.epoch,
            "accuracies": work.accuracies,
            "learning": [unfreezing.at, end],
            "seconds": time.monotonic() - started,
        }
        write_json(result_path, found)
        run.log(f"best epoch {work.epoch}: {work.value}")
    return found


class _Work:
    """The head, epoch after epoch, and the best that it was."""

    def __init__(self, rows: Source, spec: HeadSpec, recipe: Recipe, number: int, shown: Bar) -> None:
        self.rows, self.spec, self.recipe, self.number, self.shown = rows, spec, recipe, number, shown
        self.bank = HeadBank(
            [spec], len(rows.mean), rows.classes, recipe.seed, optimizers=recipe.optimizer(spec), numbers=[number],
            half=recipe.dtype == "bfloat16", device=rows.device,
        )  # fmt: skip
        self.accuracies: list[float] = []
        self.epoch, self.value = 0, -1.0
        self.weights: list[Tensor] = []
        self.backbone_state: dict[str, Tensor] = {}

    def frozen(self, first: int, last: int) -> None:
        """Train the head alone on stored features."""
        rate = torch.tensor([self.spec.learning_rate], dtype=torch.float64)
        for epoch in range(first, last):
            train_epoch(self.bank, self.rows, self.recipe, epoch, rate)
            self.note(epoch, float(validation_accuracy(self.bank, self.rows)[0]), self.bank.weights(0))

    def note(self, epoch: int, accuracy: float, weights: list[Tensor], network: nn.Module | None = None) -> None:
        """Keep what is best."""
        if not math.isfinite(accuracy):
            raise SslfastError(f"training diverged in epoch {epoch + 1}: logits that are not finite")
        self.accuracies.append(accuracy)
        if network is not None:
            self.latest = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        if accuracy > self.value:
            self.epoch, self.value, self.weights = epoch, accuracy, weights
            self.backbone_state = getattr(self, "latest", {})
        self.shown.advance()
        self.shown.note(f"best {self.value:.4f} (epoch {self.epoch + 1})")

    def learning(self, backbone: Backbone, images: Images, first: int, last: int, device: str) -> None:
        """Train backbone and head on images."""
        head = Head(len(self.rows.mean), self.rows.classes, self.spec)
        names = [name for name, _ in head.layers.named_parameters(prefix="layers")]
        start = dict(zip(names, self.bank.weights(0), strict=True))
        head.load_state_dict({"mean": self.rows.mean, "std": self.rows.std, **start})
        head.to(device)
        parameters = [*backbone.parameters(), *head.parameters()]
        optimizer = torch.optim.SGD(
            parameters, 1.0, self.recipe.momentum, weight_decay=self.recipe.weight_decay, nesterov=True
        )
        views = 2 if images.flip else 1
        compute = torch.bfloat16 if self.recipe.dtype == "bfloat16" else torch.float32
        with torch.random.fork_rng():
            torch.manual_seed(stream(self.recipe.seed, 4, self.number) % 2**63)
            for epoch in range(first, last):
                order, view = epoch_rows(self.recipe.seed, epoch, views, len(images.rest))
                backbone.train()
                head.train()
                parts = zip(
                    torch.split(order, self.recipe.batch_size),
                    torch.split(view, self.recipe.batch_size),
                    self.spec.learning_rate * learning_rates(self.recipe, len(images.rest), epoch),
                    strict=True,
                )
                for chosen, mirrored, rate in parts:
                    if len(chosen) < 2:  # batch normalisation has no variance of one image
                        continue
                    optimizer.param_groups[0]["lr"] = float(rate)
                    pixels = torch.from_numpy(images.dataset.images(images.rest[chosen].numpy()))
                    mirror = (mirrored == 1)[:, None, None, None]
                    x = backbone.preprocess(torch.where(mirror, pixels.flip(2), pixels).to(device))
                    with torch.autocast(torch.device(device).type, compute, enabled=compute != torch.float32):
                        features = backbone(x)
                    loss = F.cross_entropy(head(features.float()), images.labels[images.rest[chosen]].to(device))
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                backbone.eval()
                weights = [value.detach().cpu().clone() for value in head.layers.parameters()]
                self.note(epoch, self._accuracy(backbone, head.eval(), images, device), weights, backbone.network)
        self.bank.load(0, [value.detach().cpu() for value in head.layers.parameters()])

    @torch.no_grad()
    def _accuracy(self, backbone: Backbone, head: Head, images: Images, device: str) -> float:
        right = 0
        for rows in torch.split(images.held_out, 256):
            pixels = torch.from_numpy(images.dataset.images(rows.numpy())).to(device)
            logits = head(backbone(backbone.preprocess(pixels)).float()).cpu()
            if not bool(logits.isfinite().all()):
                return math.nan
            right += int((logits.argmax(1) == images.labels[rows]).sum())
        return right / len(images.held_out)


def _rows(
    store: FeatureStore,
    images: Images,
    views: tuple[str, ...],
    classes: int,
    device: str,
    standardised: tuple[Tensor, Tensor] | None = None,
) -> Source:
    """Open features as the search does, where it trained; with mean and deviation, standardised by these."""
    rest, held_out = images.rest.numpy(), images.held_out.numpy()
    rows = StoredRows(store, rest, held_out, images.labels, classes, views, device, standardised)
    return rows if too_large(store, device=device) else rows.load()


def _with_state(backbone: Backbone, state: dict[str, Tensor]) -> Backbone:
    changed = copy.deepcopy(backbone).eval()
    changed.network.load_state_dict(state)
    return changed
