"""Works on a study of digits that others may share: python shared_search.py FOLDER STORAGE TRIALS EPOCHS."""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from sslfast.search import HeadSpace, search_heads


def main() -> None:
    torch.set_num_threads(1)
    features, labels = load_digits(return_X_y=True)
    features, labels = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    search_heads(
        (features[:1400], labels[:1400]),
        (features[1400:], labels[1400:]),
        HeadSpace(units=(128, 256)),
        out=Path(sys.argv[1]),
        trials=int(sys.argv[3]),
        epochs=int(sys.argv[4]),
        parallel=2,
        dtype="float32",
        storage=sys.argv[2],
        resume=True,
    )


if __name__ == "__main__":
    main()
