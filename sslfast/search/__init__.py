"""The search of a classifier head on cached features."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sslfast.search.bank import HeadBank, Optimizer

if TYPE_CHECKING:
    from sslfast.search.result import SearchResult, TrialResult
    from sslfast.search.space import HeadSpace
    from sslfast.search.study import search_heads

__all__ = ["HeadBank", "HeadSpace", "Optimizer", "SearchResult", "TrialResult", "search_heads"]

_OPTUNAS = {"SearchResult": "result", "TrialResult": "result", "HeadSpace": "space", "search_heads": "study"}
"""What needs Optuna is imported when it is first named: a bank of heads trains without."""


def __getattr__(name: str) -> Any:
    if name in _OPTUNAS:
        return getattr(import_module(f"{__name__}.{_OPTUNAS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
