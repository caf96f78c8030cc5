"""Times every contender of a case in one process, in turn."""

import gc
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from sslfast.bench.contenders import GRAPH, OURS, contenders, reason
from sslfast.testing import OpCase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
LEAST = 5
"""A contender that uses up its share of the time still gets so many samples."""

Seconds = tuple[float, float]
"""Of a forward and of a backward pass."""


class Pass(Protocol):
    """One forward and one backward pass of a contender, timed."""

    def __call__(self) -> Seconds:
        """Run both; without a gradient the second number is 0."""


def draw(case: OpCase, size: tuple[int, ...], device: str, dtype: str) -> list[Tensor]:
    """Draw a case's inputs; they require gradients where the case has any, constants do not."""
    values = [value.to(device, DTYPES[dtype]) for value in case.inputs(size)]
    return case.with_gradients(values) if case.differentiable else values


def variables(inputs: list[Tensor]) -> list[Tensor]:
    """Return the inputs that a backward pass is asked about."""
    return [value for value in inputs if value.requires_grad]


def modes(case: OpCase) -> tuple[str, ...]:
    """Return the passes that a case has; the last one is the one that counts."""
    return ("forward", "backward", "both") if case.differentiable else ("forward",)


def measure(
    case: OpCase,
    size: tuple[int, ...],
    device: str,
    dtype: str,
    samples: int = 50,
    seconds: float = 20.0,
    compiled: bool = True,
) -> list[dict[str, Any]]:
    """Time every contender and return a row per contender and mode, in milliseconds.

    Each turn runs every contender once, in an order that is shuffled anew.

    Args:
        case: the operator.
        size: of its inputs.
        device: "cpu" or "cuda"; there, CUDA-graph replays are contenders of their own.
        dtype: a key of ``DTYPES``.
        samples: timed turns.
        seconds: for all contenders together; one that has used up its share stops early, after ``LEAST`` turns.
        compiled: whether ``torch.compile`` of the reference takes part.
    """
    inputs = draw(case, size, device, dtype)
    options = dict(case.options[0])
    functions, missing = contenders(case, compiled)
    running: dict[str, Pass] = {}
    for name, function in functions.items():
        timed = EventPass if device == "cuda" else ClockPass
        _enter(name, partial(timed, function, inputs, options), running, missing, seconds)
    if device == "cuda":
        for name in list(running):
            replayed = partial(GraphPass, functions[name], inputs, options)
            _enter(f"{name}, {GRAPH}", replayed, running, missing, seconds)
    times = take_turns(running, samples, seconds)
    head = {"op": case.name, "size": list(size), "options": options, "dtype": dtype, "device": device}
    rows = [
        {"op": case.name, "contender": name, "mode": mode, **head, **summary(mode, taken)}
        for name, taken in times.items()
        for mode in modes(case)
    ]
    return rows + [{"op": case.name, "contender": name, **head, "skipped": why} for name, why in missing.items()]


class ClockPass:
    """Times by the processor's clock."""

    def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor], options: dict[str, Any]) -> None:
        self._run = lambda: function(*inputs, **options)
        self._inputs = inputs
        self._cotangent: Tensor | None = None

    def __call__(self) -> Seconds:
        """Run both passes."""
        start = time.perf_counter()
        output = self._run()
        middle = time.perf_counter()
        if not self._inputs[0].requires_grad:
            return middle - start, 0.0
        if self._cotangent is None:
            self._cotangent = torch.ones_like(output)
        begin = time.perf_counter()
        torch.autograd.grad(output, variables(self._inputs), self._cotangent)
        return middle - start, time.perf_counter() - begin


class EventPass:
    """Times by CUDA events on an idle device: a launch that the device waits for counts."""

    def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor], options: dict[str, Any]) -> None:
        self._run = lambda: function(*inputs, **options)
        self._inputs = inputs
        self._cotangent: Tensor | None = None

    def __call__(self) -> Seconds:
        """Run both passes."""
        start, middle, begin, end = _events()
        torch.cuda.synchronize()
        start.record()
        output = self._run()
        middle.record()
        if self._inputs[0].requires_grad:
            if self._cotangent is None:
                self._cotangent = torch.ones_like(output)
            begin.record()
            torch.autograd.grad(output, variables(self._inputs), self._cotangent)
        else:
            begin.record()
        end.record()
        torch.cuda.synchronize()
        backward = begin.elapsed_time(end) * 1e-3 if self._inputs[0].requires_grad else 0.0
        return start.elapsed_time(middle) * 1e-3, backward


