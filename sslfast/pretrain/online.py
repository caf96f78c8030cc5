"""Probes of a backbone while it is trained: k-NN and a linear classifier, on images that the training never sees."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sslfast.data import Dataset
from sslfast.evaluate.logistic import fit_logistic
from sslfast.evaluate.neighbours import Neighbours
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
        self.labels = torch.from_numpy(np.asarray(self.train.labels)).long()
        self.expected = torch.from_numpy(np.asarray(held_out.labels)).long()
        self.classes = int(max(self.labels.max(), self.expected.max())) + 1

    def __call__(self, network: nn.Module, device: torch.device, compute: torch.dtype) -> dict[str, float]:
        """Give the share of held-out images that each probe gets right."""
        training = network.training
        network.eval()
        features, asked = (self._features(network, part, device, compute) for part in (self.train, self.held_out))
        network.train(training)
        nearest = Neighbours(F.normalize(features, dim=1), self.labels, self.classes, min(NEIGHBOURS, len(features)))
        mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
        fit = fit_logistic((features - mean) / std, self.labels, self.classes, [STRENGTH])
        linear = ((asked - mean) / std) @ fit.weight[0].t() + fit.bias[0]
        return {"knn": self._right(nearest(asked)), "linear": self._right(linear)}

    def _right(self, scores: Tensor) -> float:
        return round(float((scores.argmax(1) == self.expected).float().mean()), 4)

    @torch.no_grad()
    def _features(self, network: nn.Module, images: Dataset, device: torch.device, compute: torch.dtype) -> Tensor:
        found = []
        for first in range(0, len(images), IMAGES_AT_A_TIME):
            rows: NDArray[np.int64] = np.arange(first, min(first + IMAGES_AT_A_TIME, len(images)))
            x = self.preprocess(torch.from_numpy(images.images(rows)).to(device))
            with torch.autocast(device.type, compute, enabled=compute != torch.float32):
                found.append(network(x.contiguous(memory_format=torch.channels_last)).float().cpu())
        return torch.cat(found)
