"""The options of the studies, apart from the work: so that ``--help`` loads nothing heavy.

The defaults are the preset "small", minutes on two cores; ``paper()`` gives the settings of the paper that a study
takes up. Where the paper does not say a number, the docstring says that it is ours.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, Self, get_args

from sslfast.errors import UsageError
from sslfast.options import check_number, check_seed
from sslfast.pretrain.config import OptimizerName

Arm = Literal["autoencoder", "simclr", "barlow-twins"]
Mode = Literal["finetune", "transfer"]
Replay = Literal["no", "paper003"]


@dataclass(frozen=True)
class StudyConfig(ABC):
    """What every study is told.

    Args:
        data: a data set's name (see ``sslfast data``).
        images: of the training split that are used, class by class; 0: all.
        test_images: of the test split, likewise.
        image_size: side in pixels that images are held at; 0: their own up to 96 pixels, else 64.
        val_fraction: share of the training images that is held out; learning rates and epochs are chosen on it.
        seeds: how often everything is repeated, with the seeds from ``seed`` on.
        seed: the first one.
        dtype: of the products: float32, bfloat16 or auto.
    """

    NAME: ClassVar[str] = ""

    data: str = "fashion-mnist"
    images: int = 2000
    test_images: int = 2000
    image_size: int = 0
    val_fraction: float = 0.1
    seeds: int = 1
    seed: int = 0
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        self._at_least(images=0, test_images=0, image_size=0, seeds=1)
        if not 0 < self.val_fraction < 1:
            raise UsageError(f"val_fraction must lie between 0 and 1, got {self.val_fraction}")
        check_seed(self.seed)
        check_seed(self.seed + self.seeds - 1)

    @classmethod
    @abstractmethod
    def paper(cls) -> Self:
        """Give the paper's settings."""

    def _at_least(self, **least: int) -> None:
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UsageError(f"{name} must be at least {value}, got {getattr(self, name)}")

    def _some(self, *names: str) -> None:
        for name in names:
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UsageError(f"{name} must name one or more different values, got {tuple(values)}")

    def _of(self, kind: object, *names: str) -> None:
        """Refuse what is not in a Literal; the command line has refused it before."""
        for name in names:
            found = getattr(self, name)
            for value in (found,) if isinstance(found, str) else found:
                if value not in get_args(kind):
                    raise UsageError(f"unknown {name} {value!r}; there are: {', '.join(get_args(kind))}")

    def all_seeds(self) -> range:
        """Give the seeds."""
        return range(self.seed, self.seed + self.seeds)


@dataclass(frozen=True)
class LabelFractionsConfig(StudyConfig):
    """How much is a label worth: pre-training on a fraction of the images, a head trained on a fraction of the labels.

    Args:
        arms: how the encoder is pre-trained. The paper has the autoencoder; the others are its future work.
        backbone: of the arms but the autoencoder, which has its own.
        labelled: fractions of the training images whose labels are used.
        unlabelled: fractions of the training images that the encoder is pre-trained on.
        supervised: train encoder and head together on the labelled images alone, too: the paper's baseline.
        pretrain_epochs: of the encoder (paper: not given).
        pretrain_batch_size: of the encoder.
        epochs: of the head (paper: not given).
        batch_size: of the head.
        learning_rate: of the head (paper: not given).
        dropout: of the head (paper: not given).
        threshold: accuracy that time is measured to.
        targets: accuracies whose price in data is asked.
    """

    NAME: ClassVar[str] = "label-fractions"

    arms: tuple[Arm, ...] = ("autoencoder", "simclr", "barlow-twins")
    backbone: str = "conv-autoencoder"
    labelled: tuple[float, ...] = (0.1, 0.3, 0.9)
    unlabelled: tuple[float, ...] = (0.1, 0.5, 1.0)
    supervised: bool = True
    pretrain_epochs: int = 5
    pretrain_batch_size: int = 128
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    dropout: float = 0.25
    threshold: float = 0.4
    targets: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8)

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        super().__post_init__()
        self._some("arms", "labelled", "unlabelled", "targets")
        self._of(Arm, "arms")
        self._at_least(pretrain_epochs=1, pretrain_batch_size=2, epochs=1, batch_size=2)
        for name in ("labelled", "unlabelled", "targets"):
            for value in getattr(self, name):
                check_number(name, value, 0, 1, open_low=True)
        check_number("threshold", self.threshold, 0, 1, open_low=True)
        check_number("learning_rate", self.learning_rate, 0, open_low=True)
        check_number("dropout", self.dropout, 0, 1)

    @classmethod
    def paper(cls) -> Self:
        """Give Kirthivasan and Agarwal's grid on CIFAR-10; epochs, learning rate and dropout are ours."""
        return cls(
            data="cifar10",
            images=0,
            test_images=0,
            labelled=(0.1, 0.3, 0.5, 0.7, 0.9),
            unlabelled=(0.1, 0.3, 0.5, 0.7, 0.9),
            pretrain_epochs=50,
            epochs=50,
        )


