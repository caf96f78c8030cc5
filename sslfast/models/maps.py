"""The maps that a network makes on its way to the features, for dense tasks."""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from sslfast.errors import UsageError


def feature_maps(network: nn.Module, x: Tensor) -> "OrderedDict[str, Tensor]":
    """Run a network and give the last map of every resolution.

    Of a residual network these are the outputs of its stages (``layer1``, ...); of others the last output at each
    resolution among the children of ``features``, or of the network itself; of a timm model what its
    ``forward_intermediates`` gives (``stage1``, ...).

    Args:
        network: without its classifier.
        x: preprocessed images (N, 3, H, W).

    Returns:
        Maps (N, C, H', W') by name, from the finest to the coarsest.

    Raises:
        UsageError: the network makes no maps (a vision transformer of torchvision).
    """
    if hasattr(network, "forward_intermediates"):
        timm: Any = network
        given = timm.forward_intermediates(x, intermediates_only=True)
        return OrderedDict((f"stage{number}", one) for number, one in enumerate(given, start=1))
    stages = [name for name, _ in network.named_children() if name.startswith("layer") and name[5:].isdigit()]
    found: OrderedDict[str, Tensor] = OrderedDict()
    if stages:
        watched = [(name, network.get_submodule(name)) for name in stages]
    else:
        inner = getattr(network, "features", None)
        owner = inner if isinstance(inner, nn.Sequential) else network
        prefix = "features." if owner is inner else ""
        watched = [
            (prefix + name, child)
            for name, child in owner.named_children()
            if not isinstance(child, (nn.AdaptiveAvgPool2d, nn.Flatten))
        ]
    channels_last = type(network).__name__ == "SwinTransformer"

    def keep(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            found[name] = output.permute(0, 3, 1, 2) if channels_last else output

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, module in watched
    ]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not stages:
        last = {tuple(one.shape[2:]): name for name, one in found.items()}
        found = OrderedDict((name, one) for name, one in found.items() if last[tuple(one.shape[2:])] == name)
    if not found:
        raise UsageError(f"a {type(network).__name__} makes no feature maps; give a convolutional backbone")
    return found
