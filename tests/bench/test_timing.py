from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from sslfast.bench import limits, timing
from sslfast.bench.contenders import reason
from sslfast.bench.registry import CASES

CASE = replace(CASES["nt_xent"], peers={})


def measure(case=CASE, device="cpu", **more):
    return timing.measure(case, (4, 6), device, "float32", **{"samples": 6, "seconds": 5.0, "compiled": False, **more})


def test_contenders_run_in_turn_and_in_changing_order():
    called = []

    def named(name, function):
        def run(z0, z1, temperature):
            called.append(name)
            return function(z0, z1, temperature)

        return run

    case = replace(CASE, function=named("a", CASE.function), reference=named("b", CASE.reference))
    measure(case)
    turns = [tuple(called[6 + 2 * turn : 8 + 2 * turn]) for turn in range(6)]
    assert set(called[:3]) == {"a"} and set(called[3:6]) == {"b"}  # warming up
    assert set(turns) == {("a", "b"), ("b", "a")}


def test_a_slow_contender_takes_fewer_turns():
    def slow(z0, z1, temperature):
        torch.ops.sslfast.cpu_multiply(1, 60_000)
        return CASE.reference(z0, z1, temperature)

    rows = measure(replace(CASE, reference=slow), samples=40, seconds=0.2)
    count = {row["contender"]: row["samples"] for row in rows}
    assert count["sslfast"] == 40 and timing.LEAST <= count["reference eager"] < 40


def test_a_contender_that_takes_all_the_time_is_named():
    def slow(z0, z1, temperature):
        torch.ops.sslfast.cpu_multiply(1, 100_000)
        return CASE.reference(z0, z1, temperature)

    rows = measure(replace(CASE, reference=slow), seconds=0.002)
    skipped = [row["skipped"] for row in rows if row["contender"] == "reference eager"]
    assert len(skipped) == 1 and skipped[0].startswith("one pass takes ")


def test_a_peer_that_is_missing_or_fails_is_named():
    def missing():
        raise ImportError("No module named 'peer'")

    def broken(*inputs, **options):
        raise RuntimeError("cannot\nat all")

    rows = measure(replace(CASE, peers={"one": missing, "two": lambda: broken}))
    skipped = {row["contender"]: row["skipped"] for row in rows if "skipped" in row}
    assert skipped == {"one": "not installed (No module named 'peer')", "two": "RuntimeError: cannot"}


def test_our_own_failure_is_an_error():
    def broken(*inputs, **options):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        measure(replace(CASE, function=broken))


def test_without_a_gradient_there_is_only_forward():
    case = replace(CASE, differentiable=False)
    seen = []
    case = replace(case, function=lambda z0, z1, temperature: seen.append(z0.requires_grad) or z0.exp())
    rows = measure(case)
    assert {row["mode"] for row in rows} == {"forward"} and not any(seen)


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: x",
        "CUDA out of memory. Tried",
        "MemoryError: ",
    ],
)
def test_missing_memory_is_said_in_three_words(message):
    assert reason(message) == "not enough memory"


def test_a_pass_is_timed_without_its_cotangent(monkeypatch):
    made = []
    ones = torch.ones_like
    monkeypatch.setattr(torch, "ones_like", lambda *words: made.append(1) or ones(*words))
    run = timing.ClockPass(lambda z: z.exp(), [torch.zeros(3, requires_grad=True)], {})
    assert all(min(run()) > 0 for _ in range(4)) and len(made) == 1


class Event:
    clock = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.clock += 1.0
        self.at = Event.clock

    def elapsed_time(self, other):
        return other.at - self.at


class Graph:
    replays = 0

    def pool(self):
        return "pool"

    def replay(self):
        Graph.replays += 1


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def no_gpu(monkeypatch):
    """The calls of torch.cuda that the timing makes, without a device behind them; the tensors stay on the CPU."""
    pools = []

    def graph(graph, pool=None):
        pools.append(pool)
        return nullcontext()

    for name, value in {
        **{"Event": Event, "CUDAGraph": Graph, "Stream": Stream, "graph": graph, "current_stream": Stream},
        **{"synchronize": lambda: None, "stream": lambda stream: nullcontext()},
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(
        timing, "draw", lambda case, size, device, dtype, draw=timing.draw: draw(case, size, "cpu", dtype)
    )
    return pools


def test_on_a_gpu_every_contender_is_also_replayed_as_a_graph(no_gpu):
    Graph.replays = 0
    rows = measure(device="cuda")
    assert {row["contender"] for row in rows} == {
        f"{name}{end}" for name in ("sslfast", "reference eager") for end in ("", ", graph")
    }
    assert {row["device"] for row in rows} == {"cuda"} and {row["samples"] for row in rows} == {6}
    # An event later is a millisecond later here: one step forward, one backward.
    assert {(row["mode"], row["median_ms"]) for row in rows} == {("forward", 1.0), ("backward", 1.0), ("both", 2.0)}
    assert no_gpu == [None, "pool"] * 2  # the backward graph reads the forward graph's memory
    assert Graph.replays == 2 * 2 * (6 + 3)


def test_a_contender_that_cannot_be_captured_is_named(no_gpu, monkeypatch):
    def graph(graph, pool=None):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    rows = measure(device="cuda")
    skipped = {row["contender"]: row["skipped"] for row in rows if "skipped" in row}
    assert set(skipped) == {"sslfast, graph", "reference eager, graph"}
    assert all("not permitted when stream is capturing" in why for why in skipped.values())


def test_the_limits_are_those_of_a_machine():
    found = limits.limits("cpu", torch.float32)
    assert all(1e8 < value < 1e15 for value in found.values())
    tile = torch.ops.sslfast.cpu_multiply
    assert tile(2, 30) == 2 * tile(1, 30) == 60 * tile(1, 1) > 0
    with pytest.raises(RuntimeError, match="threads and rounds must be > 0, got 0 and 1"):
        tile(0, 1)


def test_the_floor_is_the_larger_of_the_two():
    limit = {"operations_per_s": 1e12, "bytes_per_s": 1e10, "cached_bytes_per_s": 1e11}
    assert limits.floor_ms(1e9, 0, limit) == pytest.approx(1.0)
    assert limits.floor_ms(1e9, 1e9, limit) == pytest.approx(100.0)
    assert limits.floor_ms(0, 1e6, limit) == pytest.approx(0.01)  # stays in the cache
    assert limits.better({"a": 1, "b": 3}, {"a": 2, "b": 2}) == {"a": 2, "b": 3}
