"""``sslfast report``: draw a run as one HTML page."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sslfast.progress import console


@dataclass(frozen=True)
class Options:
    """Which run to draw, and where to.

    Args:
        run: the run folder, of demo, pretrain or tune.
        out: the page to write; by default report.html in the run folder.
        json: print where the page is as JSON.
    """

    run: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    json: bool = False


def run(options: Options) -> None:
    """Write the page and say where it is.

    Raises:
        SslfastError: the folder is missing, holds no run, is damaged, or the page cannot be written.
    """
    from sslfast.report import write_report

    path = write_report(options.run, options.out)
    print(json.dumps({"report": str(path)}) if options.json else path)
    console.print(f"next: open {path} in a browser; it needs no network", markup=False, soft_wrap=True)
