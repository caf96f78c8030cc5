"""``sslfast demo``: the whole job on one data set, in one command."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sslfast.progress import console
from sslfast.recipes.config import DemoConfig


@dataclass(frozen=True)
class Options:
    """What to run the job on, and where.

    Args:
        config: of the job.
        data_dir: where data sets lie, before the usual places.
        out: folder of the run; by default runs/<time>-demo.
        resume: go on with the run in --out that was broken off.
        device: auto, cpu or cuda.
        json: print the table as JSON.
    """

    config: Annotated[DemoConfig, tyro.conf.arg(name="")] = field(default_factory=DemoConfig)
    data_dir: Path | None = None
    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    json: bool = False


def run(options: Options) -> None:
    """Run the job, print the table and what to type next."""
    from sslfast.errors import UsageError
    from sslfast.pretrain.loop import check_names
    from sslfast.recipes.demo import run_demo
    from sslfast.report import write_report
    from sslfast.run import Run, new_run_folder

    if options.resume and options.out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with")
    check_names(options.config.pretrain, options.device)
    folder = options.out or new_run_folder("demo")
    with Run(folder, {"command": "demo", **asdict(options.config)}, resume=options.resume) as run:
        console.print(f"the run's folder is {folder}", markup=False, soft_wrap=True)
        table = run_demo(options.config, run, data_dir=options.data_dir, device=options.device)
        write_report(folder, folder / "report.html")
    if options.json:
        print(json.dumps({"folder": str(folder), **table}))
        return
    show_table(table)
    print(f"report: {folder / 'report.html'}")
    print(f"next:   sslfast predict --model {folder / 'model.onnx'} IMAGE_OR_FOLDER")


def show_table(table: dict[str, Any]) -> None:
    """Print the rows and both budgets."""
    title = escape(f"{table['data']}: accuracy on {table['split']}")
    shown = Table(title=title, title_justify="left")
    shown.add_column("classifier")
    shown.add_column("test", justify="right")
    shown.add_column("validation", justify="right")
    shown.add_column("seconds", justify="right")
    shown.add_column("what it is")
    for row in table["rows"]:
        shown.add_row(
            escape(row["name"]),
            f"{100 * row['test_accuracy']:.2f} %",
            f"{100 * row['validation_accuracy']:.2f} %",
            f"{row['seconds']:.0f}",
            escape(row["detail"]),
        )
    output = Console(highlight=False)
    output.print(shown)
    pretrain, tune = table["budget"]["pretrain"], table["budget"]["tune"]
    seeds = "1 seed" if table["seeds"] == 1 else f"{table['seeds']} seeds"
    output.print(f"{seeds}; {table['which_epoch']}.", markup=False)
    output.print(
        f"pre-training: {pretrain['images']:,} images x {pretrain['epochs']} epochs x {pretrain['views']} views, batch "
        f"{pretrain['batch_size']}; search: {tune['trials']} trials x {tune['epochs']} epochs on all "
        f"{tune['train_rows']:,} cached training rows, batch {tune['batch_size']}; "
        f"{table['budget']['seconds']:.0f} s in all.",
        markup=False,
    )
