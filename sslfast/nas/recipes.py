"""Papers' searches by name: ``sslfast nas search --recipe NAME``."""

from dataclasses import dataclass, replace

from sslfast.nas.config import SearchConfig


@dataclass(frozen=True)
class Recipe:
    """A search's options, and whose they are.

    Args:
        config: the options.
        data: what it was made for.
        source: where the settings were published; what is not theirs is said.
    """

    config: SearchConfig
    data: str
    source: str


_SINGLE = SearchConfig(s=0.0, cells=(8,), operations=(8,), skip_dropout=(0.0,), most_skips=-1, alpha_clip=0.0)

RECIPES: dict[str, Recipe] = {
    "darts": Recipe(
        replace(
            _SINGLE, partial=1, edge_normalisation=False, epochs=50, alpha_from=0, batch_size=64, final_rate=1e-3,
            alpha_rate=3e-4,
        ),
        "cifar10",
        "Liu et al. 2019, first order: 8 cells, 16 channels, 50 epochs, SGD 0.025 to 0.001, Adam 3e-4",
    ),
    "darts-second-order": Recipe(
        replace(
            _SINGLE, partial=1, edge_normalisation=False, epochs=50, alpha_from=0, batch_size=64, final_rate=1e-3,
            alpha_rate=3e-4, unrolled=True,
        ),
        "cifar10",
        "Liu et al. 2019, second order",
    ),
    "pc-darts": Recipe(
        replace(_SINGLE, epochs=50, alpha_from=15, batch_size=256, learning_rate=0.1),
        "cifar10",
        "Xu et al. 2020: K = 4, edge normalisation, 50 epochs, alphas from epoch 15, SGD 0.1 to 0, Adam 6e-4",
    ),
    "p-darts": Recipe(
        SearchConfig(s=0.0, partial=1, edge_normalisation=False),
        "cifar10",
        "Chen et al. 2019: 5, 11 and 17 cells of 8, 5 and 3 operations, 25 epochs each, alphas from epoch 10, dropout "
        "0, 0.4 and 0.7 on skips, at most 2 skips",
    ),
    "paper002": Recipe(
        SearchConfig(s=1.0, epochs=40, alpha_from=10, alpha_until=25, batch_size=128),
        "cifar10",
        "self-supervised search, stage 4: P-DARTS's stages of PC-DARTS's edges, weights for 40 epochs, alphas in "
        "[10, 25], SGD 0.025 with a cosine, Adam 6e-4, 128 images a step. Which optimiser trains what is printed the "
        "other way round; lambda, the projector and the dropout are ours",
    ),
    "paper002-single": Recipe(
        replace(_SINGLE, s=1.0, epochs=40, alpha_from=16, batch_size=128),
        "cifar10",
        "self-supervised search, stage 2: PC-DARTS's edges, 8 cells, 40 epochs, alphas in [16, 40]; gaps as above",
    ),
}  # fmt: skip
