"""``sslfast nas``: search a network's cells, train what was found, and look at cells."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sslfast.errors import UsageError
from sslfast.nas.config import NetworkConfig, SearchConfig
from sslfast.nas.recipes import RECIPES
from sslfast.progress import console


@dataclass(frozen=True)
class SearchOptions:
    """What to search, and on what.

    Args:
        config: of the search.
        data: a data set's name, ``folder:PATH`` or ``imagefolder:PATH`` (see ``sslfast data``); its training images.
        recipe: a paper's settings in the place of the defaults; other options still count. See docs/nas.md.
        seeds: searches, with the seeds from --seed on; three and more show the spread.
        data_dir: where data sets lie, before the usual places.
        image_size: side of a view in pixels; by default the images' own size up to 96 pixels, else 64.
        images: of the training split at most, evenly spaced; 0: all.
        out: folder of the search; by default runs/<time>-nas-search.
        resume: go on with the search in --out that was broken off.
        device: auto, cpu or cuda.
        json: print the result as JSON.
    """

    config: Annotated[SearchConfig, tyro.conf.arg(name="")]
    data: str
    recipe: str = ""
    seeds: int = 1
    data_dir: Path | None = None
    image_size: int | None = None
    images: int = 0
    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    json: bool = False


@dataclass(frozen=True)
class TrainOptions:
    """Which cells to train from scratch, and on what.

    Args:
        config: of the training.
        genotype: a published name, a genotype's text, the folder of a search with one seed, or random:SEED.
        data: a data set's name, ``folder:PATH`` or ``imagefolder:PATH`` (see ``sslfast data``).
        data_dir: where data sets lie, before the usual places.
        image_size: side of a view in pixels; by default the images' own size up to 96 pixels, else 64.
        images: of the training split at most, evenly spaced; 0: all.
        test: whether the test images are classified at the end.
        out: folder of the run; by default runs/<time>-nas-train.
        resume: go on with the training in --out that was broken off.
        device: auto, cpu or cuda.
        json: print the result as JSON.
    """

    config: Annotated[NetworkConfig, tyro.conf.arg(name="")]
    genotype: str
    data: str
    data_dir: Path | None = None
    image_size: int | None = None
    images: int = 0
    test: bool = True
    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    json: bool = False


@dataclass(frozen=True)
class ShowOptions:
    """Which cells to look at.

    Args:
        genotype: DARTS_V1, DARTS_V2, PC_DARTS_cifar, PC_DARTS_image, PDARTS, a genotype's text, the folder of a search
            with one seed, or random:SEED.
        channels: of the derived network.
        layers: its cells.
        classes: its outputs.
        json: print as JSON.
    """

    genotype: tyro.conf.Positional[str]
    channels: int = 36
    layers: int = 20
    classes: int = 10
    json: bool = False


def options(words: Sequence[str]) -> Any:
    """Give the type of the options: one subcommand each, whose defaults are the recipe's that ``words`` name.

    Raises:
        UsageError: there is no such recipe.
    """
    config = _named_recipe(words)
    search = tyro.conf.subcommand(
        name="search",
        description="search cells on a data set's training images",
        default=SearchOptions(config, tyro.MISSING),
    )
    train = tyro.conf.subcommand(
        name="train",
        description="train the network of a genotype from scratch",
        default=TrainOptions(NetworkConfig(), tyro.MISSING, tyro.MISSING),
    )
    show = tyro.conf.subcommand(name="show", description="count a genotype's weights, skips and depth")
    return Annotated[SearchOptions, search] | Annotated[TrainOptions, train] | Annotated[ShowOptions, show]


def _named_recipe(words: Sequence[str]) -> SearchConfig:
    for here, after in zip(words, [*words[1:], ""], strict=True):
        name = after if here == "--recipe" else here.partition("=")[2] if here.startswith("--recipe=") else ""
        if name:
            if name not in RECIPES:
                raise UsageError(f"unknown recipe {name!r}; there are: {', '.join(RECIPES)}")
            return RECIPES[name].config
    return SearchConfig()


def run(options: SearchOptions | TrainOptions | ShowOptions) -> None:
    """Search, train or show."""
    if isinstance(options, ShowOptions):
        _show(options)
    elif isinstance(options, TrainOptions):
        _train(options)
    else:
        _search(options)


def _search(options: SearchOptions) -> None:
    if options.resume and options.out is None:
        raise UsageError("--resume needs --out: the folder of the search to go on with")
    if options.seeds < 1:
        raise UsageError(f"seeds must be at least 1, got {options.seeds}")
    from sslfast.data import load
    from sslfast.data.size import working_size
    from sslfast.nas.loop import check_views, search_seeds
    from sslfast.run import new_run_folder

    config = options.config
    check_views(config)
    dataset = _at_most(options.images, load(options.data, "train", root=options.data_dir))
    size = working_size(dataset, options.image_size)
    folder = options.out or new_run_folder("nas-search")
    decided = {
        **{"command": "nas search", "data": options.data, "split": "train", "images": dataset.fingerprint()},
        **{"image_size": size, **asdict(config)},
    }
    seeds = tuple(range(config.seed, config.seed + options.seeds))
    found = search_seeds(
        dataset.decoded(size),
        config,
        folder,
        seeds,
        decided=decided,
        resume=options.resume,
        image_size=size,
        device=options.device,
    )
    told = json.loads((folder / "spread.json").read_text())
    if options.json:
        print(json.dumps({"folder": str(folder), **told}))
        return
    for result, skips, depth in zip(found, told["skips_normal"], told["depth_normal"], strict=True):
        print(f"seed {result.seed}  {skips} skips, depth {depth}, {result.seconds:.0f} s  {result.genotype}")
    if told["agreement_normal"] is not None:
        print(f"two searches have {told['agreement_normal']:.0%} of the normal cell's genes in common")
    console.print(
        f"next: sslfast nas train --genotype {folder / f'seed-{found[0].seed}'} --data {options.data}",
        markup=False,
        soft_wrap=True,
    )


def _at_most(count: int, dataset: Any) -> Any:
    """Take ``count`` images, evenly spaced; 0: all."""
    import numpy as np

    if count < 0:
        raise UsageError(f"images must be at least 0, got {count}")
    if not 0 < count < len(dataset):
        return dataset
    return dataset.subset(np.linspace(0, len(dataset) - 1, count).round().astype(np.int64))


def _genotype(text: str) -> Any:
    """Find a genotype by name, text, folder or random:SEED."""
    from sslfast.nas.genotype import drawn, parse

    kind, _, seed = text.partition(":")
    if kind == "random" and seed.isdecimal():
        return drawn(int(seed))
    if "(" not in text and Path(text).is_dir():
        from sslfast.nas.loop import read_result

        return read_result(Path(text)).genotype
    return parse(text)


def _train(options: TrainOptions) -> None:
    if options.resume and options.out is None:
        raise UsageError("--resume needs --out: the folder of the training to go on with")
    from sslfast.data import check_same_classes, load
    from sslfast.data.size import working_size
    from sslfast.files import write_json
    from sslfast.nas.network import parameter_count
    from sslfast.nas.train import train_network
    from sslfast.run import Run, new_run_folder

    genotype = _genotype(options.genotype)
    dataset = _at_most(options.images, load(options.data, "train", root=options.data_dir))
    size = working_size(dataset, options.image_size)
    test = load(options.data, "test", root=options.data_dir) if options.test else None
    if test is not None:
        check_same_classes(dataset, test)
    folder = options.out or new_run_folder("nas-train")
    decided = {
        **{"command": "nas train", "data": options.data, "images": dataset.fingerprint(), "image_size": size},
        **{"genotype": str(genotype), **asdict(options.config)},
    }
    with Run(folder, decided, resume=options.resume) as run:
        trained = train_network(
            dataset.decoded(size), genotype, options.config, run, image_size=size, device=options.device
        )
    told: dict[str, Any] = {
        "network": str(folder / "network.safetensors"),
        "parameters": parameter_count(trained.network),
        "genotype": str(genotype),
        "train_images": len(dataset),
        "epochs": options.config.epochs,
    }
    if test is not None:
        test = test.decoded(size)
        right = int((trained.predict(test).numpy() == test.labels).sum())
        told |= {"test_images": len(test), "right": right, "test_accuracy": round(right / len(test), 4)}
    write_json(folder / "result.json", told)
    if options.json:
        print(json.dumps(told))
        return
    print(f"{told['network']}  ({told['parameters']:,} weights)")
    if test is not None:
        print(
            f"test accuracy {told['test_accuracy']:.2%} of {len(test)} images, last of {options.config.epochs} epochs, "
            f"1 seed ({options.config.seed}), trained on {len(dataset)} images"
        )


def _show(options: ShowOptions) -> None:
    import torch

    from sslfast.nas.genotype import depth, skips
    from sslfast.nas.network import Network, parameter_count

    genotype = _genotype(options.genotype)
    with torch.device("meta"):
        plain, auxiliary = (
            parameter_count(Network(options.channels, options.classes, options.layers, tower, genotype))
            for tower in (False, True)
        )
    told = {
        "genotype": str(genotype),
        "parameters": plain,
        "parameters_with_auxiliary": auxiliary,
        **{f"skips_{name}": skips(getattr(genotype, name)) for name in ("normal", "reduce")},
        **{f"depth_{name}": depth(getattr(genotype, name)) for name in ("normal", "reduce")},
    }
    if options.json:
        print(json.dumps(told))
        return
    for name in ("normal", "reduce"):
        genes = getattr(genotype, name)
        print(f"{name} cell: {told[f'skips_{name}']} skips, depth {told[f'depth_{name}']}")
        for number, (operation, state) in enumerate(genes):
            print(f"  {state} -> {2 + number // 2}  {operation}")
    print(
        f"{options.layers} cells of {options.channels} channels, {options.classes} classes: {plain:,} weights, "
        f"{auxiliary:,} with the auxiliary classifier"
    )
