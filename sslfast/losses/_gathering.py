"""What all losses do with their arguments: numbers in any wrapping, and what ``gather_distributed=True`` means."""

from typing import Any

import numpy as np
import torch
from torch import distributed


def plain_number(value: Any) -> Any:
    """Take a tensor or array without dimensions that nobody learns for the number it holds; leave the rest as it is."""
    learned = isinstance(value, torch.Tensor) and value.requires_grad
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 0 and not learned:
        return value.item()
    return value


def require_distributed(loss: str, flag: str, wanted: bool) -> None:
    """Demand a torch with distributed support where a loss was asked to gather.

    Raises:
        ValueError: ``wanted``, and torch was built without it.
    """
    if wanted and not distributed.is_available():
        raise ValueError(f"{loss}: {flag}=True needs a torch with torch.distributed, got one without")


def gathering_group(wanted: bool) -> Any:
    """Return the process group over which to gather: None where nothing was asked for or one process is alone.

    The group is looked up at every call, as lightly does: a loss may be built before the group is.
    """
    if not wanted or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.group.WORLD if distributed.get_world_size() > 1 else None
