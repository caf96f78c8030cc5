"""Times operators against named baselines, in turn; a wrong operator gets no numbers."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sslfast.bench.registry import CASES
from sslfast.testing import OpCase, check_op

MODES = ("forward", "backward", "both")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def contenders(case: OpCase, compiled: bool = True) -> tuple[dict[str, Callable[..., Tensor]], dict[str, str]]:
    """Return ours and the baselines by name, and the reason for each baseline that is missing."""
    found = {"sslfast": case.function, "reference eager": case.reference}
    missing = {}
    if compiled:
        found["reference torch.compile"] = torch.compile(case.reference)
    for name, get in case.peers.items():
        try:
            found[name] = get()
        except ImportError as error:
            missing[name] = f"not installed ({error})"
    return found, missing


def measure(
    case: OpCase, size: tuple[int, ...], device: str, dtype: str, samples: int, compiled: bool = True
) -> list[dict[str, Any]]:
    """Time every contender in turn, ``samples`` times, and return one row per contender and mode, in milliseconds."""
    inputs = [value.to(device, DTYPES[dtype]).requires_grad_() for value in case.inputs(size)]
    functions, missing = contenders(case, compiled)
    options = dict(case.options[0])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    broken: dict[str, str] = {}
    for turn in range(-3, samples):
        for name, function in functions.items():
            if name in broken:
                continue
            try:
                taken = _once(lambda function=function: function(*inputs, **options), inputs, device)
            except Exception as error:  # a baseline that does not run is reported, not hidden
                if name == "sslfast":
                    raise
                broken[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                continue
            if turn >= 0:  # the first turns compile and warm up
                times[name].append(taken)
    rows = []
    for name, taken in times.items():
        if name in broken:
            missing[name] = broken[name]
            continue
        for mode in MODES:
            values = sorted({"forward": f, "backward": b, "both": f + b}[mode] * 1e3 for f, b in taken)
            rows.append(
                {
                    "op": case.name,
                    "contender": name,
                    "mode": mode,
                    "size": list(size),
                    "options": options,
                    "dtype": dtype,
                    "device": device,
                    "samples": len(values),
                    "median_ms": round(statistics.median(values), 4),
                    "fastest_ms": round(values[0], 4),
                    "p20_ms": round(values[len(values) // 5], 4),
                    "p80_ms": round(values[len(values) * 4 // 5], 4),
                }
            )
    rows += [
        {"op": case.name, "contender": name, "size": list(size), "dtype": dtype, "device": device, "skipped": why}
        for name, why in missing.items()
    ]
    return rows


def correct(case: OpCase, device: str) -> str | None:
    """Return None where the operator passes its gates on ``device``, else what they say."""
    try:
        check_op(case, device)
    except AssertionError as error:
        return str(error).splitlines()[0]
    return None


def peak_memory(case: OpCase, size: tuple[int, ...], device: str, dtype: str, contender: str) -> float | None:
    """Return the memory in MB that forward and backward add, measured in a process of its own."""
    code = "import sys; from sslfast.bench.runner import print_peak; print_peak(*sys.argv[1:])"
    words = [case.name, ",".join(map(str, size)), device, dtype, contender]
    # -P: in a checkout that is not installed, its own folders must not come before the package that was built.
    run = subprocess.run([sys.executable, "-P", "-c", code, *words], capture_output=True, text=True)
    return round(float(run.stdout.split()[-1]), 2) if run.returncode == 0 else None


def print_peak(name: str, size: str, device: str, dtype: str, contender: str) -> None:
    """Print the peak memory, in MB, that one forward and backward pass adds to what was there before."""
    case = CASES[name]
    function = contenders(case, compiled=contender == "reference torch.compile")[0][contender]
    shape = tuple(map(int, size.split(",")))
    inputs = [value.to(device, DTYPES[dtype]).requires_grad_() for value in case.inputs(shape)]
    options = dict(case.options[0])
    small = [value[:2].detach().clone().requires_grad_() for value in inputs]
    _once(lambda: function(*(small if device == "cpu" else inputs), **options), inputs, device, allow_unused=True)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _once(lambda: function(*inputs, **options), inputs, device)
        print((torch.cuda.max_memory_allocated() - before) / 1e6)
        return
    # The allocator's own account: what is alive after each event, at its highest.
    with torch.profiler.profile(profile_memory=True) as profile:
        _once(lambda: function(*inputs, **options), inputs, device)
    alive = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            highest = max(highest, alive)
    print(highest / 1e6)


def _once(
    function: Callable[[], Tensor], inputs: list[Tensor], device: str, allow_unused: bool = False
) -> tuple[float, float]:
    """Return the seconds of one forward and one backward pass."""
    _wait(device)
    start = time.perf_counter()
    output = function()
    _wait(device)
    middle = time.perf_counter()
    torch.autograd.grad(output, inputs, torch.ones_like(output), allow_unused=allow_unused)
    _wait(device)
    return middle - start, time.perf_counter() - middle


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
