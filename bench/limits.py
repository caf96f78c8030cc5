"""What the machine can do at most, measured beside the operators: multiply-adds and moving numbers."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

CACHED_BYTES = 8 << 20
"""Streams of this size (both sides together) stay in a CPU's last level of cache; smaller traffic is held to them."""
MEMORY_BYTES = 1 << 30
"""Streams of this size (both sides together) go to memory on any machine."""


def limits(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Measure the most operations and the most bytes (read plus written) per second.

    Returns:
        operations_per_s: the best of ``torch.mm``, ``torch.nn.functional.linear`` (it may take another library) and,
        for float32 (and bfloat16, where the processor has it) on the CPU, our own register tile on numbers that stay in
        the first-level cache.
        bytes_per_s: the better of a copy and a sum in place, in memory; cached_bytes_per_s: in the last level of the
        cache.
    """
    side = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    operations = 2.0 * side**3
    best = max(
        operations / _quickest(lambda: torch.mm(left, right, out=product), device),
        operations / _quickest(lambda: torch.nn.functional.linear(left, right), device),
    )
    half = dtype == torch.bfloat16 and device == "cpu" and torch.ops.sslfast.cpu_has_bfloat16()
    if device == "cpu" and (dtype == torch.float32 or half):
        threads, rounds = torch.get_num_threads(), 20_000
        tile = torch.ops.sslfast.cpu_multiply
        best = max(best, tile(threads, rounds, half) / _quickest(lambda: tile(threads, rounds, half), device))
    return {
        "operations_per_s": best,
        "bytes_per_s": _stream(device, MEMORY_BYTES),
        "cached_bytes_per_s": _stream(device, CACHED_BYTES),
    }


def floor_ms(operations: float, traffic: float, limit: Mapping[str, float]) -> float:
    """Return the milliseconds below which no implementation gets on this machine.

    Args:
        operations: that the best known algorithm needs.
        traffic: bytes that have to be read or written at least once.
        limit: what :func:`limits` found.
    """
    rate = limit["cached_bytes_per_s" if traffic <= CACHED_BYTES else "bytes_per_s"]
    return 1e3 * max(operations / limit["operations_per_s"], traffic / rate)


def better(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Join two measurements of one machine: a limit is the best that was ever seen."""
    return {name: max(one.get(name, 0.0), other.get(name, 0.0)) for name in {**one, **other}}


def _stream(device: str, size: int) -> float:
    """Return bytes read and written per second; a sum in place gets more out of memory that is read before a write."""
    source, target = torch.ones(2, size // 8, device=device)
    return max(
        size / _quickest(lambda: target.copy_(source), device),
        1.5 * size / _quickest(lambda: target.add_(source), device),
    )


def _quickest(function: Callable[[], Any], device: str, seconds: float = 0.3) -> float:
    """Return the seconds of the quickest of the calls that fit into ``seconds``, at least five."""
    best, count, end = float("inf"), 0, time.perf_counter() + seconds
    while count < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        best, count = min(best, time.perf_counter() - start), count + 1
    return best
