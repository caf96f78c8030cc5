"""The options of a demo, apart from the work: so that ``--help`` loads nothing heavy."""

from dataclasses import dataclass

from sslfast.errors import UsageError
from sslfast.options import check_seed
from sslfast.pretrain.config import SimCLRConfig


@dataclass(frozen=True)
class DemoConfig:
    """Everything that decides the result of a demo.

    Args:
        data: a data set's name, or ``imagefolder:PATH`` for images of one's own (see ``sslfast data``).
        image_size: side in pixels that the network sees; by default the images' own up to 96, else 64.
        backbone: architecture, one of `sslfast.models.ARCHITECTURES`.
        pretrain_epochs: passes over the training images without their labels.
        pretrain_batch_size: images of a step of the pre-training.
        val_fraction: share of the training images held out to choose by.
        trials: heads that the search tries.
        tune_epochs: passes over the training features per trial.
        tune_batch_size: rows of a step of a head's training.
        parallel: trials asked for at once.
        seed: of everything.
        dtype: of the pre-training's products: auto, float32 or bfloat16.
    """

    data: str = "fashion-mnist"
    image_size: int | None = None
    backbone: str = SimCLRConfig.backbone
    pretrain_epochs: int = 5
    pretrain_batch_size: int = 128
    val_fraction: float = 0.1
    trials: int = 12
    tune_epochs: int = 6
    tune_batch_size: int = 256
    parallel: int = 4
    seed: int = 0
    dtype: str = SimCLRConfig.dtype

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        for name in ("pretrain_epochs", "trials", "tune_epochs", "tune_batch_size", "parallel"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.pretrain_batch_size < 2:
            raise UsageError(f"--pretrain-batch-size must be at least 2, got {self.pretrain_batch_size}")
        if not 0 < self.val_fraction < 1:
            raise UsageError(f"--val-fraction must lie between 0 and 1, got {self.val_fraction}")
        check_seed(self.seed)

    @property
    def pretrain(self) -> SimCLRConfig:
        """Options of the pre-training."""
        return SimCLRConfig(
            backbone=self.backbone,
            epochs=self.pretrain_epochs,
            batch_size=self.pretrain_batch_size,
            seed=self.seed,
            dtype=self.dtype,
        )
