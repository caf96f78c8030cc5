"""sslfast: compiled kernels for self-supervised learning, and the tool around them."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from sslfast import _load as _load  # first: the ops add their Python half to what it loads
from sslfast import losses
from sslfast.accelerate import accelerate
from sslfast.ops.barlow_twins import barlow_twins
from sslfast.ops.mixed_edge import mixed_edge
from sslfast.ops.nt_xent import nt_xent
from sslfast.ops.nt_xent_indexed import nt_xent_indexed
from sslfast.ops.self_classifier import self_classifier
from sslfast.ops.sinkhorn import sinkhorn
from sslfast.ops.swav_loss import swav_loss

try:
    __version__ = version("sslfast")
except PackageNotFoundError:  # built in place, not installed
    __version__ = "0+unknown"

_PARTS = ("data", "evaluate", "export", "features", "models", "nas", "pretrain", "report", "search")
"""Subpackages that are imported when they are first named: they bring more than the losses need."""


def __getattr__(name: str) -> ModuleType:
    if name in _PARTS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PARTS})


__all__ = [
    "__version__",
    "accelerate",
    "barlow_twins",
    "losses",
    "mixed_edge",
    "nt_xent",
    "nt_xent_indexed",
    "self_classifier",
    "sinkhorn",
    "swav_loss",
]
