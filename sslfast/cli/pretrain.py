"""``sslfast pretrain``: train a backbone on images without their labels."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sslfast.pretrain.config import SimCLRConfig
from sslfast.progress import console


@dataclass(frozen=True)
class Options:
    """What to train, and on what.

    Args:
        method: how to train.
        data: a data set's name, ``folder:PATH`` or ``imagefolder:PATH`` (see ``sslfast data``).
        split: of the data set.
        data_dir: where data sets lie, before the usual places.
        image_size: side of a view in pixels; by default the images' own size up to 96 pixels, else 64.
        out: folder of the run; by default runs/<time>-pretrain.
        resume: go on with the run in --out that was broken off.
        device: auto, cpu or cuda.
        json: print the result as JSON.
        config: of the method.
    """

    method: Annotated[Literal["simclr"], tyro.conf.Positional]
    data: str
    split: str = "train"
    data_dir: Path | None = None
    image_size: int | None = None
    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    json: bool = False
    config: Annotated[SimCLRConfig, tyro.conf.arg(name="")] = field(default_factory=SimCLRConfig)


def run(options: Options) -> None:
    """Train and say where the backbone is."""
    from sslfast.data import load
    from sslfast.data.size import working_size
    from sslfast.errors import UsageError
    from sslfast.pretrain.simclr import check_names, pretrain_simclr
    from sslfast.run import Run, new_run_folder

    if options.resume and options.out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with")
    check_names(options.config, options.device)
    dataset = load(options.data, options.split, root=options.data_dir)
    size = working_size(dataset, options.image_size)
    folder = options.out or new_run_folder("pretrain")
    decided = {"command": "pretrain", "method": options.method, "data": options.data, "split": options.split}
    decided["images"] = dataset.fingerprint()
    with Run(folder, {**decided, "image_size": size, **asdict(options.config)}, resume=options.resume) as run:
        dataset = dataset.decoded(size)
        _tell_skipped(len(dataset.skipped), dataset.skipped)
        pretrain_simclr(dataset, options.config, run, image_size=size, device=options.device)
    result = json.loads((folder / "result.json").read_text())
    if options.json:
        print(json.dumps({"backbone": str(folder / "backbone.safetensors"), **result}))
        return
    print(f"{folder / 'backbone.safetensors'}  (loss {result['loss']:.4f}, {result['seconds']:.0f} s)")
    console.print(
        f"next: sslfast extract --backbone {folder / 'backbone.safetensors'} --data {options.data} "
        f"--split {options.split} --out {folder / 'features'}",
        markup=False,
        soft_wrap=True,
    )


def _tell_skipped(count: int, skipped: object) -> None:
    if count:
        console.print(f"{count} unreadable images were left out, the first: {next(iter(skipped))}", markup=False)  # type: ignore[call-overload]
