"""The CUDA implementation of ``sslfast::head_bank_train``: the bank's step captured once and replayed for each step.

``SSLFAST_CUDA_GRAPHS=0`` runs it kernel by kernel instead, on the same streams: to look for a fault, or where nothing
can be captured (PyTorch's caching allocator is off).
"""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Protocol

import torch
from torch import Tensor

from sslfast._head_bank.layout import HeadPlan, plans_of
from sslfast._head_bank.step import BankStep, Branches, Product, train

BRANCHES = 16
"""Streams beside the first that heads are spread over; not tuned."""
KEPT_BANKS = 4
"""So many banks stay captured, each for as long as its heads' states live."""
KEPT_COUNTS = 4
"""So many sizes of a minibatch are captured per bank; others are run kernel by kernel."""


class Engine(Protocol):
    """What a device adds to a step."""

    branches: Branches
    half_product: Product

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run work that always queues the same kernels, and give what queues them again."""


def multiply_half(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write the product of two bfloat16 matrices with float32 sums; CUDA has a kernel for it."""
    torch.mm(a, b, out_dtype=torch.float32, out=out)


class Cuda:
    """A GPU: branches are streams that fork from the current one and join it again, captured work is a CUDA graph.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.branches: Branches = self
        self.half_product: Product = multiply_half
        self._device = device
        # Streams of this priority are not those that a loader's thread may be using during a capture.
        streams = [torch.cuda.Stream(device, priority=-1) for _ in range(2 + BRANCHES)]  # type: ignore[no-untyped-call]
        self._first, self._side = streams[0], streams[1:]
        self._used: set[int] = set()

    @contextmanager
    def branch(self, number: int) -> Iterator[None]:
        """Queue what follows on a side stream, behind what the current stream held at the branch's first use."""
        place = number % BRANCHES if number >= 0 else BRANCHES
        if place not in self._used:
            self._used.add(place)
            self._side[place].wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side[place]):
            yield

    def join(self) -> None:
        """Let the current stream wait for the side streams."""
        for place in sorted(self._used):
            torch.cuda.current_stream(self._device).wait_stream(self._side[place])
        self._used.clear()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run work once, which makes PyTorch, cuBLAS and the driver ready for it, then capture it."""
        if os.environ.get("SSLFAST_CUDA_GRAPHS") == "0":
            work()
            return work
        self._used.clear()  # of work that an error ended
        current = torch.cuda.current_stream(self._device)
        self._first.wait_stream(current)
        with torch.cuda.stream(self._first):
            work()
        current.wait_stream(self._first)
        graph = torch.cuda.CUDAGraph()
        # Only this thread is bound to what a capture allows: another one may be bringing rows.
        with torch.cuda.graph(graph, stream=self._first, capture_error_mode="thread_local"):
            work()
        return graph.replay


@cache
def cuda(device: torch.device) -> Cuda:
    """Give a device's engine: every bank uses the same streams, as cuBLAS has a workspace for each."""
    return Cuda(device)


class Captured:
    """A bank's step, and how its weights come and go, captured over tensors of their own.

    Args:
        engine: the device's.
        plans: the heads.
        batch: rows of a step, at most.
        half: products of bfloat16.
        states: the heads' states; they are read and written where they are.
    """

    def __init__(
        self, engine: Engine, plans: Sequence[HeadPlan], batch: int, half: bool, states: Sequence[Tensor]
    ) -> None:
        self._engine = engine
        self._steps: dict[int, Callable[[], None]] = {}
        first = states[0]
        self.step = BankStep(plans, batch, first.dtype, half, first.device, engine.branches, engine.half_product)
        # Not the tensors themselves: when one of these goes, so does this.
        views = [state.detach() for state in states]
        self._load = engine.capture(partial(self.step.load, views))
        self._store = engine.capture(partial(self.step.store, views))  # its first run stores what was just loaded

    def fits(self, batch: int, count: int) -> bool:
        """Say whether ``count`` rows in minibatches of ``batch`` are steps of this bank."""
        return batch == self.step.batch or count <= min(batch, self.step.batch)

    def train(self, features: Tensor, labels: Tensor, order: Tensor, done: Tensor, rates: Tensor) -> Tensor:
        """Train from what the states hold, and leave them trained; returns the losses (heads, steps)."""
        counts = {min(self.step.batch, len(order)), len(order) % self.step.batch} - {0}
        for count in sorted(counts - self._steps.keys(), reverse=True):
            if len(self._steps) < KEPT_COUNTS:
                # A capture's first run is step 0 of whatever run there was; the weights are loaded after it.
                self.step.turn.zero_()
                self._steps[count] = self._engine.capture(partial(self.step, count))
        self._load()
        losses = train(self.step, features, labels, order, done, rates, self._replay)
        self._store()
        return losses

    def _replay(self, count: int) -> None:
        if count in self._steps:
            self._steps[count]()
        else:
            self.step(count)


_captured: OrderedDict[Hashable, Captured] = OrderedDict()
_one_at_a_time = threading.Lock()
"""Banks of one device share its streams, and a thread must not capture on those where another trains."""


def captured(
    engine: Engine, plans: Sequence[HeadPlan], batch: int, count: int, half: bool, states: Sequence[Tensor]
) -> Captured:
    """Give the captured step of heads whose states lie where they did the last time, or capture it.

    It is forgotten, and its memory free, as soon as one of the states is.
    """
    precision = torch.backends.cuda.matmul.fp32_precision  # cuBLAS is asked for it when a product is captured
    key = engine, tuple(plans), half, precision, tuple(state.data_ptr() for state in states)
    found = _captured.pop(key, None)
    if found is None or not found.fits(batch, count):
        found = None  # its memory is free before more is asked for
        found = Captured(engine, plans, min(batch, count), half, states)
        for state in states:
            weakref.finalize(state, _captured.pop, key, None)
    _captured[key] = found
    while len(_captured) > KEPT_BANKS:
        _captured.popitem(last=False)
    return found


@torch.no_grad()
def train_with(
    engine: Engine,
    features: Tensor,
    labels: Tensor,
    order: Tensor,
    heads: Tensor,
    numbers: Tensor,
    rates: Tensor,
    states: list[Tensor],
    batch: int,
    half: bool,
) -> Tensor:
    """Train every head on the rows of ``order``; returns the loss of each head and step, where ``rates`` are.

    The host waits for the device once a call, for the losses.
    """
    steps = -(-len(order) // batch)
    if rates.shape != (len(states), steps):
        raise ValueError(f"head_bank_train: rates must be {(len(states), steps)}, got {tuple(rates.shape)}")
    if not rates.numel():
        return torch.empty_like(rates)
    heads, device = heads.cpu(), features.device
    plans = plans_of(heads, numbers, features.shape[1])
    with _one_at_a_time:
        bank = captured(engine, plans, batch, len(order), half, states)
        losses = bank.train(features, labels.to(device), order.to(device), heads[:, 1], rates.cpu())
        return losses.to(rates.device).contiguous()


def head_bank_train(
    features: Tensor,
    labels: Tensor,
    order: Tensor,
    heads: Tensor,
    numbers: Tensor,
    rates: Tensor,
    states: list[Tensor],
    batch: int,
    half: bool,
) -> Tensor:
    """Train on a GPU, as ``_reference.head_bank.head_bank_train`` does."""
    with torch.cuda.device(features.device):
        engine = cuda(features.device)
        return train_with(engine, features, labels, order, heads, numbers, rates, states, batch, half)
