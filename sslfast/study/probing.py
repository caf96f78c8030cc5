"""The linear probe of the Self-Classifier study: one fully connected layer on frozen features, over epochs."""

from pathlib import Path
from typing import Any

from sslfast.evaluate import ProbeConfig, linear_probe
from sslfast.features import extract
from sslfast.models import Backbone
from sslfast.study.config import SelfClassifierStudyConfig
from sslfast.study.images import StudyImages


def probed(
    backbone: Backbone,
    images: StudyImages,
    folder: Path,
    config: SelfClassifierStudyConfig,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Extract the features of both splits and probe them.

    The learning rate is chosen on held-out training rows, the weights are those after the last epoch, the test rows are
    scored once; the curve is that of the choice. The paper's own probe is SGD with LARS and sees augmented images.

    Args:
        backbone: frozen, in evaluation mode.
        images: of the study.
        folder: of the two feature stores.
        config: of the study.
        seed: of the probe.
        device: auto, cpu or cuda.
    """
    train = extract(backbone, images.train, folder / "train", device=device)
    test = extract(backbone, images.test, folder / "test", device=device)
    score = linear_probe(
        train,
        test,
        ProbeConfig(
            epochs=config.probe_epochs,
            batch_size=config.probe_batch_size,
            val_fraction=config.val_fraction,
            seed=seed,
        ),
    )
    return {
        "test_accuracy": score.accuracy,
        "val_accuracy": score.probe.validation_accuracy,
        "detail": f"{score.probe.name}, {score.probe.detail}, {score.probe.epoch_rule}",
        "curve": list(score.probe.curve),
    }
