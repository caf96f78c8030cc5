"""What the operators ask of their arguments: each check raises one line with the op, the rule and what came."""

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALF)

LARGEST = 1e30
"""Of temperatures and the like: these, their reciprocals and products with scores are numbers of float32."""

INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)

_AUTOCAST_DEVICES = frozenset(
    device for device in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia") if torch.amp.is_autocast_available(device)
)
"""Asked once: torch.compile of torch 2.11 cannot look into the question."""


def require_tensors(op: str, **tensors: Any) -> None:
    """Demand tensors: dense, of a floating-point dtype, all of one dtype and on one device.

    Raises:
        TypeError: no tensor, not dense, or a dtype that is not supported or differs from the first one's.
        ValueError: the device differs from the first one's.
    """
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_nested:
            raise TypeError(f"{op}: {name} must be a dense tensor, got layout {tensor.layout}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{op}: {name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")
    for name, tensor in tensors.items():
        if tensor.dtype != first.dtype:
            raise TypeError(f"{op}: {name} must have {first_name}'s dtype {first.dtype}, got {tensor.dtype}")
        if tensor.device != first.device:
            raise ValueError(
                f"{op}: {first_name} is on {first.device}, {name} is on {tensor.device}; both must be on one device"
            )


def require_same_matrices(op: str, form: str, **tensors: Tensor) -> None:
    """Demand matrices of one shape that are not empty; ``form`` names the shape, as "(N, D)".

    Raises:
        ValueError: another number of dimensions, differing shapes, or no entries.
    """
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    names = " and ".join(tensors)
    both = "both " if len(tensors) == 2 else ""
    if any(len(shape) != 2 for shape in shapes) or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"{op}: {names} must {both}be {form}, got {' and '.join(map(str, shapes))}")
    if shapes[0][0] == 0 or shapes[0][1] == 0:
        raise ValueError(f"{op}: {names} must not be empty, got {shapes[0]}")


def require_number(op: str, name: str, value: Any, *, positive: bool = True) -> float:
    """Demand a finite number, by default one from 1e-30 to 1e30, and return it as a float.

    Raises:
        TypeError: no number.
        ValueError: infinite, NaN, not positive, or out of what float32 and its reciprocals hold.
    """
    if not _is_number(value):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    # Not math.isfinite: torch.compile with dynamic numbers cannot look into it.
    if not float("-inf") < value < float("inf") or (positive and value <= 0):
        rule = "positive and finite" if positive else "finite"
        raise ValueError(f"{op}: {name} must be {rule}, got {value}")
    if not -LARGEST <= value <= LARGEST or (positive and value < 1 / LARGEST):
        rule = f"from {1 / LARGEST:g} to {LARGEST:g}" if positive else f"at most {LARGEST:g} in size"
        raise ValueError(f"{op}: {name} must be {rule}, got {str(value)[:40]}")
    return float(value)


def _is_number(value: Any) -> bool:
    """NumPy's numbers count, too; a truth value does not."""
    return not isinstance(value, bool) and isinstance(value, (int, float, numbers.Real))


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, numbers.Integral))


def require_count(op: str, name: str, value: Any, *, least: int = 0) -> int:
    """Demand a whole number of at least ``least``, below 2^63.

    Raises:
        TypeError: no whole number.
        ValueError: too small or too large.
    """
    if isinstance(value, bool) or not _is_whole(value):
        raise TypeError(f"{op}: {name} must be a whole number, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    if value >= 2**63:
        raise ValueError(f"{op}: {name} must be below 2^63, got {str(value)[:40]}")
    return int(value)


def under_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Convert half precision to float32 where autocast is on, as it does for PyTorch's own losses."""
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        return tensors  # for the checks to name
    device = tensors[0].device.type
    if device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
        return tuple(tensor.float() if tensor.dtype in HALF else tensor for tensor in tensors)
    return tensors


def in_full_precision(tensor: Tensor) -> Tensor:
    """Convert half precision to float32."""
    return tensor.float() if tensor.dtype in HALF else tensor


def problems(info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Cut tensors along the dimensions that ``torch.func.vmap`` maps: one tuple of arguments per problem."""
    columns = [
        (tensor,) * info.batch_size if dim is None else tensor.unbind(dim)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]
    return list(zip(*columns, strict=True))
