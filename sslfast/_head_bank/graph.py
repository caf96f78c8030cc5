"""The CUDA implementation of ``sslfast::head_bank_train``: the bank's step captured once and replayed for each step."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor

from sslfast._head_bank.layout import HeadPlan, plans_of
from sslfast._head_bank.step import BankStep, train

BRANCHES = 16
"""Streams beside the first that heads are spread over; not tuned."""
KEPT_BANKS = 4
"""So many banks stay captured, each for as long as its heads' states live."""
KEPT_COUNTS = 4
"""So many sizes of a minibatch are captured per bank; others are run kernel by kernel."""


class Streams:
    """Branches as streams that fork from the current one and join it again, in a capture too.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Streams of this priority are not those that a loader's thread may be using during a capture.
        streams = [torch.cuda.Stream(device, priority=-1) for _ in range(1 + BRANCHES)]  # type: ignore[no-untyped-call]
        self.first, self._side = streams[0], streams[1:]
        self._used: set[int] = set()

    @contextmanager
    def branch(self, number: int) -> Iterator[None]:
        """Queue what follows on a side stream, behind what the current stream held at the branch's first use."""
        place = number % BRANCHES
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


@cache
def streams_of(device: torch.device) -> Streams:
    """Give a device's streams: every bank uses the same, as each has a workspace for products."""
    return Streams(device)


def multiply_half(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write the product of two bfloat16 matrices with float32 sums; CUDA has a kernel for it."""
    torch.mm(a, b, out_dtype=torch.float32, out=out)


class Captured:
    """A bank's step, and how its weights come and go, as CUDA graphs over tensors of their own.

    Args:
        plans: the heads.
        batch: rows of a step, at most.
        half: products of bfloat16.
        states: the heads' states; the graphs read and write them where they are.
    """

    def __init__(self, plans: Sequence[HeadPlan], batch: int, half: bool, states: Sequence[Tensor]) -> None:
        device = states[0].device
        self._streams = streams_of(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._steps: dict[int, torch.cuda.CUDAGraph] = {}
        self.step = BankStep(plans, batch, states[0].dtype, half, device, self._streams, multiply_half)
        # Not the tensors themselves: when one of these goes, so does this.
        views = [state.detach() for state in states]
        self._load = self._capture(partial(self.step.load, views))
        self._store = self._capture(partial(self.step.store, views))  # its first run stores what was just loaded

    def fits(self, batch: int, count: int) -> bool:
        """Say whether ``count`` rows in minibatches of ``batch`` are steps of this bank."""
        return batch == self.step.batch or count <= min(batch, self.step.batch)

    def train(self, features: Tensor, labels: Tensor, order: Tensor, done: Tensor, rates: Tensor) -> Tensor:
        """Train from what the states hold, and leave them trained; returns the losses (heads, steps)."""
        for count in {min(self.step.batch, len(order)), len(order) % self.step.batch} - {0} - self._steps.keys():
            if len(self._steps) < KEPT_COUNTS:
                self._steps[count] = self._capture(partial(self._anew, count))
        self._load.replay()
        losses = train(self.step, features, labels, order, done, rates, self._replay)
        self._store.replay()
        return losses

    def _replay(self, count: int) -> None:
        graph = self._steps.get(count)
        if graph is None:
            self.step(count)
        else:
            graph.replay()

    def _anew(self, count: int) -> None:
        self.step.turn.zero_()
        self.step(count)

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Capture kernels after they ran once, which makes PyTorch, cuBLAS and the driver ready for them.

        What that does to the weights does not matter: every call of ``train`` loads them.
        """
        current, stream = torch.cuda.current_stream(self._streams.first.device), self._streams.first
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            work()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Only this thread is bound to what a capture allows: another one may be bringing rows.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            work()
        return graph


_captured: OrderedDict[Hashable, Captured] = OrderedDict()


def captured(plans: Sequence[HeadPlan], batch: int, count: int, half: bool, states: Sequence[Tensor]) -> Captured:
    """Give the captured step of heads whose states lie where they did the last time, or capture it.

    It is forgotten, and its memory free, as soon as one of the states is.
    """
    precision = (
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    )
    key = tuple(plans), half, precision, tuple(state.data_ptr() for state in states), states[0].device
    found = _captured.pop(key, None)
    if found is None or not found.fits(batch, count):
        found = None  # its memory is free before more is asked for
        found = Captured(plans, min(batch, count), half, states)
        for state in states:
            weakref.finalize(state, _captured.pop, key, None)
    _captured[key] = found
    while len(_captured) > KEPT_BANKS:
        _captured.popitem(last=False)
    return found


@torch.no_grad()
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
    """Train every head on the rows of ``order``; returns the loss of each head and step.

    The host waits for the device once, for the losses.
    """
    if rates.shape != (len(states), -(-len(order) // batch)):
        raise ValueError(
            f"head_bank_train: rates must be {(len(states), -(-len(order) // batch))}, got {tuple(rates.shape)}"
        )
    if not rates.numel():
        return torch.empty_like(rates)
    heads, device = heads.cpu(), features.device
    with torch.cuda.device(device):
        bank = captured(plans_of(heads, numbers, features.shape[1]), batch, len(order), half, states)
        losses = bank.train(features, labels.to(device), order.to(device), heads[:, 1], rates.cpu())
        return losses.to(rates.device, copy=True).contiguous()
