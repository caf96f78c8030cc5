"""What several commands do with a backbone's file: load it, whoever wrote it, and tell what was recognised."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sslfast.progress import console

if TYPE_CHECKING:
    from sslfast.models import Backbone


def load(backbone: str, checkpoint: Path | None, layout: str | None, allow_missing: tuple[str, ...]) -> Backbone:
    """Load our own file, or a foreign checkpoint into an architecture by name, and print what it was taken for.

    Args:
        backbone: a file that sslfast wrote, or, where ``checkpoint`` is given, the architecture's name.
        checkpoint: a checkpoint that anybody wrote.
        layout: whose layout it has, where more than one fits.
        allow_missing: weights or modules that it need not have.

    Raises:
        UsageError: the options do not belong together, or the checkpoint can be read in several ways.
        SslfastError: the checkpoint cannot be read or does not fit.
    """
    from sslfast import models
    from sslfast.errors import UsageError
    from sslfast.models.architectures import is_architecture

    if checkpoint is None:
        if not os.path.exists(backbone) and is_architecture(backbone):
            raise UsageError(f"--backbone {backbone} names an architecture; give its weights with --checkpoint FILE")
        if layout is not None or allow_missing:
            raise UsageError("--layout and --allow-missing are for a foreign --checkpoint")
        return models.load_backbone(models.architecture_of(backbone), backbone)
    found = models.load_backbone(backbone, checkpoint, layout=layout, allow_missing=allow_missing)
    tell(found)
    return found


def tell(backbone: Backbone) -> None:
    """Print what was recognised in a foreign checkpoint."""
    for line in backbone.report.lines() if backbone.report is not None else ():
        console.print(line.encode("utf-8", "replace").decode(), markup=False, soft_wrap=True)
