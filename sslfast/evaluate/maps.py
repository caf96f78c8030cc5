"""The maps of a backbone, coarse and fine."""

from collections import OrderedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from sslfast.errors import UsageError
from sslfast.models import Backbone


def feature_maps(backbone: Backbone, x: Tensor) -> "OrderedDict[str, Tensor]":
    """Give the output of every stage (N, channels, H, W), from fine to coarse, of preprocessed images.

    Raises:
        UsageError: the backbone has no stages.
    """
    own = getattr(backbone, "feature_maps", None)
    if own is not None:
        found: OrderedDict[str, Tensor] = own(x)
        return found
    network = backbone.network
    stages = [name for name, _ in network.named_children() if name.startswith("layer")]
    if not stages or not hasattr(network, "conv1"):
        raise UsageError(f"a {backbone.architecture} gives no feature maps; take a residual network")
    x = F.relu(network.get_submodule("bn1")(network.get_submodule("conv1")(x)))
    if hasattr(network, "maxpool"):
        x = network.get_submodule("maxpool")(x)
    maps: OrderedDict[str, Tensor] = OrderedDict()
    for stage in stages:
        maps[stage] = x = network.get_submodule(stage)(x)
    return maps


def map_shapes(backbone: Backbone, size: int) -> "OrderedDict[str, tuple[int, int, int]]":
    """Give channels, height and width of every map for images of ``size`` pixels."""
    device = next(backbone.parameters()).device
    with torch.inference_mode():
        maps = feature_maps(backbone, torch.zeros(1, 3, size, size, device=device))
    return OrderedDict((name, (one.shape[1], one.shape[2], one.shape[3])) for name, one in maps.items())
