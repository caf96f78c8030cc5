"""The options of a pre-training, apart from the work: so that ``--help`` loads nothing heavy."""

from dataclasses import dataclass

from sslfast.errors import UsageError
from sslfast.options import check_number, check_seed


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
        policy: of the views, one of `sslfast.data.views.PLANS`.
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

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        for name, least in (("epochs", 1), ("batch_size", 2), ("projection", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "temperature"):
            check_number(name, getattr(self, name), 0, open_low=True)
        check_number("warmup", self.warmup, 0, 1)
        check_number("weight_decay", self.weight_decay, 0)
        check_seed(self.seed)
