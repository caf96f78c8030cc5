"""The search: stage after stage, with metrics, saves, and the genotype at the end."""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslfast.data import Dataset
from sslfast.data.views import plan
from sslfast.device import resolve_device
from sslfast.errors import SslfastError, UsageError
from sslfast.files import read_json, write_json
from sslfast.memory import freed_memory_kept
from sslfast.nas.architect import first_not_finite
from sslfast.nas.cell import edge_ends
from sslfast.nas.config import SearchConfig
from sslfast.nas.genotype import Genotype, depth, parse, skips
from sslfast.nas.stage import Halves, Stage, divide, first_primitives
from sslfast.nas.state import load_search_state, read_position, save_search_state
from sslfast.pretrain.training import statistics
from sslfast.progress import Bar, bar
from sslfast.run import Run

STATE = "search.safetensors"


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        genotype: the cells.
        seed: of the search.
        seconds: that it took.
        loss: of the weights at the last step.
    """

    genotype: Genotype
    seed: int
    seconds: float
    loss: float


def search(
    dataset: Dataset,
    config: SearchConfig,
    run: Run,
    *,
    image_size: int | None = None,
    device: str = "auto",
    save_seconds: float = 20.0,
) -> SearchResult:
    """Search cells on a data set's training images.

    The images are divided: weights are trained on one part, alphas and betas on the other. The state is saved every
    ``save_seconds``; a killed run continues from there and ends, on the CPU, in the same alphas bit for bit.

    Args:
        dataset: of a training split, decoded, all images of one size.
        config: what decides the result.
        run: receives metrics.jsonl (losses of every step; alphas, betas and the genotype of every epoch),
            search.safetensors (the state, while the search is under way) and result.json.
        image_size: side of a view in pixels; by default the image's own shorter side.
        device: auto, cpu or cuda.
        save_seconds: between two saves of the state.

    Raises:
        UsageError: an option names something that does not exist, or the views do not fit the loss.
        DataError: see `sslfast.nas.stage.divide`.
        SslfastError: a loss, an alpha or a weight became infinite or NaN; the last good state stays.
    """
    check_views(config)
    halves = divide(dataset, config)
    if (run.folder / "result.json").exists():
        (run.folder / STATE).unlink(missing_ok=True)  # a kill may have left it
        return read_result(run.folder)
    where = resolve_device(device)
    assert dataset.image_size is not None
    session = _Session(dataset, halves, config, run, image_size or min(dataset.image_size), where, save_seconds)
    with freed_memory_kept() if where.type == "cpu" else nullcontext():
        return session.search()


def search_seeds(
    dataset: Dataset,
    config: SearchConfig,
    folder: Path,
    seeds: tuple[int, ...],
    *,
    decided: dict[str, Any],
    resume: bool = False,
    image_size: int | None = None,
    device: str = "auto",
) -> list[SearchResult]:
    """Search with several seeds, one run folder each, and write the spread of what they found to spread.json.

    Args:
        dataset: as `search`.
        config: whose own seed is not used.
        folder: gets ``seed-<seed>`` for each, and spread.json.
        seeds: different ones.
        decided: what else decides the result; it goes to every run's config.json.
        resume: go on with what is there.
        image_size: as `search`.
        device: as `search`.

    Raises:
        UsageError: no seeds, or one twice; or as `search`.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"a search needs different seeds, at least one, got {seeds}")
    found = []
    for seed in seeds:
        with Run(folder / f"seed-{seed}", {**decided, "seed": seed}, resume=resume) as run:
            of_seed = replace(config, seed=seed)
            found.append(search(dataset, of_seed, run, image_size=image_size, device=device))
    write_json(folder / "spread.json", spread(found))
    return found


def spread(results: list[SearchResult]) -> dict[str, Any]:
    """Say how far searches agree: skips and depths of their cells, and how often a gene is in two of them."""
    cells = {name: [getattr(result.genotype, name) for result in results] for name in ("normal", "reduce")}
    return {
        "seeds": [result.seed for result in results],
        "genotypes": [str(result.genotype) for result in results],
        "seconds": [result.seconds for result in results],
        **{f"skips_{name}": [skips(genes) for genes in found] for name, found in cells.items()},
        **{f"depth_{name}": [depth(genes) for genes in found] for name, found in cells.items()},
        **{f"agreement_{name}": _agreement(found) for name, found in cells.items()},
    }


