import json
from dataclasses import replace

import pytest

from sslfast.bench import registry, runner, worker


@pytest.fixture
def one_case(monkeypatch):
    """A registry of one small case; a process of its own is not begun, because it would read the real registry."""
    case = registry.CASES["nt_xent"]
    small = replace(case, bench_sizes=((4, 6), (8, 6)), sizes=((3, 5),), options=case.options[:1], peers={})
    cases = {"nt_xent": small}
    monkeypatch.setattr(runner, "CASES", cases)
    monkeypatch.setattr(runner, "SCENARIOS", {})
    monkeypatch.setattr(worker, "CASES", cases)
    return cases


@pytest.fixture
def jobs(monkeypatch):
    """The jobs that were given to processes of their own; they are done in this one, and every operator passes."""
    given = []

    def here(job, variables):
        job = json.loads(json.dumps(job))  # what a process gets
        given.append((job, variables))
        if job["do"] == "limits":
            return {"operations_per_s": 1e12, "bytes_per_s": 1e10, "cached_bytes_per_s": 1e11}
        return json.loads(json.dumps(worker.work(job)))

    monkeypatch.setattr(runner, "in_process", here)
    monkeypatch.setattr(runner, "correct", lambda case, device: None)
    return given


def timed(op="nt_xent", contender="sslfast", median=1.0, **more):
    """A row as the runner writes it."""
    return {
        **{"op": op, "contender": contender, "mode": "both", "size": [256, 128], "options": {"temperature": 0.5}},
        **{"dtype": "float32", "device": "cpu", "allocator": "tuned", "samples": 7, "median_ms": median},
        **{"p20_ms": 0.9 * median, "p80_ms": 1.2 * median, "fastest_ms": 0.8 * median, "operations": 1e9, "bytes": 1e6},
        **more,
    }


MACHINE = {
    **{"processor": "Abacus", "cores": 2, "threads": 2, "vector_bits": 512, "load": [0.1, 0.1, 0.1], "cuda": []},
    **{"system": "Linux", "python": "3.11", "versions": {"torch": "2.15.0"}, "commit": "abc", "build": "def"},
}
LIMITS = {"cpu float32": {"operations_per_s": 1e12, "bytes_per_s": 1e10, "cached_bytes_per_s": 1e11}}


@pytest.fixture
def row():
    return timed


@pytest.fixture
def machine():
    return MACHINE, LIMITS
