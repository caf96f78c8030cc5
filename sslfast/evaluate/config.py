"""What can be chosen of the protocols; the command line and Python share these defaults."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ProbeConfig:
    """How a linear classifier is trained on frozen features, which are standardised by the training rows.

    Args:
        solver: sgd (Nesterov, cosine to zero with every step) or lbfgs (multinomial logistic regression).
        epochs: of SGD.
        batch_size: rows of a step of SGD.
        learning_rates: of SGD; the best on held-out training rows is taken.
        momentum: of SGD.
        weight_decay: of SGD, on weights and bias.
        epoch_rule: of SGD. last: the learning rate is chosen by the last epoch, and the classifier is trained once more
            on all training rows; best: learning rate and epoch are chosen, and that classifier is kept as it is.
        strengths: inverse strengths C of the L2 penalty of L-BFGS, in scikit-learn's scale; empty: 45 values from 1e-6
            to 1e5. The best on held-out training rows is taken and fitted once more on all of them.
        max_iterations: of L-BFGS.
        val_fraction: share of the training rows that is held out to choose by.
        seed: decides the held-out rows, first weights, order and views.
        dtype: of the products of SGD.
    """

    solver: Literal["sgd", "lbfgs"] = "sgd"
    epochs: int = 100
    batch_size: int = 256
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    momentum: float = 0.9
    weight_decay: float = 0.0
    epoch_rule: Literal["last", "best"] = "last"
    strengths: tuple[float, ...] = ()
    max_iterations: int = 300
    val_fraction: float = 0.1
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class NearestConfig:
    """How the nearest training rows vote.

    Args:
        numbers: values of k; each is a row of the table, and none is chosen.
        temperatures: T of the votes exp(cos / T) (Wu et al., 2018); each is a row.
        majority: let every neighbour have one vote, too.
    """

    numbers: tuple[int, ...] = (20, 200)
    temperatures: tuple[float, ...] = (0.07, 0.1)
    majority: bool = True


@dataclass(frozen=True)
class ClusterConfig:
    """How features are clustered by k-means; they are scaled to length one first.

    Args:
        clusters: how many; 0: as many as there are classes.
        restarts: k-means++ beginnings, of which the one with the smallest inertia is kept.
        max_iterations: of each.
        seed: decides the beginnings.
    """

    clusters: int = 0
    restarts: int = 3
    max_iterations: int = 100
    seed: int = 0


@dataclass(frozen=True)
class DenseConfig:
    """How a 1x1 head is trained on a frozen backbone's maps to tell the class of every pixel.

    Args:
        maps: names of the maps, of those that the backbone gives; empty: all.
        pyramid: put torchvision's feature pyramid (256 channels, trained) between the maps and the head.
        epochs: passes over the images; the last one counts.
        batch_size: images of a step.
        learning_rate: of AdamW, along a cosine to zero.
        weight_decay: of AdamW.
        seed: decides first weights and order, and the random backbone's weights.
    """

    maps: tuple[str, ...] = ()
    pyramid: bool = False
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    seed: int = 0
