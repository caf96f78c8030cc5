"""Small trainings of every method on the digits, which several test modules share."""

from dataclasses import replace

from sslfast.data import load
from sslfast.pretrain.config import (
    AutoencoderConfig,
    BarlowTwinsConfig,
    SelfClassifierConfig,
    SimCLRConfig,
    SupervisedConfig,
    SwAVConfig,
)

SIZE = 16
SHORT = {"epochs": 2, "batch_size": 64, "dtype": "float32"}
QUICK = {
    "simclr": SimCLRConfig(**SHORT),
    "swav": SwAVConfig(
        prototypes=24, projection=16, queue=160, queue_from=0.5, freeze_epochs=1, policy="swav-cifar", **SHORT
    ),
    "barlow-twins": BarlowTwinsConfig(projection=64, policy="barlow-twins-cifar", **SHORT),
    "self-classifier": SelfClassifierConfig(
        classes=(10, 20), hidden=64, projection=16, neighbours=150, policy="self-classifier-cifar", **SHORT
    ),
    "autoencoder": AutoencoderConfig(dropout=0.2, **SHORT),
    "supervised": SupervisedConfig(**SHORT),
}
"""By method; queues fill before the end, and a part of a network is random."""


def digits(count=320):
    return load("digits", "train").subset(range(count))


def config(method, **changes):
    return replace(QUICK[method], **changes)
