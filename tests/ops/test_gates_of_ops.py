"""The four gates of every registered operator; an operator without a case fails here."""

import pytest
import torch

from sslfast import testing
from sslfast.bench.registry import CASES

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")],
    ),
]
GATES = [testing.gate_reference, testing.gate_gradcheck, testing.gate_opcheck, testing.gate_compile]


# They change their arguments and have no derivative: tests/search/test_bank.py and tests/views/test_renderers.py hold
# them against PyTorch and opcheck.
WITHOUT_GATES = {"head_bank_train", "head_bank_evaluate", "render_views"}


def test_every_operator_has_a_case():
    covered = {name for case in CASES.values() for name in case.operators}
    assert covered | WITHOUT_GATES == set(testing.operators())


def test_a_case_is_registered_under_its_own_name():
    assert [case.name for case in CASES.values()] == list(CASES)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.__name__)
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_gate(case, gate, device):
    gate(case, device)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own warnings are not ours
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_gate_compile_with_inductor(case):
    testing.gate_compile(case, backend="inductor")