def _agreement(cells: list[Any]) -> float | None:
    """Mean share of genes (operation, state, node) that two cells have in common; None for a single cell."""
    placed = [{(name, state, 2 + number // 2) for number, (name, state) in enumerate(genes)} for genes in cells]
    pairs = [len(one & other) / max(len(one), len(other)) for i, one in enumerate(placed) for other in placed[i + 1 :]]
    return round(float(np.mean(pairs)), 4) if pairs else None


def check_views(config: SearchConfig) -> None:
    """Check that the views are there, and fit the loss.

    Raises:
        UsageError: there is no such plan, it has views of several sizes, or not two where s > 0.
    """
    views = plan(config.plan)
    if len(views.groups) > 1:
        raise UsageError(f"a search needs views of one size, the plan {config.plan} has {len(views.groups)}")
    if config.s > 0 and views.views != 2:
        raise UsageError(f"Barlow Twins needs two views of an image, the plan {config.plan} has {views.views}")


def read_result(folder: Path) -> SearchResult:
    """Read the result of a search that is done."""
    found = read_json(folder / "result.json")
    return SearchResult(parse(found["genotype"]), found["option_seed"], found["seconds"], found["loss"])


class _Session:
    """The steps between a start (or a resumption) and the end."""

    def __init__(
        self,
        dataset: Dataset,
        halves: Halves,
        config: SearchConfig,
        run: Run,
        size: int,
        device: torch.device,
        save_seconds: float,
    ) -> None:
        self.dataset, self.halves, self.config, self.run = dataset, halves, config, run
        self.size, self.device, self.save_seconds = size, device, save_seconds
        self.preprocess = statistics(dataset.subset(halves.train), size)
        self.path = run.folder / STATE
        self.loss = math.nan
        self.seconds = 0.0
        self.kept = "no state was saved yet"
        self.started = self.saved = time.monotonic()

    def search(self) -> SearchResult:
        """Do the stages that are left."""
        stage, step = self._begin()
        while True:
            self._stage(stage, step)
            if stage.number + 1 == len(self.config.cells):
                return self._finish(stage)
            stage, step = self._built(stage.number + 1, *stage.kept()), 0
            self._save(stage, 0)

    def _begin(self) -> tuple[Stage, int]:
        if not self.path.exists():
            self.run.keep_metrics(lambda line: False)
            primitives = first_primitives()
            return self._built(0, primitives, primitives), 0
        position = read_position(self.path)
        stage = self._built(position.stage, position.normal, position.reduce)
        load_search_state(self.path, stage)
        self.seconds = position.seconds
        self.kept = self._kept_text(position.stage, position.step)
        self.run.keep_metrics(lambda line: (line["stage"], line["step"]) < (position.stage, position.step))
        return stage, position.step

    def _built(self, number: int, normal: Any, reduce: Any) -> Stage:
        return Stage(
            self.dataset,
            self.halves,
            self.config,
            number,
            normal,
            reduce,
            self.size,
            self.preprocess,
            self.device,
        )

    def _stage(self, stage: Stage, first: int) -> None:
        config = self.config
        images = len(self.halves.train)
        self.run.log(
            f"stage {stage.number + 1} of {len(config.cells)}: {config.cells[stage.number]} cells, "
            f"{config.operations[stage.number]} operations an edge, {stage.steps} steps from {first} on, {self.device}"
        )
        done = first // stage.steps_per_epoch * images
        with bar(f"stage {stage.number + 1}", config.epochs * images, "img", done) as progress:
            for step, train, valid in stage.batches(first):
                losses = stage.step(step, train, valid)
                self._look(stage, step, losses, len(train.indices), progress)
                last = step + 1 == stage.steps
                if not last and time.monotonic() - self.saved > self.save_seconds:
                    self._save(stage, step + 1)

    def _look(self, stage: Stage, step: int, losses: tuple[Tensor, Tensor | None], images: int, progress: Bar) -> None:
        loss, judged = (math.nan if one is None else one.item() for one in losses)
        where = f"at step {step} of stage {stage.number + 1}"
        architecture = stage.network.architecture()
        bad = first_not_finite(architecture, edge_ends(4))
        if bad is not None:
            raise SslfastError(f"{bad} became infinite or NaN {where} ({self.kept}); try a lower --alpha-rate")
        if not math.isfinite(loss):
            raise SslfastError(f"the loss became {loss} {where} ({self.kept}); try a lower --learning-rate")
        self.loss = loss
        values = {"loss": round(loss, 6)}
        if losses[1] is not None:
            values["valid_loss"] = round(judged, 6)
        self.run.metric(stage=stage.number, step=step, images=images, **values)
        progress.advance(images)
        progress.note(f"loss {loss:.3f}")
        epochs, rest = divmod(step + 1, stage.steps_per_epoch)
        if rest == 0:
            self.run.metric(
                stage=stage.number,
                step=step,
                epoch=epochs,
                genotype=str(stage.network.genotype()),
                skip_dropout=stage.network.skip_dropout,
                learning_rate=stage.optimizer.param_groups[0]["lr"],
                **{name: value.detach().tolist() for name, value in architecture.items()},
            )

    def _save(self, stage: Stage, step: int) -> None:
        # A step's loss is that of the weights before it; what the step made of them is looked at before it is kept.
        values = [value for value in stage.objective.state_dict().values() if value.is_floating_point()]
        if not torch.stack([value.isfinite().all() for value in values]).all():
            raise SslfastError(
                f"weights became infinite or NaN before step {step} of stage {stage.number + 1} ({self.kept}); "
                "try a lower --learning-rate"
            )
        save_search_state(self.path, stage, step, self.seconds + time.monotonic() - self.started)
        self.kept = self._kept_text(stage.number, step)
        self.saved = time.monotonic()

    def _kept_text(self, stage: int, step: int) -> str:
        return f"the state before step {step} of stage {stage + 1} is kept in {self.path}"

    def _finish(self, stage: Stage) -> SearchResult:
        most = self.config.most_skips
        genotype = stage.network.genotype(most_skips=None if most < 0 else most)
        seconds = round(self.seconds + time.monotonic() - self.started, 1)
        options = {f"option_{name}": getattr(self.config, name) for name in self.config.__dataclass_fields__}
        write_json(
            self.run.folder / "result.json",
            {
                "genotype": str(genotype),
                "skips": skips(genotype.normal),
                "depth_normal": depth(genotype.normal),
                "depth_reduce": depth(genotype.reduce),
                "loss": self.loss,
                "seconds": seconds,
                "train_images": len(self.halves.train),
                "valid_images": len(self.halves.valid),
                "image_size": self.size,
                "device": str(self.device),
                **{name: value.detach().tolist() for name, value in stage.network.architecture().items()},
                "primitives_normal": stage.network.primitives_normal,
                "primitives_reduce": stage.network.primitives_reduce,
                **options,
            },
        )
        self.path.unlink(missing_ok=True)
        return SearchResult(genotype, self.config.seed, seconds, self.loss)
