"""Probes of a backbone while it is trained: k-NN and a linear classifier, on images that the training never sees."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.data import Dataset, printable
from sslfast.errors import DataError
from sslfast.evaluate.logistic import fit_logistic
from sslfast.evaluate.neighbours import Neighbours
from sslfast.features.images import BatchReader
from sslfast.models import Preprocess

ROWS = 10_000
"""Training images that a probe learns from, at most."""
NEIGHBOURS = 20
STRENGTH = 1.0
"""Inverse regularisation of the linear classifier, in scikit-learn's scale; fixed, so that nothing is selected."""
IMAGES_AT_A_TIME = 500


class Probe:
    """Scores a network's features by k-NN (k = 20) and logistic regression.

    Both learn from at most `ROWS` training images and are scored on the held-out ones; neither is used for training.

    Args:
        train: labelled images that the network is trained on.
        held_out: labelled images that it is not.
        preprocess: of the network.
    """

    def __init__(self, train: Dataset, held_out: Dataset, preprocess: Preprocess) -> None:
        rows = np.unique(np.linspace(0, len(train) - 1, min(ROWS, len(train))).astype(np.int64))
        self.train, self.held_out, self.preprocess = train.subset(rows), held_out, preprocess
        assert self.train.labels is not None and held_out.labels is not None
        self.classes = int(max(self.train.labels.max(), held_out.labels.max())) + 1
        self.left_out: dict[str, str] = {}
        """Images that could not be read, and why."""

    def __call__(self, network: nn.Module, device: torch.device, compute: torch.dtype) -> dict[str, float]:
        """Give the share of held-out images that each probe gets right."""
        training = network.training
        network.eval()
        (features, labels), (asked, expected) = (
            self._features(network, part, device, compute) for part in (self.train, self.held_out)
        )
        network.train(training)
        nearest = Neighbours(F.normalize(features, dim=1), labels, self.classes, min(NEIGHBOURS, len(features)))
        mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
        fit = fit_logistic((features - mean) / std, labels, self.classes, [STRENGTH])
        linear = ((asked - mean) / std) @ fit.weight[0].t() + fit.bias[0]
        right = {"knn": nearest(asked), "linear": linear}
        return {name: round(float((scores.argmax(1) == expected).float().mean()), 4) for name, scores in right.items()}

    @torch.no_grad()
    def _features(
        self, network: nn.Module, images: Dataset, device: torch.device, compute: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Give features and labels of the images that can be read."""
        found, rows = [], []
        with BatchReader(images, self.preprocess, IMAGES_AT_A_TIME) as reader:
            for batch in reader.batches(0, len(images)):
                self.left_out.update(dict(batch.skipped))
                if not len(batch.positions):
                    continue
                rows.append(batch.positions)
                x = batch.images.to(device)
                x = self.preprocess(x) if x.dtype == torch.uint8 else x
                with torch.autocast(device.type, compute, enabled=compute != torch.float32):
                    found.append(network(x.contiguous(memory_format=torch.channels_last)).float().cpu())
        if not rows:
            name = printable(images.name)
            raise DataError(f"{name}: none of the {len(images)} images of an online probe can be read")
        return torch.cat(found), torch.from_numpy(np.asarray(images.labels)[np.concatenate(rows)]).long()