@dataclass(frozen=True)
class TransferConfig(StudyConfig):
    """Which backbone transfers: fine-tuned or frozen, over learning rates, batch sizes and epochs.

    Args:
        backbones: each ``NAME`` (random weights), ``NAME=CHECKPOINT`` (a file, or a name that ``sslfast data
            fetch-weights`` knows), or ``METHOD+NAME``: pre-trained here on the training images, without their labels
            but for "supervised".
        modes: "finetune" trains every weight, "transfer" the last layer alone; the first is that of Figures 3, 4 and 6.
        learning_rates: of Figure 3; the last is that of the other figures.
        batch_sizes: of Figure 4; the last is that of the other figures.
        epochs: of Figure 6; the largest is that of the other figures.
        sweep: learning rates of the paper's table, for ``sweep_backbone`` alone; none: the table is left out.
        sweep_backbone: number of the backbone, from 0.
        sweep_epochs: of the table.
        sweep_batch_size: of the table.
        large_batch_sizes: that ``sweep_backbone`` alone is fine-tuned with, too.
        pretrain_epochs: of ``METHOD+NAME``.
        pretrain_batch_size: of ``METHOD+NAME``.
        replay: "paper003": instead of the figures, what each fault of the published comparison costs the first
            backbone, alone and all together.
        wrong_checkpoint: for the fault of that name, a ``NAME=CHECKPOINT``; by default ``METHOD+NAME`` is pre-trained
            on ``wrong_data``, which stands in for it.
        wrong_data: a data set unlike the one that is transferred to.
        wrong_epochs: of its pre-training.
        wrong_size: side in pixels of the wrong input.
    """

    NAME: ClassVar[str] = "transfer"

    backbones: tuple[str, ...] = ("simclr+resnet-small", "barlow-twins+resnet-small", "resnet-small")
    modes: tuple[Mode, ...] = ("finetune", "transfer")
    learning_rates: tuple[float, ...] = (1e-2, 3e-3)
    batch_sizes: tuple[int, ...] = (32, 64)
    epochs: tuple[int, ...] = (2, 5, 10)
    sweep: tuple[float, ...] = ()
    sweep_backbone: int = 0
    sweep_epochs: int = 20
    sweep_batch_size: int = 32
    large_batch_sizes: tuple[int, ...] = ()
    pretrain_epochs: int = 5
    pretrain_batch_size: int = 256
    replay: Replay = "no"
    wrong_checkpoint: str = ""
    wrong_data: str = "digits"
    wrong_epochs: int = 1
    wrong_size: int = 48

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        super().__post_init__()
        self._some("backbones", "modes", "learning_rates", "batch_sizes", "epochs")
        self._of(Mode, "modes")
        self._of(Replay, "replay")
        self._at_least(sweep_epochs=1, sweep_batch_size=2, pretrain_epochs=1, pretrain_batch_size=2, wrong_epochs=1)
        self._at_least(wrong_size=8, sweep_backbone=0)
        for rate in (*self.learning_rates, *self.sweep):
            check_number("a learning rate", rate, 0, open_low=True)
        for name, least in (("batch_sizes", 2), ("large_batch_sizes", 2), ("epochs", 1)):
            if any(value < least for value in getattr(self, name)):
                raise UsageError(f"{name} must each be at least {least}, got {getattr(self, name)}")
        if self.sweep_backbone >= len(self.backbones):
            raise UsageError(f"sweep_backbone must lie between 0 and {len(self.backbones) - 1}")

    @classmethod
    def paper(cls) -> Self:
        """Give Jimenez and Hale's comparison on Oxford-IIIT Pet.

        SimCLR is Lightning-Bolts' ImageNet ResNet-50: its authors' own are TensorFlow files. In the replay another
        SimCLR ResNet-50 of STL-10 stands in for the one that the paper took: that one is no longer named anywhere.
        """
        return cls(
            data="oxford-pets",
            images=0,
            test_images=0,
            image_size=256,
            val_fraction=0.25,
            backbones=(
                "resnet50=bolts-simclr",
                "resnet18=torchvision:resnet18",
                "resnet50=torchvision:resnet50@IMAGENET1K_V1",
                "vgg13=torchvision:vgg13",
                "inception_v3=torchvision:inception_v3",
                "vit_b_32=torchvision:vit_b_32",
                "swin_t=torchvision:swin_t",
            ),
            learning_rates=(1e-3, 1e-4),
            epochs=(10, 20, 50),
            sweep=(1e-3, 8e-4, 5e-4, 4e-4, 3.5e-4, 3e-4, 1e-4),
            large_batch_sizes=(256,),
            wrong_checkpoint="resnet50=spijkervet-resnet50",
            wrong_size=224,
        )


