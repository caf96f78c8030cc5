"""What two runs of a study must share: everything but times."""

from typing import Any

TIMES = ("seconds", "iteration_ms", "time_to_accuracy")


def without_times(value: Any) -> Any:
    """Give a table without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if not any(time in key for time in TIMES)}
    return [without_times(one) for one in value] if isinstance(value, list) else value
