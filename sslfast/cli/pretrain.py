"""``sslfast pretrain``: train a backbone on images without their labels (or, as the baseline, with them)."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, Union

import tyro

from sslfast.errors import UsageError
from sslfast.pretrain.config import CONFIGS, PretrainConfig
from sslfast.pretrain.recipes import RECIPES, Recipe
from sslfast.progress import console

Config = TypeVar("Config", bound=PretrainConfig)


@dataclass(frozen=True)
class Options(Generic[Config]):
    """What to train, and on what. With torchrun, several processes share every batch.

    Args:
        config: of the method.
        data: a data set's name, ``folder:PATH`` or ``imagefolder:PATH`` (see ``sslfast data``).
        recipe: a paper's settings in the place of the defaults; other options still count. See docs/pretrain.md.
        split: of the data set.
        data_dir: where data sets lie, before the usual places.
        image_size: side of a view in pixels; by default the images' own size up to 96 pixels, else 64.
        out: folder of the run; by default runs/<time>-pretrain.
        resume: go on with the run in --out that was broken off.
        device: auto, cpu or cuda.
        json: print the result as JSON.
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    data: str
    recipe: str = ""
    split: str = "train"
    data_dir: Path | None = None
    image_size: int | None = None
    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    json: bool = False


def options(words: Sequence[str]) -> Any:
    """Give the type of the options: one subcommand a method, whose defaults are the recipe's that ``words`` name.

    Raises:
        UsageError: there is no such recipe, or it is of another method.
    """
    recipe = _named_recipe(words)
    if recipe is not None and words and words[0] in CONFIGS and words[0] != recipe.config.METHOD:
        name = _named(words)
        raise UsageError(
            f"recipe {name} is of {recipe.config.METHOD}: sslfast pretrain {recipe.config.METHOD} --recipe {name}"
        )
    kinds = []
    for method, kind in CONFIGS.items():
        described = (kind.__doc__ or "").splitlines()[0]
        how: dict[str, Any] = {"name": method, "description": described}
        if recipe is not None and method == recipe.config.METHOD:
            how["default"] = Options(recipe.config, tyro.MISSING)
        kinds.append(Annotated[Options[kind], tyro.conf.subcommand(**how)])  # type: ignore[valid-type]
    return Union[tuple(kinds)]  # noqa: UP007 (made at run time)


def _named(words: Sequence[str]) -> str:
    for here, after in zip(words, [*words[1:], ""], strict=True):
        if here == "--recipe":
            return after
        if here.startswith("--recipe="):
            return here.partition("=")[2]
    return ""


def _named_recipe(words: Sequence[str]) -> Recipe | None:
    name = _named(words)
    if not name:
        return None
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]


def run(options: Options[Any]) -> None:
    """Train and say where the backbone is."""
    from sslfast.pretrain.parallel import torchrun

    if options.resume and options.out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with")
    with torchrun(options.device) as device:
        _train(options, device)


def _train(options: Options[Any], device: str) -> None:
    from sslfast.data import load
    from sslfast.data.size import working_size
    from sslfast.files import read_json
    from sslfast.pretrain.loop import check_names, pretrain
    from sslfast.pretrain.parallel import Follower, joined
    from sslfast.run import Run, new_run_folder

    config: PretrainConfig = options.config
    check_names(config, device)
    dataset = load(options.data, options.split, root=options.data_dir)
    size = working_size(dataset, options.image_size)
    ranks = joined()
    folder = ranks.agree(options.out or new_run_folder("pretrain"))
    decided = {"command": "pretrain", "method": config.METHOD, "data": options.data, "split": options.split}
    decided["images"] = dataset.fingerprint()
    if ranks.rank:
        pretrain(dataset, config, Follower(folder), image_size=size, device=device)
        return
    with Run(folder, {**decided, "image_size": size, **asdict(config)}, resume=options.resume) as run:
        pretrain(dataset, config, run, image_size=size, device=device)
    result = read_json(folder / "result.json")
    if result.get("skipped"):
        told = f"{result['skipped']} unreadable images or class folders were left out; {folder / 'log.txt'} names them"
        console.print(told, markup=False, soft_wrap=True)
    if options.json:
        print(json.dumps({"backbone": str(folder / "backbone.safetensors"), **result}))
        return
    print(f"{folder / 'backbone.safetensors'}  (loss {result['loss']:.4f}, {result['seconds']:.0f} s)")
    words = ["sslfast", "extract", "--backbone", folder / "backbone.safetensors", "--data", options.data]
    words += ["--split", options.split, "--out", folder / "features"]
    console.print(f"next: {shlex.join(map(str, words))}", markup=False, soft_wrap=True)
