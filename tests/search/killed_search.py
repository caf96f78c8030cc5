"""Runs one search on digits, for the tests that kill it: python killed_search.py FOLDER THREADS."""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from sslfast.search import HeadSpace, search_heads


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    features, labels = load_digits(return_X_y=True)
    features, labels = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    search_heads(
        (features[:1400], labels[:1400]),
        (features[1400:], labels[1400:]),
        HeadSpace(units=(128, 512)),
        out=Path(sys.argv[1]),
        trials=8,
        epochs=4,
        parallel=2,
        dtype="float32",
        resume=True,
    )


if __name__ == "__main__":
    main()