class GraphPass:
    """Replays forward and backward as two CUDA graphs: the kernels without their launches.

    A contender that waits for the device (boolean indexing, ``.item()``) cannot be captured and raises here.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor], options: dict[str, Any]) -> None:
        differentiable = inputs[0].requires_grad
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # capturing wants everything to have run on another stream before
            for _ in range(3):
                output = function(*inputs, **options)
                cotangent = torch.ones_like(output)
                if differentiable:
                    torch.autograd.grad(output, variables(inputs), cotangent)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self._forward = torch.cuda.CUDAGraph()
        self._backward = torch.cuda.CUDAGraph() if differentiable else None
        try:
            with torch.cuda.graph(self._forward):
                output = function(*inputs, **options)
            self._kept = [output.detach(), cotangent]
            if self._backward is not None:
                # One pool: the second graph reads what the first one has saved.
                with torch.cuda.graph(self._backward, pool=self._forward.pool()):
                    self._kept += torch.autograd.grad(output, variables(inputs), cotangent)
        finally:
            torch.cuda.synchronize()

    def __call__(self) -> Seconds:
        """Replay both graphs."""
        start, middle, begin, end = _events()
        torch.cuda.synchronize()
        start.record()
        self._forward.replay()
        middle.record()
        begin.record()
        if self._backward is not None:
            self._backward.replay()
        end.record()
        torch.cuda.synchronize()
        backward = begin.elapsed_time(end) * 1e-3 if self._backward is not None else 0.0
        return start.elapsed_time(middle) * 1e-3, backward


def _events() -> list[Any]:
    return [torch.cuda.Event(enable_timing=True) for _ in range(4)]


def _enter(
    name: str, make: Callable[[], Pass], running: dict[str, Pass], missing: dict[str, str], seconds: float
) -> None:
    """Make a contender and warm it up; one that fails, or takes more than all the time there is, is named instead."""
    try:
        run = make()
        for _ in range(3):  # the first pass compiles
            start = time.perf_counter()
            run()
            taken = time.perf_counter() - start
            if taken > seconds / 10:
                break
        if taken > seconds:
            start = time.perf_counter()
            run()
            taken = time.perf_counter() - start
    except Exception as error:  # a baseline that does not run is reported, not hidden
        if name == OURS:
            raise
        missing[name] = reason(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        return
    if taken > seconds and name != OURS:
        missing[name] = f"one pass takes {taken:.0f} s, more than the {seconds:.0f} s that all contenders have"
        return
    running[name] = run


def take_turns(running: dict[str, Pass], samples: int, seconds: float) -> dict[str, list[Seconds]]:
    """Run every contender once a turn, in an order that is shuffled anew; give the seconds of each."""
    times: dict[str, list[Seconds]] = {name: [] for name in running}
    spent = dict.fromkeys(running, 0.0)
    order = list(running)
    gc.collect()
    gc.disable()
    try:
        for turn in range(samples):
            random.Random(turn).shuffle(order)
            for name in order:
                if turn >= LEAST and spent[name] > seconds / len(order):
                    continue
                start = time.perf_counter()
                times[name].append(running[name]())
                spent[name] += time.perf_counter() - start
    finally:
        gc.enable()
    return times


def summary(mode: str, taken: list[Seconds]) -> dict[str, Any]:
    """Give the entries of a row that say how long a pass took."""
    values = sorted({"forward": f, "backward": b, "both": f + b}[mode] * 1e3 for f, b in taken)
    return {
        "samples": len(values),
        "median_ms": round(statistics.median(values), 4),
        "p20_ms": round(values[len(values) // 5], 4),
        "p80_ms": round(values[len(values) * 4 // 5], 4),
        "fastest_ms": round(values[0], 4),
    }
