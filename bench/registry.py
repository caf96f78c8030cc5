"""Every operator's case, by name, and the programs that are timed by the turn.

A case lives in ``bench/cases``; baselines are imported from ``_reference``.
"""

from sslfast.bench import head_bank, pretrain_step, store, views
from sslfast.bench.cases import (
    barlow_twins,
    mixed_edge,
    nt_xent,
    nt_xent_indexed,
    nt_xent_negatives,
    self_classifier,
    sinkhorn,
    swav_loss,
    unit_rows,
)
from sslfast.bench.turns import Scenario
from sslfast.testing import OpCase

MODULES = (
    unit_rows,
    nt_xent,
    nt_xent_negatives,
    nt_xent_indexed,
    barlow_twins,
    sinkhorn,
    swav_loss,
    self_classifier,
    mixed_edge,
)

CASES: dict[str, OpCase] = {module.CASE.name: module.CASE for module in MODULES}
SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        head_bank.SCENARIO,
        store.GATHER,
        store.EXTRACTION,
        views.VIEWS,
        views.FILES,
        pretrain_step.SCENARIO,
    )
}
