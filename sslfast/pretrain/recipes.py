"""Papers' and libraries' settings by name, each one command: ``sslfast pretrain METHOD --recipe NAME --data SET``.

Learning rates are those of the whole batch (papers often print them for 256 images).
"""

from dataclasses import dataclass

from sslfast.pretrain.config import (
    AutoencoderConfig,
    BarlowTwinsConfig,
    PretrainConfig,
    SelfClassifierConfig,
    SimCLRConfig,
    SupervisedConfig,
    SwAVConfig,
)


@dataclass(frozen=True)
class Recipe:
    """A method's options, and whose they are.

    Args:
        config: the options.
        data: what it was made for.
        source: where the settings were published; what is not theirs is said.
    """

    config: PretrainConfig
    data: str
    source: str


RECIPES: dict[str, Recipe] = {
    "simclr-cifar10-lightly": Recipe(
        SimCLRConfig(
            backbone="resnet18-cifar", epochs=200, batch_size=512, optimizer="sgd", learning_rate=0.24, warmup=0.05,
            weight_decay=5e-4, temperature=0.5, projection=128, hidden=512,
        ),
        "cifar10",
        "lightly's CIFAR-10 benchmark: SGD, 0.06 per 128 images, no blur; the warm-up is ours",
    ),
    "simclr-imagenet": Recipe(
        SimCLRConfig(
            backbone="resnet50", epochs=100, batch_size=4096, optimizer="lars", learning_rate=4.8, warmup=0.1,
            weight_decay=1e-6, temperature=0.1, projection=128, hidden=2048, policy="simclr-imagenet",
            views_apart=False,
        ),
        "ImageNet at 224 pixels",
        "Chen et al. 2020, section 2.2 and appendix B.6: LARS, 0.3 per 256 images, 10 epochs of warm-up",
    ),
    "swav-official": Recipe(
        SwAVConfig(
            backbone="resnet50", epochs=400, batch_size=256, optimizer="lars", learning_rate=0.6, warmup=0.0,
            final_rate=1e-3, weight_decay=1e-6, prototypes=3000, hidden=2048, queue=3840, queue_from=15.0,
            freeze_epochs=1.0, policy="swav",
        ),
        "ImageNet at 224 pixels",
        "Caron et al. 2020, 256 images a step: 400 epochs, queue of 3840 from epoch 15, prototypes frozen for an epoch "
        "(its code decays and adapts biases and norms too)",
    ),
    "swav-cifar10-lightly": Recipe(
        SwAVConfig(
            backbone="resnet18-cifar", epochs=200, batch_size=512, optimizer="adamw", learning_rate=4e-3, warmup=0.05,
            weight_decay=1e-6, prototypes=512, hidden=512, policy="swav-cifar",
        ),
        "cifar10",
        "lightly's CIFAR-10 benchmark: Adam, 0.001 per 128 images, two crops, 512 prototypes; the warm-up is ours",
    ),
    "barlow-official": Recipe(
        BarlowTwinsConfig(
            backbone="resnet50", epochs=1000, batch_size=2048, optimizer="lars", learning_rate=1.6, warmup=0.01,
            final_rate=1e-3, weight_decay=1e-6, bias_rate=0.024, projection=8192, redundancy=0.0051,
            policy="barlow-twins",
        ),
        "ImageNet at 224 pixels",
        "Zbontar et al. 2021: LARS, 0.2 (weights) and 0.0048 (biases) per 256 images, 10 epochs of warm-up",
    ),
    "barlow-cifar10-solo": Recipe(
        BarlowTwinsConfig(
            backbone="resnet18-cifar", epochs=1000, batch_size=256, optimizer="lars", learning_rate=0.3, warmup=0.01,
            weight_decay=1e-4, trust=0.02, projection=2048, redundancy=0.0051, scale=0.1,
        ),
        "cifar10",
        "solo-learn's CIFAR-10 settings; LARS without its clipping",
    ),
    "self-classifier-official": Recipe(
        SelfClassifierConfig(
            backbone="resnet50", epochs=100, batch_size=4096, optimizer="lars", learning_rate=4.8, warmup=0.1,
            warmup_from=0.0625, final_rate=1e-3, weight_decay=1e-6, classes=(1000, 2000, 4000, 8000), mlp_layers=2,
            hidden=4096, neighbours=262144, policy="self-classifier",
        ),
        "ImageNet at 224 pixels",
        "Amrani et al. 2022 and its code (4092 images a step there); biases and norms without decay and adaptation",
    ),
    "self-classifier-paper001": Recipe(
        SelfClassifierConfig(
            backbone="resnet18-cifar", epochs=100, batch_size=64, optimizer="lars", learning_rate=0.6, warmup=0.1,
            warmup_from=0.0625, final_rate=1e-3, weight_decay=1e-6, classes=(10,), mlp_layers=1, projection=128,
        ),
        "cifar10",
        "CIFAR-10 study of Self-Classifier: ResNet-18, one linear layer from 512 to 128, 10 classes, 64 images a step, "
        "SGD with LARS, cosine, 100 epochs; no learning rate, decay, warm-up or crops are printed: the rate is ours, "
        "the rest is the official code's",
    ),
    "autoencoder-paper004": Recipe(
        AutoencoderConfig(epochs=50, batch_size=128, dropout=0.1),
        "cifar10",
        "label-fraction study: convolutional autoencoder, RMSE, noise and flips, 128 images a step; it prints no "
        "architecture, optimiser, rate or number of epochs: those are ours",
    ),
    "supervised-cifar10": Recipe(
        SupervisedConfig(
            backbone="resnet18-cifar", epochs=200, batch_size=128, optimizer="sgd", learning_rate=0.1, warmup=0.025,
            weight_decay=5e-4,
        ),
        "cifar10",
        "the usual baseline: SGD 0.1, momentum 0.9, decay 5e-4, cosine, pad, crop and flip",
    ),
}  # fmt: skip
