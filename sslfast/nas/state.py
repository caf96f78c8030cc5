"""The state of a search in one safetensors file, so that a killed search goes on where it was.

Everything random is a function of seed, stage and step: the stage and the step are the state of every generator and the
position of both loaders.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sslfast.errors import SslfastError, first_line
from sslfast.files import writing
from sslfast.nas.stage import Primitives, Stage
from sslfast.tensors import read_tensors

FORMAT = "sslfast-search-1"


@dataclass(frozen=True)
class Position:
    """Where a search is.

    Attributes:
        stage: from 0 on.
        step: of the stage, that comes next.
        seconds: that the search has taken.
        normal: primitives of the stage's normal cells.
        reduce: primitives of its reduction cells.
    """

    stage: int
    step: int
    seconds: float
    normal: Primitives
    reduce: Primitives


def save_search_state(path: Path, stage: Stage, step: int, seconds: float) -> None:
    """Write weights, architecture and both optimisers' moments, atomically.

    Args:
        path: of the file.
        stage: that is under way.
        step: of the stage, that comes next.
        seconds: that the search has taken.
    """
    tensors = {f"model.{name}": value for name, value in stage.objective.state_dict().items()}
    tensors |= {f"architecture.{name}": value for name, value in stage.network.architecture().items()}
    for kind, optimizer in _optimizers(stage).items():
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"{kind}.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    position = {
        "stage": stage.number,
        "step": step,
        "seconds": seconds,
        "normal": stage.network.primitives_normal,
        "reduce": stage.network.primitives_reduce,
    }
    with writing(path) as partial:
        save_file(
            # A copy of each: safetensors refuses tensors that share memory.
            {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()},
            partial,
            metadata={"format": FORMAT, "position": json.dumps(position)},
        )


def read_position(path: Path) -> Position:
    """Read where a search was.

    Raises:
        SslfastError: the file is damaged, or is no search's state.
    """
    return _read(path)[0]


def load_search_state(path: Path, stage: Stage) -> Position:
    """Read what `save_search_state` wrote into ``stage``.

    Raises:
        SslfastError: the file is damaged, is no search's state, or is of another stage or another supernet.
    """
    position, tensors = _read(path)
    network = stage.network
    if (position.stage, position.normal, position.reduce) != (
        stage.number,
        network.primitives_normal,
        network.primitives_reduce,
    ):
        raise SslfastError(
            f"{path} is of stage {position.stage + 1} with {len(position.normal[0])} operations an edge, not of stage "
            f"{stage.number + 1} with {len(network.primitives_normal[0])}; build that stage with the file's primitives"
        )
    try:
        stage.objective.load_state_dict(_below("model.", tensors))
        architecture = _below("architecture.", tensors)
        with torch.no_grad():
            for name, leaf in network.architecture().items():
                leaf.copy_(architecture[name])
        for kind, optimizer in _optimizers(stage).items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(f"{kind}.", tensors).items():
                index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
            state = optimizer.state_dict()
            state["state"] = moments
            optimizer.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError) as error:  # tensors that do not fit
        raise SslfastError(
            f"{path} does not fit this supernet ({first_line(error)}); remove it to start again"
        ) from error
    return position


def _optimizers(stage: Stage) -> dict[str, torch.optim.Optimizer]:
    return {"weights_optimizer": stage.optimizer, "architecture_optimizer": stage.architect.optimizer}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _read(path: Path) -> tuple[Position, dict[str, Tensor]]:
    try:
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise SslfastError("it is not the state of a search")
        found: dict[str, Any] = json.loads(metadata["position"])
        for name in ("normal", "reduce"):
            found[name] = tuple(tuple(names) for names in found[name])
        return Position(**found), tensors
    except (SslfastError, KeyError, TypeError, ValueError) as error:
        raise SslfastError(f"{path} cannot be read ({first_line(error)}); remove it to start again") from error