@dataclass(frozen=True)
class SelfClassifierStudyConfig(StudyConfig):
    """Classes without labels: Self-Classifier's clustering scores over backbones and heads, and its linear probe.

    Args:
        backbones: each ``NAME:LINEARS:EPOCHS``: the architecture, the linear layers of its head before the classifier
            (paper 001's "one hidden layer" is 1, its "two" is 2), and the epochs.
        classes: of the classifier that is scored; 0: as many as the data set has.
        hidden: width of a head's hidden layer.
        batch_size: of the pre-training.
        learning_rate: of the pre-training, at its highest.
        optimizer: of the pre-training.
        weight_decay: of the pre-training.
        probe_epochs: of the linear probe on the first backbone.
        probe_batch_size: of the linear probe.
        score_every: epochs between two points of the accuracy curve, on training images.
        examples: images per predicted class in the picture.
    """

    NAME: ClassVar[str] = "self-classifier"

    backbones: tuple[str, ...] = ("resnet-small:1:10", "resnet-small:2:10")
    classes: int = 0
    hidden: int = 1024
    batch_size: int = 64
    learning_rate: float = 2e-3
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 1e-4
    probe_epochs: int = 20
    probe_batch_size: int = 64
    score_every: int = 1
    examples: int = 12

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        super().__post_init__()
        self._some("backbones")
        self._of(OptimizerName, "optimizer")
        self._at_least(classes=0, hidden=1, batch_size=2, probe_epochs=1, probe_batch_size=2, score_every=1, examples=1)
        if self.classes == 1:
            raise UsageError("classes must be 2 or more, or 0 for as many as the data set has, got 1")
        check_number("learning_rate", self.learning_rate, 0, open_low=True)
        check_number("weight_decay", self.weight_decay, 0)
        for text in self.backbones:
            parse_row(text)

    @classmethod
    def paper(cls) -> Self:
        """Give Camilloni et al.'s Table 1 on CIFAR-10; the optimiser's numbers are those of Self-Classifier's own code.

        Their report says "according to [1]"; [1] takes SGD with LARS, 4.8 at a batch of 4096, a weight decay of 1e-6.
        """
        return cls(
            data="cifar10",
            images=0,
            test_images=0,
            backbones=("resnet18-cifar:1:100", "resnet18-cifar:2:100", "alexnet:2:100", "alexnet:2:200"),
            hidden=4096,
            learning_rate=4.8 * 64 / 4096,
            optimizer="lars",
            weight_decay=1e-6,
            probe_epochs=100,
        )


def parse_row(text: str) -> tuple[str, int, int]:
    """Divide ``NAME:LINEARS:EPOCHS``.

    Raises:
        UsageError: it is none.
    """
    name, _, rest = text.partition(":")
    linears, _, epochs = rest.partition(":")
    if not (name and linears.isdecimal() and epochs.isdecimal() and int(epochs) >= 1):
        raise UsageError(f"a backbone of this study is NAME:LINEARS:EPOCHS (resnet18-cifar:1:100), got {text!r}")
    return name, int(linears), int(epochs)


STUDIES: dict[str, type[StudyConfig]] = {
    config.NAME: config for config in (LabelFractionsConfig, TransferConfig, SelfClassifierStudyConfig)
}


def decided(config: StudyConfig, pixels: Sequence[str]) -> dict[str, object]:
    """Give what a study that is resumed must share: all options but how many seeds, which may grow, and the images.

    Args:
        config: the options.
        pixels: hashes of the images.
    """
    options = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "seeds"}
    return {"study": config.NAME, **options, "pixels": list(pixels)}
