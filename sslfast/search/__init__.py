"""The search of a classifier head on cached features."""

from sslfast.search.bank import HeadBank, Optimizer
from sslfast.search.result import SearchResult, TrialResult
from sslfast.search.space import HeadSpace
from sslfast.search.study import search_heads

__all__ = ["HeadBank", "HeadSpace", "Optimizer", "SearchResult", "TrialResult", "search_heads"]
