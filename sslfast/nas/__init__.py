"""Differentiable architecture search: DARTS, PC-DARTS, P-DARTS, and both together with a self-supervised loss."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sslfast._reference.primitives import PRIMITIVES

if TYPE_CHECKING:
    from sslfast.nas.cell import Cell
    from sslfast.nas.config import NetworkConfig, SearchConfig
    from sslfast.nas.genotype import PUBLISHED, Genotype, parse
    from sslfast.nas.loop import search, search_seeds
    from sslfast.nas.mixed_op import MixedOp
    from sslfast.nas.network import Network, NetworkImageNet
    from sslfast.nas.operations import register_operation
    from sslfast.nas.search_network import SearchNetwork
    from sslfast.nas.train import load_network, train_network

__all__ = [
    "PRIMITIVES",
    "PUBLISHED",
    "Cell",
    "Genotype",
    "MixedOp",
    "Network",
    "NetworkConfig",
    "NetworkImageNet",
    "SearchConfig",
    "SearchNetwork",
    "load_network",
    "parse",
    "register_operation",
    "search",
    "search_seeds",
    "train_network",
]

_PLACES = {
    "Cell": "cell",
    "Genotype": "genotype",
    "MixedOp": "mixed_op",
    "Network": "network",
    "NetworkConfig": "config",
    "NetworkImageNet": "network",
    "PUBLISHED": "genotype",
    "SearchConfig": "config",
    "SearchNetwork": "search_network",
    "load_network": "train",
    "parse": "genotype",
    "register_operation": "operations",
    "search": "loop",
    "search_seeds": "loop",
    "train_network": "train",
}
"""Names are imported when they are first asked for: the command line's help and the ops' own names stay light."""


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
