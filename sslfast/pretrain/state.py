"""The state of a training in one safetensors file, so that a killed training goes on where it was."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sslfast.errors import SslfastError, first_line
from sslfast.files import writing
from sslfast.tensors import read_tensors

FORMAT = "sslfast-training-1"


def save_training_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    left_out: dict[int, str] | None = None,
) -> None:
    """Write the weights and the optimiser's moments, atomically.

    Args:
        path: of the file.
        model: every weight and buffer of it.
        optimizer: one whose state is tensors per parameter.
        step: the next step.
        seconds: that the training has taken.
        left_out: images that could not be decoded, by their index, with the reason.
    """
    tensors = {f"model.{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    position = {"step": step, "seconds": seconds, "left_out": list((left_out or {}).items())}
    with writing(path) as partial:
        save_file(tensors, partial, metadata={"format": FORMAT, "state": json.dumps(position)})


def load_training_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float, dict[int, str]]:
    """Read what `save_training_state` wrote into ``model`` and ``optimizer``; return step, seconds and ``left_out``.

    Raises:
        SslfastError: the file is damaged, or belongs to another model.
    """
    try:
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise SslfastError("it is not a training state of sslfast")
        model.load_state_dict(
            {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        )
    except (SslfastError, RuntimeError) as error:  # RuntimeError: weights that do not fit
        raise SslfastError(f"{path} cannot be read ({first_line(error)}); remove it to start again") from error
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:
                # The fused optimiser walks the moments in the weight's own memory format.
                value = torch.empty_like(parameter).copy_(value)
            moments.setdefault(int(index), {})[name] = value
    state = optimizer.state_dict()
    state["state"] = moments
    optimizer.load_state_dict(state)
    position = json.loads(metadata["state"])
    return position["step"], position["seconds"], dict(position.get("left_out", ()))
