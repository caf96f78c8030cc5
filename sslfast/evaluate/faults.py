"""What was done wrong in a published comparison, as switches: to see what each costs, never to be used otherwise."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from sslfast.models import Preprocess
from sslfast.models.backbone import IMAGENET_MEAN, IMAGENET_STD

RESIZED_TO = 232 / 224
"""Side that torchvision's newer weights resize to, as a share of the side that they crop."""


@dataclass(frozen=True)
class CroppedPreprocess(Preprocess):
    """The input of torchvision's newer ImageNet weights: the shorter side to 232/224 of the size, then its centre."""

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (N, H, W, 3), uint8, to the network's input (N, 3, size, size), float32."""
        x = images.permute(0, 3, 1, 2).float()
        scale = round(self.size * RESIZED_TO) / min(x.shape[2:])
        height, width = (max(self.size, round(scale * side)) for side in x.shape[2:])
        x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return self.normalise(x[:, :, top : top + self.size, left : left + self.size] / 255)


@dataclass(frozen=True)
class Faults:
    """Switches of `sslfast.evaluate.finetune`; all off, nothing is wrong.

    Args:
        random_layer: width of a linear layer with random weights between backbone and head, or None; it learns where
            the backbone learns, and is frozen with it.
        wrong_input: side in pixels of an input that is resized, cropped and normalised as torchvision's ImageNet
            weights want it, whatever the backbone was trained with; None: the backbone's own.
        swapped_splits: the caller hands the test images over as validation images, so that the learning rate and the
            epoch are chosen on them, and scores on images held out of train.
        training_mode_at_test: validation and test run in training mode: dropout is on, batch normalisation takes the
            statistics of the batch, and the running ones move with every image that is only to be judged.
        frozen_batch_norm_learns: the frozen backbone runs in training mode while the head learns.
    """

    random_layer: int | None = None
    wrong_input: int | None = None
    swapped_splits: bool = False
    training_mode_at_test: bool = False
    frozen_batch_norm_learns: bool = False

    def preprocess(self, right: Preprocess) -> Preprocess:
        """Give the preprocessing that is used in place of the right one."""
        if self.wrong_input is None:
            return right
        return CroppedPreprocess(self.wrong_input, IMAGENET_MEAN, IMAGENET_STD)


NO_FAULTS = Faults()
