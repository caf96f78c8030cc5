"""Every operator's case, by name. A case lives in ``bench/cases``; baselines are imported from ``_reference``."""

from sslfast.bench.cases import nt_xent, unit_rows
from sslfast.testing import OpCase

CASES: dict[str, OpCase] = {module.CASE.name: module.CASE for module in (unit_rows, nt_xent)}
