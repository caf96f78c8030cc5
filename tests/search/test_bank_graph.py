"""Captured steps: when they are captured, kept and forgotten, with a stand-in for the device."""

import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from banks import OPTIMIZERS, SPECS, cosine, in_plain, rows, same, tables
from torch._subclasses.fake_tensor import FakeTensorMode

from sslfast._head_bank import graph
from sslfast._head_bank.layout import plans_of
from sslfast._head_bank.step import Serial, multiply_widened
from sslfast._reference import head_bank as reference
from sslfast.models.head import HeadSpec
from sslfast.search.bank import HeadBank


class Here(Serial):
    """An engine without a device: what was captured is called again."""

    half_product = staticmethod(multiply_widened)

    def __init__(self):
        self.branches, self.captures = self, 0

    def capture(self, work):
        self.captures += 1
        work()
        return work


@pytest.fixture
def here():
    graph._captured.clear()
    yield Here()
    graph._captured.clear()


def go_on(engine, bank, features, labels, order, batch):
    """HeadBank.train by an engine."""
    places, heads, numbers = tables(bank)
    rates = cosine([place.spec for place in places], -(-len(order) // batch))
    states = [place.state for place in places]
    losses = graph.train_with(engine, features, labels, order, heads, numbers, rates, states, batch, False)
    for place in places:
        place.steps += rates.shape[1]
    return losses


def test_epochs_with_heads_stopped_and_replaced_between_are_the_banks(here):
    features, labels, order = rows(150)
    one, other = (HeadBank(SPECS, 20, 4, optimizers=OPTIMIZERS, dtype=torch.float64) for _ in range(2))
    captures = []
    for epoch in range(6):
        if epoch == 2:
            one.stop(1), other.stop(1)
        if epoch == 4:
            one.replace(1, HeadSpec((48,), 0.2, 0.01), 9), other.replace(1, HeadSpec((48,), 0.2, 0.01), 9)
        losses = go_on(here, one, features, labels, order, 32)
        torch.testing.assert_close(losses, in_plain(other, features, labels, order, 32), rtol=1e-9, atol=1e-11)
        same(one, other)
        captures.append(here.captures)
    # load, store, a minibatch and the last one; again for every other set of heads, never for another epoch
    assert captures == [4, 4, 8, 8, 12, 12]


def test_what_was_done_to_the_weights_between_calls_is_seen(here):
    features, labels, order = rows(64)
    one, other = (HeadBank(SPECS, 20, 4, dtype=torch.float64) for _ in range(2))
    for bank, run in ((one, lambda: go_on(here, one, features, labels, order, 32)), (other, None)):
        for _ in range(2):
            run() if run else in_plain(bank, features, labels, order, 32)
            for place in bank._places:
                place.state.mul_(0.5)
    same(one, other)
    start = one.weights(0)
    one.load(2, other.weights(2))
    other.load(2, other.weights(2))
    go_on(here, one, features, labels, order, 32)
    in_plain(other, features, labels, order, 32)
    same(one, other)
    assert not torch.equal(start[0], one.weights(0)[0])


def test_other_features_and_orders_need_no_other_capture(here):
    features, labels, order = rows(128)
    one, other = (HeadBank(SPECS, 20, 4, dtype=torch.float64) for _ in range(2))
    for part in (slice(0, 64), slice(64, 128), slice(0, 48), slice(0, 20)):
        x = features[part].clone()
        where = torch.randperm(len(x))
        go_on(here, one, x, labels[part].clone(), where, 32)
        in_plain(other, x, labels[part].clone(), where, 32)
    same(one, other)
    assert here.captures == 2 + 3  # minibatches of 32, 16 and 20 rows


def test_minibatches_of_other_sizes(here):
    features, labels, order = rows(100)
    one, other = (HeadBank(SPECS[:2], 20, 4, dtype=torch.float64) for _ in range(2))
    for batch, count in ((64, 10), (64, 100), (100, 50), (32, 100), (1 << 40, 70), (7, 100)):
        go_on(here, one, features, labels, order[:count], batch)
        in_plain(other, features, labels, order[:count], batch)
        same(one, other)


def test_more_sizes_of_last_batches_than_are_captured(here):
    features, labels, order = rows(100)
    one, other = (HeadBank(SPECS[:2], 20, 4, dtype=torch.float64) for _ in range(2))
    for count in range(90, 99):
        go_on(here, one, features, labels, order[:count], 32)
        in_plain(other, features, labels, order[:count], 32)
    same(one, other)
    assert here.captures == 2 + graph.KEPT_COUNTS


def test_a_captured_bank_goes_with_its_heads(here):
    features, labels, order = rows(64)
    bank = HeadBank(SPECS, 20, 4, dtype=torch.float64)
    go_on(here, bank, features, labels, order, 32)
    assert len(graph._captured) == 1
    bank.stop(0)
    assert not graph._captured
    go_on(here, bank, features, labels, order, 32)
    assert len(graph._captured) == 1
    del bank
    assert not graph._captured


def test_the_dispatcher_hands_on_the_tensors_themselves():
    """A captured bank hears of the end of a state only if the operator sees the object that the bank holds."""
    seen = []
    library = torch.library.Library("sslfast_test_graph", "DEF")
    library.define("states(Tensor(a!)[] states) -> ()")
    library.impl("states", lambda states: seen.extend(map(id, states)), "CPU")
    states = [torch.zeros(3) for _ in range(2)]
    torch.ops.sslfast_test_graph.states(states)
    assert seen == list(map(id, states))


def test_only_so_many_banks_are_kept(here):
    features, labels, order = rows(64)
    banks = [HeadBank(SPECS[:1], 20, 4, dtype=torch.float64) for _ in range(graph.KEPT_BANKS + 2)]
    for bank in banks:
        go_on(here, bank, features, labels, order, 32)
    assert len(graph._captured) == graph.KEPT_BANKS
    before = here.captures
    go_on(here, banks[-1], features, labels, order, 32)
    assert here.captures == before
    go_on(here, banks[0], features, labels, order, 32)
    assert here.captures > before and len(graph._captured) == graph.KEPT_BANKS


def test_another_precision_of_products_is_another_capture(here):
    features, labels, order = rows(64)
    bank = HeadBank(SPECS, 20, 4, dtype=torch.float64)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, captures in (("ieee", 3), ("tf32", 6), ("tf32", 6), ("ieee", 6)):
            torch.backends.cuda.matmul.fp32_precision = precision
            go_on(here, bank, features, labels, order, 32)
            assert here.captures == captures
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_rates_of_another_shape_are_refused(here):
    features, labels, order = rows(64)
    places, heads, numbers = tables(HeadBank(SPECS, 20, 4, dtype=torch.float64))
    states = [place.state for place in places]
    with pytest.raises(ValueError, match=r"rates must be \(4, 2\), got \(4, 3\)"):
        graph.train_with(here, features, labels, order, heads, numbers, cosine(SPECS, 3), states, 32, False)


def test_a_bank_without_heads(here):
    features, labels, order = rows(64)
    heads, none = torch.zeros(0, reference.FIRST_WIDTH + 1, dtype=torch.int64), torch.empty(0, 2, dtype=torch.float64)
    found = graph.train_with(here, features, labels, order, heads, none[:, :0], none, [], 32, False)
    assert found.shape == (0, 2) and not here.captures


def test_a_call_brings_what_it_needs_to_the_device_and_losses_stay_there(here):
    """On PyTorch's stand-ins for CUDA tensors, which refuse a kernel over two devices. float64: all have stand-ins."""
    _, heads, numbers = tables(HeadBank(SPECS, 20, 4, optimizers=OPTIMIZERS, dtype=torch.float64))
    plans = plans_of(heads, numbers, 20)
    sizes = [reference.state_size(plan.widths, plan.optimizer) for plan in plans]
    with FakeTensorMode():
        states = [torch.zeros(size, dtype=torch.float64, device="cuda") for size in sizes]
        bank = graph.Captured(here, plans, 32, False, states)
        features = torch.zeros(70, 20, dtype=torch.float64, device="cuda")
        labels, order = (torch.zeros(70, dtype=torch.int64, device="cuda") for _ in range(2))
        done, rates = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3, dtype=torch.float64)
        losses = bank.train(features, labels, order, done, rates)
        assert losses.shape == (4, 3) and losses.device.type == "cuda" and losses.dtype == torch.float64
        for tensor in vars(bank.step).values():
            assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "cuda"


class Driver:
    """Stands in for torch.cuda's streams and graphs, and notes what is asked of them."""

    def __init__(self):
        self.notes, self.current, self.streams = [], "trunk", 0

    def make(self, device, priority=0):
        self.streams += 1
        return FakeStream(self, f"stream {self.streams - 1}", priority)

    @contextmanager
    def stream(self, one):
        before, self.current = self.current, one.name
        yield
        self.current = before

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.notes.append("capture")
        with self.stream(stream):
            yield
        self.notes.append("captured")


class FakeStream:
    def __init__(self, driver, name, priority):
        self.driver, self.name, self.priority = driver, name, priority

    def wait_stream(self, other):
        self.driver.notes.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def replay(self):
        return "replayed"


@pytest.fixture
def driver(monkeypatch):
    found = Driver()
    monkeypatch.setattr(torch.cuda, "Stream", found.make)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(found, found.current, 0))
    monkeypatch.setattr(torch.cuda, "stream", found.stream)
    monkeypatch.setattr(torch.cuda, "graph", found.graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    return found


def test_branches_fork_from_the_current_stream_and_join_it(driver):
    engine = graph.Cuda(torch.device("cuda:0"))
    for number in (0, 0, 16, -1, 1):
        with engine.branch(number):
            driver.notes.append(f"{number} on {driver.current}")
    engine.join()
    engine.join()
    assert driver.notes == [
        "stream 1 waits for trunk", "0 on stream 1", "0 on stream 1", "16 on stream 1",
        "stream 17 waits for trunk", "-1 on stream 17", "stream 2 waits for trunk", "1 on stream 2",
        "trunk waits for stream 1", "trunk waits for stream 2", "trunk waits for stream 17",
    ]  # fmt: skip
    assert driver.streams == 18


def test_work_runs_on_the_capturing_stream_before_it_is_captured(driver, monkeypatch):
    engine = graph.Cuda(torch.device("cuda:0"))
    run = engine.capture(lambda: driver.notes.append(f"work on {driver.current}"))
    assert run() == "replayed"
    assert driver.notes == [
        "stream 0 waits for trunk", "work on stream 0", "trunk waits for stream 0",
        "capture", "work on stream 0", "captured",
    ]  # fmt: skip
    monkeypatch.setenv("SSLFAST_CUDA_GRAPHS", "0")
    driver.notes.clear()
    engine.capture(lambda: driver.notes.append("work"))()
    assert driver.notes == ["work", "work"]


def test_the_operator_is_registered_where_there_is_a_gpu():
    program = """
import torch
torch.cuda.is_available = lambda: True
import sslfast
from sslfast import _load
assert torch._C._dispatch_has_kernel_for_dispatch_key("sslfast::head_bank_train", "CUDA")
print(_load.loaded["graphs"])
"""
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["loaded"]
