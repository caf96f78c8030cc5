"""Every operator's case, by name. A case lives in ``bench/cases``; baselines are imported from ``_reference``."""

from sslfast.bench.cases import (
    nt_xent,
    nt_xent_indexed,
    nt_xent_negatives,
    self_classifier,
    sinkhorn,
    swav_loss,
    unit_rows,
)
from sslfast.testing import OpCase

MODULES = (unit_rows, nt_xent, nt_xent_negatives, nt_xent_indexed, self_classifier, sinkhorn, swav_loss)

CASES: dict[str, OpCase] = {module.CASE.name: module.CASE for module in MODULES}
