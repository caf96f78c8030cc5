"""The training loop, the same for every method: steps, metrics, probes, saves, and the end of a run."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sslfast.data import Dataset, Skipped, holdout, printable
from sslfast.data.size import decoded_if_small, working_size
from sslfast.device import resolve_device, resolve_dtype
from sslfast.errors import DataError, DivergedError
from sslfast.files import write_json
from sslfast.memory import freed_memory_kept
from sslfast.models import Backbone, check_architecture, load_backbone, save_backbone
from sslfast.pretrain.config import PretrainConfig
from sslfast.pretrain.feed import views_of
from sslfast.pretrain.method import Method
from sslfast.pretrain.methods import NAMES, save_method
from sslfast.pretrain.online import Probe
from sslfast.pretrain.parallel import Follower, Ranks, joined
from sslfast.pretrain.state import load_training_state, save_training_state
from sslfast.pretrain.training import Training
from sslfast.progress import Bar, bar
from sslfast.run import Run

AfterEpoch = Callable[[int, Method], dict[str, float]]
"""Called with the number of epochs that were done and the method, in training mode; it leaves both as they are."""

UNREAD_LOSSES = 20
"""Steps of a GPU whose losses are read together: reading one waits for everything before it."""


def pretrain(
    dataset: Dataset,
    config: PretrainConfig,
    run: Run | Follower,
    *,
    image_size: int | None = None,
    device: str = "auto",
    save_seconds: float = 20.0,
    after_epoch: AfterEpoch | None = None,
) -> Backbone:
    """Train a backbone on a data set's images; labels are used by the supervised baseline and the online probes only.

    The state is saved every ``save_seconds``; a killed run continues from there and ends with the same weights. In a
    process group of torch.distributed every process calls this with its own device and, but for the first one, a
    `Follower`; all of them must see the run's folder.

    Args:
        dataset: in memory, or in files. Small images of one size (up to 96 pixels) are decoded once; others as they
            are needed, and those that cannot be are left out. A batch larger than the set is the whole set.
        config: the method's options, which decide the result.
        run: receives metrics.jsonl, log.txt (which names the images that were left out), training.safetensors (the
            state), backbone.safetensors, method.safetensors (what was trained beside the backbone) and result.json.
        image_size: side of a view in pixels; by default the images' own shorter side up to 96 pixels, else 64.
        device: auto, cpu or cuda.
        save_seconds: between two saves of the state.
        after_epoch: looks at the method after every epoch; what it gives joins metrics.jsonl as a line of its own.

    Returns:
        The trained backbone, in evaluation mode, on the CPU.

    Raises:
        UsageError: an option names something that does not exist, or the views are not the method's.
        DataError: fewer than two images, of the set or of a step, or labels that are needed are missing.
        DivergedError: the loss became infinite or NaN; the last good state stays.
    """
    check_names(config, device)
    size = working_size(dataset, image_size)
    ranks = joined()
    state_path = run.folder / "training.safetensors"
    finished, begun = ranks.agree(((run.folder / "result.json").exists(), state_path.exists()))
    if finished:
        if ranks.rank == 0:
            state_path.unlink(missing_ok=True)  # a kill may have left it
        return load_backbone(config.backbone, run.folder / "backbone.safetensors").eval()
    where = resolve_device(device)
    dataset = decoded_if_small(dataset)
    if len(dataset) < 2:
        raise DataError(f"pre-training needs at least 2 images, {printable(dataset.name)} has {len(dataset)}")
    held_out: Dataset | None = None
    if config.probe_every:
        rest, held = holdout(dataset.labels, config.probe_fraction, config.seed)
        dataset, held_out = dataset.subset(rest), dataset.subset(held)
        if len(dataset) < 2:
            raise DataError(
                f"pre-training needs at least 2 images besides those held out, {printable(dataset.name)} has 1"
            )
    if where.type == "cuda":
        torch.backends.cudnn.benchmark = True
    training = Training(dataset, config, size, where, ranks)
    first, seconds = 0, 0.0
    if begun:
        first, seconds, left_out = load_training_state(state_path, training.state, training.optimizer)
        for index, reason in left_out.items():
            training.feed.loader.leave_out(index, reason)
        run.keep_metrics(lambda line: line["step"] < first)
    ranks.wait()  # everybody has read the state before the first process writes another
    session = _Session(training, run, ranks, first, seconds, save_seconds)
    session.after_epoch = after_epoch
    if held_out is not None and ranks.rank == 0:
        session.probe = Probe(dataset, held_out, training.backbone.preprocess)
    run.log(
        f"{config.METHOD}: {len(dataset)} images at {size} pixels, {training.total} steps from {first} on, {where}, "
        f"{training.compute}"
        + (f", {ranks.world} processes" if ranks.world > 1 else "")
        + (
            f"; a batch of {config.batch_size} is more than the set: a step has all"
            if config.batch_size > len(dataset)
            else ""
        )
    )
    session.tell(dataset.skipped)
    with freed_memory_kept() if where.type == "cpu" else nullcontext():
        session.train()
    return session.finish(dataset)


class _Session:
    """The steps between a start (or a resumption) and the end."""

    def __init__(
        self,
        training: Training,
        run: Run | Follower,
        ranks: Ranks,
        first: int,
        seconds: float,
        save_seconds: float,
    ) -> None:
        self.training, self.run, self.ranks = training, run, ranks
        self.first, self.seconds, self.save_seconds = first, seconds, save_seconds
        self.state_path = run.folder / "training.safetensors"
        self.probe: Probe | None = None
        self.after_epoch: AfterEpoch | None = None
        self.scores: dict[str, float] = {}
        self.loss = math.nan
        self.kept: int | None = first or None
        """The step that the saved state begins with; None where nothing is saved."""
        self.unread: list[tuple[int, Tensor]] = []
        self.left_out: dict[str, str] = {}
        """Images that could not be read, by their path, and why."""
        self.started = self.saved = self.read = time.monotonic()

    def train(self) -> None:
        """Do the steps that are left."""
        training, feed, config = self.training, self.training.feed, self.training.config
        together = 1 if training.device.type == "cpu" else UNREAD_LOSSES
        total = config.epochs * len(feed.dataset)
        with self._bar(total, feed.images_done(self.first)) as progress:
            for step, parts in enumerate(feed.steps(self.first, training.total), start=self.first):
                self.unread.append((step, training.step(step, parts)))
                last = step + 1 == training.total
                probing = config.probe_every and self._epoch_ends(step, config.probe_every)
                looking = self.after_epoch is not None and self._epoch_ends(step, 1)
                if len(self.unread) < together and not last and not probing and not looking:
                    continue
                self._read(progress)
                if probing:
                    self._probe(step)
                if looking:
                    self._look(step)
                if not last and self.ranks.agree(time.monotonic() - self.saved > self.save_seconds):
                    self._save(step + 1)

    def finish(self, dataset: Dataset) -> Backbone:
        """Write what was trained, and remove the state."""
        training, config, backbone = self.training, self.training.config, self.training.backbone
        self._check_weights(training.total)
        if training.average is not None:
            backbone.network.load_state_dict(training.network.state_dict())
        backbone.cpu().eval()
        path = self.run.folder / "backbone.safetensors"
        left_out = self._share_left_out()
        self.seconds += time.monotonic() - self.started
        if self.ranks.rank == 0:
            save_backbone(backbone, path)
            fingerprint = backbone.fingerprint()
            save_method(training.method, config, self.run.folder / "method.safetensors", training.classes, fingerprint)
            result: dict[str, Any] = {
                "method": config.METHOD,
                **{f"option_{key}": value for key, value in asdict(config).items()},
                "images": len(dataset) - len(left_out),
                "skipped": len(self.left_out),
                "steps": training.total,
                "loss": self.loss,
                "seconds": round(self.seconds, 1),
                "compute_dtype": str(training.compute).removeprefix("torch."),
                "processes": self.ranks.world,
                **self.scores,
                "fingerprint": fingerprint,
            }
            write_json(self.run.folder / "result.json", result)
            self.state_path.unlink(missing_ok=True)
        self.ranks.wait()
        # Read anew: the one that was trained may be compiled, or synchronise its batch statistics.
        trained = load_backbone(config.backbone, path).eval()
        trained.source = f"{NAMES[config.METHOD]} on {dataset.name} ({dataset.split})"
        return trained

    def _bar(self, total: int, done: int) -> AbstractContextManager[Bar]:
        if self.ranks.rank:
            return nullcontext(_Silent())
        return bar("pre-training", total, "img", done)

    def _epoch_ends(self, step: int, every: int) -> bool:
        epochs, rest = divmod(step + 1, self.training.feed.steps_per_epoch)
        return rest == 0 and (epochs % every == 0 or epochs == self.training.config.epochs)

    def _read(self, progress: Bar) -> None:
        """Read the losses of the steps since the last time, and write their metrics."""
        if not self.unread:
            return
        feed = self.training.feed
        losses = [loss.item() for _, loss in self.unread]
        now = time.monotonic()
        counts = [feed.images(step) for step, _ in self.unread]
        rate = round(sum(counts) / max(now - self.read, 1e-6), 1)
        for (step, _), loss, count in zip(self.unread, losses, counts, strict=True):
            if not math.isfinite(loss):
                raise DivergedError(self._diverged(f"the loss became {loss} at step {step}"))
            self.run.metric(
                step=step,
                epoch=round((step + 1) / feed.steps_per_epoch, 4),
                loss=round(loss, 6),
                learning_rate=self.training.rate(step),
                images=count,
                images_per_second=rate,
            )
            self.loss = loss
            progress.advance(count)
        progress.note(f"loss {self.loss:.3f}")
        self.unread, self.read = [], now
        self.tell(feed.loader.skipped)

    def tell(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Name images that could not be read in log.txt, each once."""
        for path, reason in skipped:
            if path not in self.left_out:
                self.left_out[path] = reason
                self.run.log(f"left out: {Skipped(path, reason)}")

    def _share_left_out(self) -> dict[int, str]:
        """Let every process know what any of them could not read."""
        loader = self.training.feed.loader
        for found in self.ranks.gathered(loader.left_out):
            for index, reason in found.items():
                loader.leave_out(index, reason)
        self.tell(loader.skipped)
        return loader.left_out

    def _probe(self, step: int) -> None:
        if self.probe is not None:
            found = self.probe(self.training.network, self.training.device, self.training.compute)
            self.tell(self.probe.left_out.items())
            self.scores = {f"held_out_{name}": value for name, value in found.items()}
            epoch = (step + 1) // self.training.feed.steps_per_epoch
            self.run.metric(step=step, epoch=epoch, **self.scores)
            self.run.log(f"epoch {epoch}: right of the held-out images: k-NN {found['knn']}, linear {found['linear']}")
        self.ranks.wait()
        self.read = time.monotonic()

    def _look(self, step: int) -> None:
        if self.after_epoch is not None and self.ranks.rank == 0:
            epoch = (step + 1) // self.training.feed.steps_per_epoch
            found = self.after_epoch(epoch, self.training.method)
            if found:
                self.run.metric(step=step, epoch=epoch, **found)
        self.ranks.wait()
        self.read = time.monotonic()

    def _check_weights(self, step: int) -> None:
        # A step's loss is that of the weights before it; what the step made of them is looked at before it is kept.
        values = [value for value in self.training.state.state_dict().values() if value.is_floating_point()]
        if not torch.stack([value.isfinite().all() for value in values]).all():
            raise DivergedError(self._diverged(f"weights became infinite or NaN at step {step - 1}"))

    def _save(self, step: int) -> None:
        self._check_weights(step)
        left_out = self._share_left_out()
        if self.ranks.rank == 0:
            seconds = self.seconds + time.monotonic() - self.started
            save_training_state(self.state_path, self.training.state, self.training.optimizer, step, seconds, left_out)
        self.kept = step
        self.saved = time.monotonic()

    def _diverged(self, what: str) -> str:
        kept = "no state was saved yet" if self.kept is None else f"the state before step {self.kept} is kept"
        return f"{what} ({kept} in {self.run.folder}); try a lower --learning-rate"


class _Silent:
    """The bar of every process but the first."""

    def advance(self, count: int = 1) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""


def check_names(config: PretrainConfig, device: str = "auto") -> None:
    """Check the options that name something, before any work is done.

    Raises:
        UsageError: there is no such architecture, policy, device or dtype.
    """
    check_architecture(config.backbone)
    views_of(config.policy)
    resolve_dtype(config.dtype, resolve_device(device))
