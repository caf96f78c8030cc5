"""Reading other people's checkpoints without running anything that is in them."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslfast.errors import SslfastError, first_line

CONTAINERS = ("state_dict", "model")
PREFIXES = ("module.", "backbone.", "encoder.")


def read_foreign_state(path: Path) -> dict[str, Tensor]:
    """Read the weights in a PyTorch file, by names without the wrappers' prefixes.

    Only tensors and plain containers are rebuilt (``weights_only=True``); a file that wants more is refused.

    Raises:
        SslfastError: the file is missing, holds no weights, or wants code to be run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders about pickle protocols; what matters is whether it loads
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise SslfastError(f"there is no checkpoint {path}") from error
    except pickle.UnpicklingError as error:
        raise SslfastError(
            f"{path} is refused: it is no plain PyTorch checkpoint, or it wants to run code when it is loaded; "
            "ask its author for a safetensors file or a plain state dict"
        ) from error
    except Exception as error:  # truncated archives and the like raise RuntimeError, EOFError, ValueError
        raise SslfastError(f"{path} is not a readable PyTorch checkpoint: {first_line(error)}") from error
    for key in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise SslfastError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise SslfastError(f"{path} holds no weights; its keys are {', '.join(map(str, list(content)[:5]))}")
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            # A projector beside the backbone keeps its own name and is reported as unexpected.
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
