"""The autoencoder: images are rebuilt from their code; what it is trained on has no labels."""

from collections.abc import Sequence

from torch import Tensor, nn

from sslfast.models import Backbone
from sslfast.models.autoencoder import Decoder, Encoder
from sslfast.ops._arguments import in_full_precision
from sslfast.ops._distributed import mean_over_ranks
from sslfast.pretrain.config import AutoencoderConfig
from sslfast.pretrain.method import Method


class Autoencoder(Method):
    r"""A convolutional autoencoder with the root mean squared error :math:`\sqrt{\operatorname{mean} (y - x)^2}`.

    The first view (noisy, say) is encoded, the second one is what must come out. The loss is in units of pixel values
    in [0, 1], of the whole batch or the mean over its images' own.
    """

    def __init__(
        self, backbone: Backbone, config: AutoencoderConfig, views: tuple[int, ...] = (2,), classes: int = 0
    ) -> None:
        super().__init__(backbone, config, views, classes)
        assert isinstance(self.network, Encoder)
        self.dropout = nn.Dropout2d(config.dropout)
        self.decoder = Decoder(self.network.widths)
        self.of_batch = config.rmse == "batch"

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Rebuild the first views; give them and the second ones, (B, 3, s, s) each."""
        seen, wanted = views[0].chunk(2)
        return self.rebuild(self.normalised(seen)), wanted

    def loss(self, outputs: tuple[Tensor, Tensor], labels: Tensor | None) -> Tensor:
        """Give the root mean squared error."""
        rebuilt, wanted = outputs
        errors = (in_full_precision(rebuilt) - wanted).square().mean(dim=(1, 2, 3))
        # The root's slope at 0 is infinite: an image that is rebuilt exactly must not make it NaN.
        if self.of_batch:
            return (self._mean(errors) + 1e-12).sqrt()
        return self._mean((errors + 1e-12).sqrt())

    def rebuild(self, images: Tensor) -> Tensor:
        """Map preprocessed images (N, 3, s, s) to what the decoder makes of their code, likewise, in [0, 1]."""
        code = self.dropout(self.network.maps(images))  # type: ignore[operator]
        rebuilt: Tensor = self.decoder(code, (images.shape[2], images.shape[3]))
        return rebuilt

    def _mean(self, values: Tensor) -> Tensor:
        return values.mean() if self.ranks.group is None else mean_over_ranks(values, self.ranks.group)
