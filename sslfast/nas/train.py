"""Training a derived network from scratch, resumed to the bit, and its accuracy."""

import json
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from sslfast.data import Dataset
from sslfast.data.loader import Batch, ViewLoader
from sslfast.data.views import plan
from sslfast.device import resolve_device
from sslfast.errors import DataError, IntegrityError, SslfastError, UsageError
from sslfast.files import writing
from sslfast.memory import freed_memory_kept
from sslfast.models import Preprocess
from sslfast.nas.config import NetworkConfig
from sslfast.nas.genotype import Genotype, parse
from sslfast.nas.network import Network, parameter_count
from sslfast.nas.operations import OPERATIONS
from sslfast.pretrain.state import load_training_state, save_training_state
from sslfast.pretrain.training import class_count, statistics
from sslfast.progress import bar
from sslfast.run import Run
from sslfast.tensors import read_tensors

FORMAT = "sslfast-network-1"
STATE = "training.safetensors"


@dataclass(frozen=True)
class Trained:
    """A derived network with what it needs to classify images.

    Attributes:
        network: in evaluation mode, on the CPU.
        preprocess: of its images.
        classes: their names, or their numbers.
        genotype: of its cells.
    """

    network: Network
    preprocess: Preprocess
    classes: tuple[str, ...]
    genotype: Genotype

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: (N, H, W, 3), uint8.

        Returns:
            (N, classes), float32.
        """
        result: Tensor = self.network(self.preprocess(images))[0]
        return result

    def predict(self, dataset: Dataset, batch_size: int = 256) -> Tensor:
        """Classify a decoded data set's images; returns the classes' numbers, int64 (N,)."""
        parts = np.array_split(np.arange(len(dataset)), max(1, math.ceil(len(dataset) / batch_size)))
        return torch.cat([self.logits(torch.from_numpy(dataset.images(part))).argmax(1) for part in parts])


def train_network(
    dataset: Dataset,
    genotype: Genotype,
    config: NetworkConfig,
    run: Run,
    *,
    image_size: int | None = None,
    device: str = "auto",
    save_seconds: float = 20.0,
) -> Trained:
    """Train a derived network on a labelled data set; the last epoch counts.

    The loss is L_CE + auxiliary x the auxiliary classifier's. A killed training goes on where it was and ends, on the
    CPU, with the same weights.

    Args:
        dataset: of a training split, decoded, all images of one size.
        genotype: of the cells.
        config: what decides the result.
        run: receives metrics.jsonl, training.safetensors (the state) and network.safetensors.
        image_size: side of a view in pixels; by default the image's own shorter side.
        device: auto, cpu or cuda.
        save_seconds: between two saves of the state.

    Raises:
        UsageError: there is no such plan of views, or it has more than one view.
        DataError: labels are missing, or there are fewer than 2 images or classes.
        SslfastError: the loss became infinite or NaN; the last good state stays.
    """
    views = plan(config.policy)
    if views.views != 1:
        raise UsageError(f"a network is trained on one view of an image, the plan {config.policy} has {views.views}")
    count = class_count(dataset)
    if len(dataset) < 2 or count < 2:
        raise DataError(
            f"a network needs at least 2 images and 2 classes, {dataset.name} has {len(dataset)} and {count}"
        )
    path = run.folder / "network.safetensors"
    if path.exists():
        (run.folder / STATE).unlink(missing_ok=True)  # a kill may have left it
        return load_network(path)
    assert dataset.image_size is not None
    size = image_size or min(dataset.image_size)
    where = resolve_device(device)
    preprocess = statistics(dataset, size)
    torch.manual_seed(config.seed)
    network = Network(config.channels, count, config.layers, config.auxiliary > 0, genotype).to(where).train()
    loader = ViewLoader(dataset, views, size, config.batch_size, config.seed, device=where)
    with freed_memory_kept() if where.type == "cpu" else nullcontext():
        _train(network, preprocess, loader, config, run, save_seconds)
    classes = dataset.classes or tuple(str(number) for number in range(count))
    trained = Trained(network.cpu().eval(), preprocess, tuple(classes), genotype)
    save_network(trained, config, path)
    (run.folder / STATE).unlink(missing_ok=True)
    return trained


def _train(
    network: Network, preprocess: Preprocess, loader: ViewLoader, config: NetworkConfig, run: Run, save_seconds: float
) -> None:
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    state = run.folder / STATE
    first, seconds = load_training_state(state, network, optimizer)[:2] if state.exists() else (0, 0.0)
    run.keep_metrics(lambda line: line["step"] < first)
    labels = torch.from_numpy(np.asarray(loader.dataset.labels)).long()
    per_epoch = loader.steps_per_epoch
    total = config.epochs * per_epoch
    started = saved = time.monotonic()
    run.log(f"{parameter_count(network)} weights, {total} steps from {first} on, {loader.device}")
    with bar("training", total, "step", first) as progress:
        for step, batch in enumerate(loader.batches(first, total), start=first):
            loss = _step(network, preprocess, optimizer, config, batch, labels, step, step // per_epoch)
            if not math.isfinite(loss):
                raise SslfastError(f"the loss became {loss} at step {step}; try a lower --learning-rate")
            run.metric(step=step, epoch=round((step + 1) / per_epoch, 4), loss=round(loss, 6))
            progress.advance()
            progress.note(f"loss {loss:.3f}")
            if step + 1 < total and time.monotonic() - saved > save_seconds:
                if not all(value.isfinite().all() for value in network.parameters()):
                    raise SslfastError(f"weights became infinite or NaN at step {step}; try a lower --learning-rate")
                save_training_state(state, network, optimizer, step + 1, seconds + time.monotonic() - started)
                saved = time.monotonic()
    # What comes after the last step is done anew from here where it is broken off.
    save_training_state(state, network, optimizer, total, seconds + time.monotonic() - started)


def _step(
    network: Network,
    preprocess: Preprocess,
    optimizer: torch.optim.Optimizer,
    config: NetworkConfig,
    batch: Batch,
    labels: Tensor,
    step: int,
    epoch: int,
) -> float:
    # Whatever is drawn (paths that are dropped) is a function of seed and step.
    draws = np.random.SeedSequence([config.seed, 2, step + 1])
    torch.manual_seed(int(draws.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    optimizer.param_groups[0]["lr"] = config.learning_rate_at(epoch)
    network.drop_path_prob = config.drop_path_at(epoch)
    targets = labels[torch.from_numpy(batch.indices)].to(batch.views[0].device)
    optimizer.zero_grad()
    logits, auxiliary = network(preprocess.normalise(batch.views[0]))
    loss = functional.cross_entropy(logits, targets)
    if auxiliary is not None:
        loss = loss + config.auxiliary * functional.cross_entropy(auxiliary, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    if config.clip:
        nn.utils.clip_grad_norm_(network.parameters(), config.clip)
    optimizer.step()
    return loss.item()


def save_network(trained: Trained, config: NetworkConfig, path: Path) -> None:
    """Write a network's weights and what they belong to, atomically."""
    preprocess = trained.preprocess
    metadata = {
        "format": FORMAT,
        "genotype": str(trained.genotype),
        "classes": json.dumps(trained.classes),
        "config": json.dumps(asdict(config)),
        "preprocess": json.dumps({"size": preprocess.size, "mean": preprocess.mean, "std": preprocess.std}),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in trained.network.state_dict().items()}
    with writing(path) as partial:
        save_file(tensors, partial, metadata=metadata)


def load_network(path: Path) -> Trained:
    """Read what `save_network` wrote, in evaluation mode, on the CPU.

    Raises:
        SslfastError: the file is missing, or is no network of ours.
        IntegrityError: its description and its weights do not fit.
    """
    try:
        tensors, metadata = read_tensors(path)
    except FileNotFoundError as error:
        raise SslfastError(f"there is no network {path}; give the file that sslfast nas train wrote") from error
    if metadata.get("format") != FORMAT:
        raise SslfastError(f"{path} is no network that sslfast nas train wrote (format {metadata.get('format')!r})")
    try:
        found: dict[str, Any] = json.loads(metadata["preprocess"])
        preprocess = Preprocess(found["size"], tuple(found["mean"]), tuple(found["std"]))
        classes = tuple(json.loads(metadata["classes"]))
        config = NetworkConfig(**json.loads(metadata["config"]))
        genotype = parse(metadata["genotype"], OPERATIONS)
        network = Network(config.channels, len(classes), config.layers, config.auxiliary > 0, genotype)
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
        raise IntegrityError(
            f"{path} is damaged: its description and its weights do not fit; train it again"
        ) from error
    return Trained(network.eval(), preprocess, classes, genotype)
