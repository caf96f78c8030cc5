"""What is rebuilt of a pickle: tensors, plain containers, a few names of PyTorch's; the rest are placeholders."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_DEPTH = 100
"""Containers inside containers; a checkpoint has about six."""


class Refused(Exception):
    """The bytes are no pickle of a checkpoint; the message says why."""


@dataclass(eq=False, slots=True)
class Dropped:
    """What stands where the file had an object of a class that is not rebuilt.

    Args:
        name: the class or function that the file names.
    """

    name: str


class Kind(NamedTuple):
    """What a storage holds."""

    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Storage:
    """The bytes of one or more tensors, by the key that the file knows them by."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor that is still to be cut out of its storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Known:
    """A function of this module that stands for a name of the file."""

    build: Callable[..., Any]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> "View | Dropped":
    if isinstance(storage, Dropped):
        return storage
    if not isinstance(storage, Storage):
        raise Refused("a tensor without a storage")
    return View(storage, *_integers(offset, size, stride), storage.dtype)


def _tensor_of_type(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, kind: Any, *_: Any
) -> View:
    if not (isinstance(storage, Storage) and isinstance(kind, Kind)):
        raise Refused("a tensor without a storage or a type")
    return View(storage, *_integers(offset, size, stride), kind.dtype)


def _integers(offset: Any, size: Any, stride: Any) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
        raise Refused("a tensor of an impossible shape")
    return offset, tuple(size), tuple(stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    # OrderedDict([[key, value], ...]) of the first pickles; defaultdict(factory) and Counter(mapping).
    for argument in arguments:
        if isinstance(argument, dict):
            return dict(argument)
        if isinstance(argument, (list, tuple)):
            filled: dict[Any, Any] = {}
            for pair in argument:
                key, value = pair
                filled[as_key(key)] = value
            return filled
    return {}


def _sequence(*arguments: Any) -> list[Any]:
    return list(arguments[0]) if arguments and isinstance(arguments[0], (list, tuple, set)) else []


def as_set(*arguments: Any) -> set[Any]:
    """Build a set of what may be hashed."""
    return {as_key(item) for item in _sequence(*arguments)}


_KINDS = {
    **{str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}

KNOWN: dict[str, Any] = {
    **{f"torch.{name}": Kind(dtype) for name, dtype in _KINDS.items()},
    **{f"torch.storage.{name}": Kind(dtype) for name, dtype in _KINDS.items()},
    **{f"torch.cuda.{name}": Kind(dtype) for name, dtype in _KINDS.items() if name.endswith("Storage")},
    "torch._utils._rebuild_tensor": Known(_tensor),
    "torch._utils._rebuild_tensor_v2": Known(_tensor),
    "torch._utils._rebuild_tensor_v3": Known(_tensor_of_type),
    "torch._utils._rebuild_parameter": Known(_parameter),
    "torch._utils._rebuild_parameter_with_state": Known(_parameter),
    "torch.nn.parameter.Parameter": Known(_parameter),
    "torch.Size": Known(lambda *arguments: tuple(_sequence(*arguments))),
    "torch.device": Known(lambda *arguments: str(arguments[0]) if arguments and type(arguments[0]) is str else None),
    "collections.OrderedDict": Known(_dictionary),
    "collections.defaultdict": Known(_dictionary),
    "collections.Counter": Known(_dictionary),
    **{f"{module}.dict": Known(_dictionary) for module in ("builtins", "__builtin__")},
    **{f"{module}.list": Known(_sequence) for module in ("builtins", "__builtin__")},
    **{f"{module}.tuple": Known(lambda *a: tuple(_sequence(*a))) for module in ("builtins", "__builtin__")},
    **{f"{module}.{name}": Known(as_set) for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
}

_PLAIN = (str, bytes, int, float, bool, type(None), Dropped)


def as_key(key: Any) -> Any:
    """Give what may be a key: hashing a tuple of tuples of tuples can take for ever."""
    if isinstance(key, _PLAIN) or (isinstance(key, tuple) and all(isinstance(item, _PLAIN) for item in key)):
        return key
    raise Refused(f"a {type(key).__name__} as a key")


def cut(view: View, storage: Tensor) -> Tensor:
    """Cut a tensor out of its storage, given as bytes (uint8).

    Raises:
        Refused: it reaches beyond the storage.
    """
    width = view.dtype.itemsize
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.size, view.stride, strict=True))
    if 0 in view.size:
        return torch.empty(0, dtype=view.dtype).expand(0).reshape(view.size)
    if (last + 1) * width > len(storage):
        raise Refused("a tensor beyond the end of its storage")
    whole = storage[: len(storage) // width * width].view(view.dtype)
    return whole.as_strided(view.size, view.stride, view.offset)


def resolve(value: Any, read: Callable[[Storage], Tensor]) -> Any:
    """Give ``value`` with its views replaced by tensors, in plain dictionaries, lists and tuples.

    Args:
        value: what `Machine.run` gave.
        read: gives the bytes of a storage (uint8).

    Raises:
        Refused: containers are nested too deeply, or a tensor does not fit its storage.
    """
    done: dict[int, Any] = {}

    def walk(one: Any, depth: int) -> Any:
        if isinstance(one, View):
            return cut(one, read(one.storage))
        if not isinstance(one, (dict, list, tuple)):
            return one
        if id(one) in done:
            return done[id(one)]
        if depth > MAX_DEPTH:
            raise Refused(f"containers nested more than {MAX_DEPTH} deep")
        result: Any
        if isinstance(one, dict):
            result = done[id(one)] = {}
            for key, item in one.items():
                result[key] = walk(item, depth + 1)
        elif isinstance(one, list):
            result = done[id(one)] = []
            result.extend(walk(item, depth + 1) for item in one)
        else:
            result = done[id(one)] = tuple(walk(item, depth + 1) for item in one)
        return result

    return walk(value, 0)
