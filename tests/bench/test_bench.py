import json
from dataclasses import replace

import pytest
import torch

from sslfast.bench import runner
from sslfast.bench.registry import CASES
from sslfast.cli import bench, doctor
from sslfast.cli.main import main
from sslfast.testing import operators


def small(case):
    return replace(case, bench_sizes=((4, 6),), sizes=((3, 5),), options=case.options[:1])


@pytest.fixture
def one_case(monkeypatch):
    cases = {"nt_xent": small(CASES["nt_xent"])}
    monkeypatch.setattr(runner, "CASES", cases)
    return cases


def test_rows_hold_what_a_reader_needs(one_case, tmp_path, capsys):
    path = tmp_path / "rows.json"
    options = bench.Options(samples=3, compiled=False, memory=False, json=path)
    assert bench.run(options) == 0
    written = json.loads(path.read_text())
    assert {"processor", "versions", "commit", "threads", "load"} <= set(written["machine"])
    timed = [row for row in written["rows"] if "mode" in row]
    assert {(row["contender"], row["mode"]) for row in timed} >= {
        (name, mode) for name in ("sslfast", "reference eager") for mode in ("forward", "backward", "both")
    }
    for row in timed:
        assert row["samples"] == 3
        assert 0 < row["fastest_ms"] <= row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
    assert "reference eager" in capsys.readouterr().out


def test_a_wrong_operator_gets_no_numbers(one_case, tmp_path, capsys):
    one_case["nt_xent"] = replace(one_case["nt_xent"], function=lambda z0, z1, temperature=0.5: (z0 * z1).sum())
    path = tmp_path / "rows.json"
    assert bench.run(bench.Options(samples=3, compiled=False, memory=False, json=path)) == 1
    written = json.loads(path.read_text())
    assert written["rows"] == []
    assert "is off by" in written["refused"]["nt_xent"]
    assert "nt_xent: no numbers" in capsys.readouterr().err


def test_peak_memory_is_measured():
    megabytes = runner.peak_memory(CASES["nt_xent"], (64, 32), "cpu", "float32", "sslfast")
    # At least the joined rows and their gradient; far from nothing, and far from everything.
    assert megabytes is not None and 0.016 < megabytes < 10


def test_a_peer_that_is_missing_is_named(one_case, monkeypatch):
    def missing():
        raise ImportError("No module named 'peer'")

    case = replace(one_case["nt_xent"], peers={"peer": missing})
    rows = runner.measure(case, (4, 6), "cpu", "float32", 2, compiled=False)
    assert [row["skipped"] for row in rows if row["contender"] == "peer"] == ["not installed (No module named 'peer')"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--op", "nothing"], 2, "no operator 'nothing'; there are: "),
        (["--dtype", "int8"], 2, "no dtype 'int8'"),
        (["--samples", "0"], 2, "--samples must be at least 1, got 0"),
        (["--device", "tpu"], 2, "--device must be cpu or cuda"),
    ],
)
def test_bad_options_are_one_line(words, code, message, capsys):
    assert main(["bench", *words]) == code
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_gpu_where_none_is(capsys):
    assert main(["bench", "--device", "cuda"]) == 2
    assert "torch sees no GPU on this machine" in capsys.readouterr().err


def test_doctor_names_every_operator(capsys):
    assert doctor.run(doctor.Options(json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["operator"] for row in found["operators"]] == sorted(operators())
    assert all(row["cpu"].startswith("C++") for row in found["operators"])
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_doctor_survives_missing_packages(monkeypatch, capsys):
    from importlib.metadata import PackageNotFoundError

    def none(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "version", none)
    assert main(["doctor"]) == 0
    assert "not installed" in capsys.readouterr().out
