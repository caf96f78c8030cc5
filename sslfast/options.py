"""What several commands ask of their options, checked before anything is done."""

import math

from sslfast.errors import UsageError

SEEDS = 2**63
"""Seeds are whole numbers from 0 on, below this: what NumPy and PyTorch both take."""


def check_seed(seed: int) -> None:
    """Refuse a seed that not every generator takes."""
    if not 0 <= seed < SEEDS:
        raise UsageError(f"the seed must lie between 0 and 2^63 - 1, got {seed}")


def check_number(name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Refuse a number that is not finite, or outside ``[low, high]`` (with ``open_low``: ``(low, high]``)."""
    if math.isfinite(value) and (value > low or value == low and not open_low) and value <= high:
        return
    least = f"{'greater than' if open_low else 'at least'} {low:g}"
    most = f" and at most {high:g}" if math.isfinite(high) else ""
    raise UsageError(f"{name} must be a finite number {least}{most}, got {value:g}")
