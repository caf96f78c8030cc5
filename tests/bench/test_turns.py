"""Contenders in processes of their own: what they answer, who is missing, how rows are made of it."""

import os
import time
from dataclasses import replace

import pytest

from sslfast.bench import runner, scenario_tables
from sslfast.bench.registry import SCENARIOS
from sslfast.bench.results import Results
from sslfast.bench.turns import Contender, Missing, Part, Running, Scenario, measure

OTHER = "sslfast.bench.head_bank"


def contender(name, make="bank", dtype="float32", **job):
    return Contender(name, dtype, (Part(f"{OTHER}:{make}", {"size": SIZE, "half": False, **job}, 1),))


SIZE = (8, 3, 128, 512, 64)
SCENARIO = Scenario(
    name="small",
    title="heads",
    axes=("a", "b", "c", "d", "e"),
    sizes=(SIZE,),
    contenders=lambda size: [
        contender("sslfast"),
        contender("PyTorch", "plain"),
        contender("nobody", "nothing_of_this_name"),
    ],
    unit="step",
    units=lambda size: 10,
    operations=lambda size: 1e6,
    traffic=lambda size: 100,
)


def test_every_contender_gets_a_row_and_the_missing_one_a_reason():
    rows = measure(SCENARIO, SIZE, {}, samples=5, seconds=1e-3, threads=1)
    assert [row["contender"] for row in rows] == ["sslfast", "PyTorch", "nobody"]
    for row in rows[:2]:
        assert row["mode"] == "step" and row["samples"] == 5 and 0 < row["fastest_ms"] <= row["median_ms"]
        assert row["operations"] == 1e6 and row["bytes"] == 400
    assert "nothing_of_this_name" in rows[2]["skipped"] and "mode" not in rows[2]


def test_a_process_sees_its_own_variables_and_no_others_of_the_allocator(monkeypatch, tmp_path):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    (tmp_path / "told.py").write_text(
        "import os\ndef make():\n    names = ('MALLOC_ARENA_MAX', 'MALLOC_TOP_PAD_', 'MINE')\n"
        "    raise ImportError(str([os.environ.get(name) for name in names]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    part = Part("told:make", {}, 1, {"MINE": "1"})
    running = Running(Contender("a", "float32", (part,)), {"MALLOC_TOP_PAD_": "7"})
    with pytest.raises(Missing, match=r"not installed \(\[None, '7', '1'\]\)"), running:
        pass


def test_parts_work_at_once_and_the_slowest_counts(monkeypatch, tmp_path):
    (tmp_path / "sleeper.py").write_text(
        "import time\ndef make(seconds):\n    print('noise')\n    return lambda: time.sleep(seconds)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    parts = tuple(Part("sleeper:make", {"seconds": seconds}, 1) for seconds in (0.5, 1.0))
    with Running(Contender("a", "float32", parts), {}) as running:
        start = time.perf_counter()
        assert 1.0 <= running() < 1.4
        assert time.perf_counter() - start < 1.45


def test_a_process_that_dies_says_so(monkeypatch, tmp_path):
    (tmp_path / "dying.py").write_text("import os\ndef make():\n    return lambda: os._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with (
        Running(Contender("a", "float32", (Part("dying:make", {}, 1),)), {}) as running,
        pytest.raises(Missing, match="ended with 9"),
    ):
        running()


@pytest.fixture
def measured(monkeypatch):
    """What the runner measures of the small scenario; a row of each contender is made up."""
    scenario = replace(SCENARIO, name="head_bank", contenders=lambda size: SCENARIO.contenders(size)[:2])
    monkeypatch.setattr(runner, "SCENARIOS", {"head_bank": scenario})
    monkeypatch.setattr(runner, "CASES", {})
    asked = []

    def made_up(scenario, size, variables, *how):
        asked.append((size, variables))
        head = {"op": scenario.name, "size": list(size), "options": {}, "device": "cpu", "mode": "step"}
        return [
            {**head, "contender": one.name, "dtype": one.dtype, "samples": 5, "operations": 1e9, "bytes": 4}
            | dict.fromkeys(("median_ms", "p20_ms", "p80_ms", "fastest_ms"), 1.0 + 3 * index)
            for index, one in enumerate(scenario.contenders(size))
        ]

    monkeypatch.setattr(runner.turns, "measure", made_up)
    monkeypatch.setattr(
        runner.Runner,
        "_limits",
        lambda self, dtype: {"operations_per_s": 2e12, "bytes_per_s": 1e10, "cached_bytes_per_s": 1e11},
    )
    return asked


def test_the_runner_measures_under_each_allocator_and_not_again(measured, tmp_path):
    path = tmp_path / "rows.jsonl"
    for expected in (2, 2):
        work = runner.Runner(runner.Plan(runner.units()), Results(path))
        list(work.run(work.open()))
        assert len(measured) == expected
    assert [variables for _, variables in measured] == list(runner.ALLOCATORS.values())
    rows = list(Results(path).rows(op="head_bank", allocator="default"))
    assert [row["contender"] for row in rows] == ["sslfast", "PyTorch"] and rows[0]["fraction"] == 0.5


def test_a_gpu_and_a_run_for_memory_leave_scenarios_out(measured):
    for plan in (runner.Plan(runner.units(), device="cuda"), runner.Plan(runner.units(), timed=False)):
        assert runner.Runner(plan, Results()).open() == []


def test_the_tables_compare_with_both_kinds_of_products(measured, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    work = runner.Runner(runner.Plan(runner.units()), Results(path))
    list(work.run(work.open()))
    scenario = runner.SCENARIOS["head_bank"]
    lines = list(scenario_tables.page(scenario, Results(path)))
    start = "| 8, 3, 128, 512, 64 | tuned |"
    assert f"{start} sslfast | float32 | 1.00 [1.00-1.00] |  |  | 50 % |" in lines
    assert f"{start} PyTorch | float32 | 4.00 [4.00-4.00] | x4.00 |  | 12 % |" in lines
    short = list(scenario_tables.overview(scenario, Results(path)))
    assert "| sslfast | float32 | 1.00 |" in short and "| PyTorch | float32 | 4.00 (x4.00 / ) |" in short


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
def test_a_scenario_says_what_has_to_be_done(scenario):
    for size in scenario.sizes:
        assert len(size) == len(scenario.axes)
        names = [(one.name, one.dtype) for one in scenario.contenders(size)]
        assert len(set(names)) == len(names) and names[0] == ("sslfast", "float32")
        assert scenario.operations(size) >= 0 and scenario.traffic(size) > 0 and scenario.units(size) > 0
