"""The memory that one forward and backward pass adds; on the CPU, of one contender in a process of its own."""

import ctypes
import gc
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sslfast.bench.contenders import COMPILED, contender
from sslfast.bench.timing import draw, variables
from sslfast.testing import OpCase

VARIABLES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}
"""Under these glibc gives freed blocks back at once, so that the resident set follows what is in use."""


def peak(case: OpCase, size: tuple[int, ...], device: str, dtype: str, name: str) -> dict[str, float]:
    """Measure one contender; the inputs are not counted, the gradients are.

    Returns:
        peak_mb: by the account of PyTorch's allocator. rss_mb, on the CPU: how much the resident set grew at its
        highest, which also shows what a library takes past that allocator.
    """
    function = contender(case, name)
    options = dict(case.options[0])
    inputs = draw(case, size, device, dtype)

    def run(values: list[torch.Tensor]) -> None:
        output = function(*values, **options)
        if case.differentiable:
            torch.autograd.grad(output, variables(values), torch.ones_like(output))

    if device == "cuda":
        run(inputs)
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(inputs)
        torch.cuda.synchronize()
        return {"peak_mb": round((torch.cuda.max_memory_allocated() - before) / 1e6, 2)}
    # A small pass loads what is loaded once; what a pass of the full size keeps for the next one shall count. A
    # compiled function is another one for every size, and its compiler takes far more than the pass.
    ordered = sorted(case.sizes, key=math.prod)
    run(inputs if name == COMPILED else draw(case, ordered[len(ordered) // 2], device, dtype))
    return {"rss_mb": round(_resident(lambda: run(inputs)), 2), "peak_mb": round(_allocated(lambda: run(inputs)), 2)}


def limit_memory(share: float = 0.8) -> None:
    """Let an allocation fail that would take more than ``share`` of the memory that is free, instead of swapping."""
    free = _status("/proc/meminfo", "MemAvailable") * share
    resource.setrlimit(resource.RLIMIT_DATA, (int(_status("/proc/self/status", "VmData") + free),) * 2)


def _resident(run: Callable[[], Any]) -> float:
    """Return by how many MB the resident set grows at its highest."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far becomes the present one
    before = _status("/proc/self/status", "VmRSS")
    run()
    return (_status("/proc/self/status", "VmHWM") - before) / 1e6


def _allocated(run: Callable[[], Any]) -> float:
    """Return how many MB of tensors are alive at the highest."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    alive = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            highest = max(highest, alive)
    return highest / 1e6


def _status(path: str, name: str) -> float:
    """Return an entry of one of the kernel's status files, in bytes."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024.0
    raise KeyError(f"{path} has no {name}")
