"""Trains heads on a store under a limit on memory: python limited.py STORE LIMIT_MEGABYTES OUT."""

import resource
import sys
from pathlib import Path

import torch

from sslfast.features import FeatureStore
from sslfast.models.head import HeadSpec
from sslfast.search.sources import StoredRows, open_rows
from sslfast.search.train import Recipe, train_heads

JOBS = [(0, HeadSpec((64,), 0.3, 0.01)), (1, HeadSpec((), 0.0, 0.05))]
RECIPE = Recipe(epochs=2, batch_size=16)
SHARE = 0.05


def train(rows):
    """Give every number that training came to."""
    found = train_heads(JOBS, rows, RECIPE)
    return {number: (result.accuracies, result.weights) for number, result in found.items()}


def own_kilobytes():
    """What the limit counts: VmData."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))


def main() -> None:
    """Limit the memory that is this process's own, and train."""
    store = FeatureStore.open(sys.argv[1])
    torch.zeros(1 << 16).add_(1)  # threads are there
    used = own_kilobytes()
    limit = (used << 10) + (int(sys.argv[2]) << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        store.load()
        raise SystemExit("the limit does not bind: the store can be loaded")
    except (RuntimeError, MemoryError):
        pass
    rows = open_rows(store, SHARE, 0)
    assert isinstance(rows, StoredRows), "a store that does not fit is streamed"
    torch.save(train(rows), sys.argv[3])
    print(f"{(own_kilobytes() - used) >> 10} MiB more at the end, limit {sys.argv[2]} MiB")


if __name__ == "__main__":
    main()
