"""The options of a pre-training, apart from the work: so that ``--help`` loads nothing heavy."""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

from sslfast.errors import UsageError
from sslfast.options import check_number, check_seed

OptimizerName = Literal["adamw", "sgd", "lars"]
CompileMode = Literal["no", "default", "reduce-overhead"]
RendererName = Literal["native", "dali", "torch"]


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the result of a pre-training, whatever the method.

    Args:
        backbone: architecture, one of `sslfast.models.ARCHITECTURES`.
        epochs: passes over the images.
        batch_size: images of a step, of all processes together (each image gives as many views as the policy has).
        accumulate: parts that a step's batch goes through the network in, one after another, to save memory; negatives,
            assignments and batch statistics are those of one part.
        optimizer: adamw, sgd (momentum) or lars (momentum; biases and norms without decay and adaptation).
        learning_rate: at its highest, after the warm-up.
        warmup: fraction of the steps over which the learning rate rises.
        warmup_from: learning rate at the first step, as a fraction of the highest.
        final_rate: learning rate that the cosine ends at, as a fraction of the highest.
        weight_decay: L2, on weights with more than one dimension.
        momentum: of sgd and lars.
        trust: LARS's coefficient: a step of learning rate 1 moves a weight by this share of its length.
        bias_rate: learning rate of biases and norms, as a fraction of that of the weights.
        ema: decay per step of a moving average of the backbone's weights, which is then what is saved; 0: none.
            No method here needs one.
        policy: name of the views' plan, see `sslfast.data.views`.
        renderer: who makes the views: native (on the CPU), dali (NVIDIA's, on the device; decodes JPEG there too), or
            torch (the slow definition).
        seed: of the weights, the order and the views.
        dtype: of the products: float32, bfloat16 (autocast, float32 master weights), or auto: bfloat16 where the
            processor has it in hardware.
        channels_last: keep images and weights in the memory format that convolutions are fastest in.
        compile: torch.compile of the backbone: no, default, or reduce-overhead (with CUDA graphs).
        sync_batchnorm: with several processes, take batch statistics over all of them.
        probe_every: epochs between two online probes (k-NN and linear classifier) on images of the training split that
            are held out for them; 0: none, and nothing is held out.
        probe_fraction: share of the training split that is held out for the probes.
    """

    METHOD: ClassVar[str] = ""

    backbone: str = "resnet-small"
    epochs: int = 20
    batch_size: int = 256
    accumulate: int = 1
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 2e-3
    warmup: float = 0.05
    warmup_from: float = 0.0
    final_rate: float = 0.0
    weight_decay: float = 1e-4
    momentum: float = 0.9
    trust: float = 1e-3
    bias_rate: float = 1.0
    ema: float = 0.0
    policy: str = ""
    renderer: RendererName = "native"
    seed: int = 0
    dtype: str = "auto"
    channels_last: bool = True
    compile: CompileMode = "no"
    sync_batchnorm: bool = True
    probe_every: int = 0
    probe_fraction: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        self._at_least(epochs=1, batch_size=2, accumulate=1, probe_every=0)
        if self.batch_size < 2 * self.accumulate:
            raise UsageError(
                f"a part needs at least 2 images, got batch_size {self.batch_size} in {self.accumulate} parts"
            )
        for name, kind in (("optimizer", OptimizerName), ("compile", CompileMode), ("renderer", RendererName)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; there are: {', '.join(get_args(kind))}")
        self._above_zero("learning_rate", "trust", "bias_rate")
        for name in ("warmup", "warmup_from", "final_rate", "momentum", "ema"):
            check_number(name, getattr(self, name), 0, 1)
        if self.ema == 1:
            raise UsageError("ema must be below 1: an average that never moves would be saved")
        check_number("weight_decay", self.weight_decay, 0)
        if not 0 < self.probe_fraction < 1:
            raise UsageError(f"probe_fraction must lie between 0 and 1, got {self.probe_fraction}")
        check_seed(self.seed)

    def _at_least(self, **least: int) -> None:
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UsageError(f"{name} must be at least {value}, got {getattr(self, name)}")

    def _above_zero(self, *names: str) -> None:
        for name in names:
            check_number(name, getattr(self, name), 0, open_low=True)


@dataclass(frozen=True)
class SimCLRConfig(PretrainConfig):
    """SimCLR (Chen et al. 2020): two views of an image are pulled together, away from all others.

    Args:
        temperature: of NT-Xent.
        projection: width of the projection that the loss sees.
        hidden: width of the projector's hidden layer; 0: twice the backbone's features.
        views_apart: one pass of the network per view, each with its own batch statistics, as lightly and solo-learn do;
            else one pass over both, as Chen et al.
    """

    METHOD: ClassVar[str] = "simclr"

    policy: str = "simclr"
    temperature: float = 0.2
    projection: int = 128
    hidden: int = 0
    views_apart: bool = True

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        super().__post_init__()
        self._at_least(projection=1, hidden=0)
        self._above_zero("temperature")


@dataclass(frozen=True)
class SwAVConfig(PretrainConfig):
    """SwAV (Caron et al. 2020): every view predicts to which prototypes the other views belong.

    Args:
        prototypes: how many there are.
        projection: width of the projection that is compared with them.
        hidden: width of the projector's hidden layer; 0: twice the backbone's features.
        temperature: of the predictions.
        epsilon: temperature of the assignments (Sinkhorn-Knopp).
        iterations: of Sinkhorn-Knopp.
        freeze_epochs: over which the prototypes stay as they were drawn.
        queue: earlier projections per assigned view that take part in the assignment, of all processes together; 0:
            none. It should hold several times as many as there are prototypes where a batch does not.
        queue_from: epoch from which the queue is filled; used once it is full.
    """

    METHOD: ClassVar[str] = "swav"

    policy: str = "swav-cifar"
    prototypes: int = 512
    projection: int = 128
    hidden: int = 0
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    freeze_epochs: float = 1.0
    queue: int = 0
    queue_from: float = 15.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        super().__post_init__()
        self._at_least(prototypes=1, projection=1, hidden=0, iterations=0, queue=0)
        self._above_zero("temperature", "epsilon")
        check_number("freeze_epochs", self.freeze_epochs, 0)
        check_number("queue_from", self.queue_from, 0)


@dataclass(frozen=True)
class BarlowTwinsConfig(PretrainConfig):
    """Barlow Twins (Zbontar et al. 2021): the cross-correlation of two views' projections becomes the identity.

    Args:
        projection: width of all three layers of the projector.
        redundancy: lambda, weight of the entries beside the diagonal.
        scale: factor of the loss, for optimisers that care.
    """

    METHOD: ClassVar[str] = "barlow-twins"

    policy: str = "barlow-twins-cifar"
    projection: int = 1024
    redundancy: float = 5e-3
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        super().__post_init__()
        self._at_least(projection=1)
        self._above_zero("scale")
        check_number("redundancy", self.redundancy, 0)


@dataclass(frozen=True)
class SelfClassifierConfig(PretrainConfig):
    """Self-Classifier (Amrani et al. 2022): views of an image get the same class, and all classes are used.

    Args:
        classes: of each classifier, one number per classifier.
        mlp_layers: linear layers of the head before the classifiers. 2: one hidden layer with BN and LeakyReLU, as the
            official code and its paper; 1: a single linear layer and nothing else, which the CIFAR-10 study calls "one
            hidden layer"; 0: the classifiers see the normalised features.
        hidden: width of the head's hidden layers.
        projection: width of what the classifiers see (of length 1).
        row_temperature: of the predictions.
        column_temperature: of the targets.
        neighbours: rows of a queue of earlier projections, of all processes together; once it is full, the first
            view is replaced by its nearest neighbour there. 0: none. It should be much shorter than the data set, or
            the neighbour is the same image of an epoch ago.
    """

    METHOD: ClassVar[str] = "self-classifier"

    policy: str = "self-classifier-cifar"
    classes: tuple[int, ...] = (100, 200, 400, 800)
    mlp_layers: int = 2
    hidden: int = 1024
    projection: int = 128
    row_temperature: float = 0.1
    column_temperature: float = 0.05
    neighbours: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        super().__post_init__()
        if not self.classes or min(self.classes) < 2:
            raise UsageError(f"classes must name one number from 2 on per classifier, got {tuple(self.classes)}")
        self._at_least(mlp_layers=0, hidden=1, projection=1, neighbours=0)
        self._above_zero("row_temperature", "column_temperature")


@dataclass(frozen=True)
class AutoencoderConfig(PretrainConfig):
    """Convolutional autoencoder: images are rebuilt from their code, the root mean squared error is the loss.

    Args:
        rmse: root of the mean over the whole batch, or mean over the images of each one's root (batch, image).
        dropout: probability of dropping a channel of the code.
    """

    METHOD: ClassVar[str] = "autoencoder"

    backbone: str = "conv-autoencoder"
    policy: str = "autoencoder"
    learning_rate: float = 1e-3
    rmse: Literal["batch", "image"] = "batch"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        super().__post_init__()
        if self.backbone != "conv-autoencoder":
            raise UsageError(f"the autoencoder has its own backbone, conv-autoencoder, got {self.backbone!r}")
        if self.rmse not in ("batch", "image"):
            raise UsageError(f"rmse must be batch or image, got {self.rmse!r}")
        check_number("dropout", self.dropout, 0, 1)


@dataclass(frozen=True)
class SupervisedConfig(PretrainConfig):
    """Cross entropy with the labels: the baseline of the methods that do without them.

    Args:
        label_smoothing: share of the target that goes to all classes alike.
    """

    METHOD: ClassVar[str] = "supervised"

    policy: str = "supervised"
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        super().__post_init__()
        check_number("label_smoothing", self.label_smoothing, 0, 1)


CONFIGS: dict[str, type[PretrainConfig]] = {
    config.METHOD: config
    for config in (
        SimCLRConfig,
        SwAVConfig,
        BarlowTwinsConfig,
        SelfClassifierConfig,
        AutoencoderConfig,
        SupervisedConfig,
    )
}
"""Every method's options, by the method's name."""


def config_of(method: str, options: dict[str, object]) -> PretrainConfig:
    """Rebuild a method's config from what `dataclasses.asdict` made of it and a JSON file kept."""
    kind = CONFIGS[method]
    values = {field.name: options[field.name] for field in fields(kind) if field.name in options}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})  # type: ignore[arg-type]
