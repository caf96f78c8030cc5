"""What of ``.ci/gpu.py`` runs without a GPU: the benchmarks' script."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    spec = importlib.util.spec_from_file_location("gpu_script", ROOT / ".ci" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmarks_script_measures_every_operator(script, one_case, jobs, monkeypatch, tmp_path, capsys):
    path = tmp_path / "gpu.jsonl"
    monkeypatch.setattr(sys, "argv", ["-c", str(path), "cpu", "0"])
    from dataclasses import replace

    one_case["nt_xent"] = replace(one_case["nt_xent"], sweep_sizes=((8, 6), (16, 6)))
    from sslfast.bench import runner

    monkeypatch.setattr(runner.Plan.__init__, "__defaults__", _quick(runner.Plan))
    with pytest.raises(SystemExit) as stopped:
        exec(script.BENCHMARKS, {})
    assert stopped.value.code == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert {(tuple(row["size"]), row["dtype"]) for row in rows} == {
        ((count, 6), dtype) for count in (4, 8, 16) for dtype in ("float32", "bfloat16")
    }
    assert capsys.readouterr().out.count("nt_xent (8, 6)") == 2


def _quick(plan):
    from dataclasses import fields

    quick = {"samples": 2, "seconds": 1.0, "compiled": False, "memory": False}
    return tuple(quick.get(one.name, one.default) for one in fields(plan)[1:])


def test_every_module_with_a_test_for_a_gpu_is_run(script):
    found = {path.name for path in script.gpu_tests()}
    assert found >= {path.name for path in (ROOT / "tests" / "ops").glob("test_*_triton.py")}
    assert {"test_gates_of_ops.py", "test_memory_bank.py"} <= found


def test_the_missing_device_is_a_result(script, monkeypatch, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    monkeypatch.setattr(script, "build", lambda folder, *words: None)
    monkeypatch.setattr(script, "environment", lambda folder: dict(__import__("os").environ))
    assert script.main(tmp_path) == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["steps"] == {"device": "no CUDA device"}
