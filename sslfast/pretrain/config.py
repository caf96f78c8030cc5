"""The options of a pre-training, apart from the work: so that ``--help`` loads nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SimCLRConfig:
    """Everything that decides the result of a SimCLR pre-training.

    Args:
        backbone: architecture, one of `sslfast.models.ARCHITECTURES`.
        epochs: passes over the images.
        batch_size: images of a step (each gives two views).
        learning_rate: at its highest, after the warm-up; falls to 0 with a cosine.
        warmup: fraction of the steps over which the learning rate rises.
        weight_decay: L2, on weights with more than one dimension.
        temperature: of NT-Xent.
        projection: width of the projection that the loss sees.
        policy: of the views, one of `sslfast.data.views.POLICIES`.
        seed: of the weights, the order and the views.
        dtype: of the products: float32, bfloat16 (autocast, float32 master weights), or auto: bfloat16 where the
            processor has it in hardware.
    """

    backbone: str = "resnet-small"
    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 1e-4
    temperature: float = 0.2
    projection: int = 128
    policy: str = "simclr"
    seed: int = 0
    dtype: str = "auto"
