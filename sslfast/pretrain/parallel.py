"""Several processes that train one model: who this one is, and batch statistics over all of them.

Started by ``torchrun`` (or by anything else that makes a process group), every process takes its rows of each batch.
The losses are those of the whole batch (``group=``), so the mean of the gradients that ``DistributedDataParallel``
takes is the gradient of one process with all rows.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sslfast.errors import UsageError
from sslfast.ops._distributed import sum_over_ranks


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Args:
        rank: its number.
        world: how many there are.
        group: of torch.distributed; None where a process is alone.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    def agree(self, value: Any) -> Any:
        """Give rank 0's ``value`` to everybody."""
        if self.group is None:
            return value
        holder = [value]
        distributed.broadcast_object_list(holder, src=0, group=self.group)
        return holder[0]

    def gathered(self, value: Any) -> list[Any]:
        """Give everybody's ``value`` to everybody, in the order of ranks."""
        if self.group is None:
            return [value]
        found = [None] * self.world
        distributed.all_gather_object(found, value, group=self.group)
        return found

    def wait(self) -> None:
        """Go on when everybody is here."""
        if self.group is not None:
            distributed.barrier(group=self.group)

    def rows(self, count: int, parts: int) -> list[NDArray[np.int64]]:
        """List this process's rows of a batch of ``count``, part by part: every part is shared out."""
        split = np.array_split(np.arange(count), parts)
        return [np.array_split(part, self.world)[self.rank] for part in split]


def joined() -> Ranks:
    """Describe the process group that is there, or a process alone."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return Ranks()
    return Ranks(distributed.get_rank(), distributed.get_world_size(), distributed.group.WORLD)


@contextmanager
def torchrun(device: str) -> Iterator[str]:
    """Join the processes that ``torchrun`` started, and give the device of this one; alone, do nothing.

    Args:
        device: auto, cpu or cuda; with several processes, each takes the GPU of its local rank.

    Raises:
        UsageError: one GPU is named for several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield device
        return
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device} is one GPU, torchrun started several processes; use --device cuda")
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


class Follower:
    """What `sslfast.run.Run` is to every process but the first: it knows the folder and writes nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def metric(self, **values: Any) -> None:
        """Write nothing."""

    def keep_metrics(self, wanted: Any) -> None:
        """Drop nothing."""

    def log(self, text: str) -> None:
        """Write nothing."""


def synchronised(module: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Make every batch normalisation of ``module`` take its statistics over all processes.

    On a GPU this is `torch.nn.SyncBatchNorm`, which does not exist for the CPU; there it is `GroupBatchNorm`.
    """
    if ranks.group is None:
        return module
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, GroupBatchNorm.of(child))
        else:
            synchronised(child, ranks, device)
    return module


class GroupBatchNorm(_BatchNorm):
    """Batch normalisation with the statistics of all processes' rows, over any backend; by autograd, for the CPU."""

    @classmethod
    def of(cls, module: _BatchNorm) -> "GroupBatchNorm":
        """Take over a module's weights and statistics."""
        made = cls(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        made._parameters, made._buffers = module._parameters, module._buffers
        made.training = module.training
        return made

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch normalisation takes (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, ...) to the same shape and dtype."""
        self._check_input_dim(input)
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        dims = [0, *range(2, x.dim())]
        counted = torch.cat([x.sum(dims), x.new_tensor([x.numel() / x.shape[1]])])
        together = _sum_over_ranks(counted)
        total = together[-1].detach()
        mean = together[:-1] / total
        shape = [1, -1, *[1] * (x.dim() - 2)]
        centred = x - mean.view(shape)
        variance = _sum_over_ranks(centred.square().sum(dims)) / total
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None and self.momentum is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (total / (total - 1).clamp(min=1)), self.momentum)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        y = centred * scale.view(shape)
        return (y + self.bias.view(shape) if self.affine else y).to(input.dtype)


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    result: Tensor = _SumOverRanks.apply(tensor)  # type: ignore[no-untyped-call]
    return result


class _SumOverRanks(torch.autograd.Function):
    """The sum of all processes' tensors; every process's gradient flows into every process's tensor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor, None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return sum_over_ranks(grad, None)
