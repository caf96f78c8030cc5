"""Reading a pickle without running it: tensors and plain containers are rebuilt, other classes become placeholders.

A pickle is a program for a small stack machine, and three of its instructions call what the file names. Here they call
nothing but the functions of this module: a name that is not in `_KNOWN` is written down and replaced by a `Dropped`,
which has no behaviour. Neither constructors nor ``__reduce__``, ``__setstate__`` or module imports of the file happen.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

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
class _Known:
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
                filled[_key(key)] = value
            return filled
    return {}


def _sequence(*arguments: Any) -> list[Any]:
    return list(arguments[0]) if arguments and isinstance(arguments[0], (list, tuple, set)) else []


def _set(*arguments: Any) -> set[Any]:
    return {_key(item) for item in _sequence(*arguments)}


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

_KNOWN: dict[str, Any] = {
    **{f"torch.{name}": Kind(dtype) for name, dtype in _KINDS.items()},
    **{f"torch.storage.{name}": Kind(dtype) for name, dtype in _KINDS.items()},
    **{f"torch.cuda.{name}": Kind(dtype) for name, dtype in _KINDS.items() if name.endswith("Storage")},
    "torch._utils._rebuild_tensor": _Known(_tensor),
    "torch._utils._rebuild_tensor_v2": _Known(_tensor),
    "torch._utils._rebuild_tensor_v3": _Known(_tensor_of_type),
    "torch._utils._rebuild_parameter": _Known(_parameter),
    "torch._utils._rebuild_parameter_with_state": _Known(_parameter),
    "torch.nn.parameter.Parameter": _Known(_parameter),
    "torch.Size": _Known(lambda *arguments: tuple(_sequence(*arguments))),
    "torch.device": _Known(lambda *arguments: str(arguments[0]) if arguments and type(arguments[0]) is str else None),
    "collections.OrderedDict": _Known(_dictionary),
    "collections.defaultdict": _Known(_dictionary),
    "collections.Counter": _Known(_dictionary),
    **{f"{module}.dict": _Known(_dictionary) for module in ("builtins", "__builtin__")},
    **{f"{module}.list": _Known(_sequence) for module in ("builtins", "__builtin__")},
    **{f"{module}.tuple": _Known(lambda *a: tuple(_sequence(*a))) for module in ("builtins", "__builtin__")},
    **{f"{module}.{name}": _Known(_set) for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
}

_PLAIN = (str, bytes, int, float, bool, type(None), Dropped)


def _key(key: Any) -> Any:
    """Give what may be a key: hashing a tuple of tuples of tuples can take for ever."""
    if isinstance(key, _PLAIN) or (isinstance(key, tuple) and all(isinstance(item, _PLAIN) for item in key)):
        return key
    raise Refused(f"a {type(key).__name__} as a key")


class Machine:
    """The stack machine; one for all the pickles of a file, whose storages and dropped names it collects.

    Attributes:
        dropped: names of classes and functions that were not rebuilt, in the order in which the file names them.
        storages: every storage that the file names, by key; also those inside objects that were dropped.
    """

    def __init__(self) -> None:
        self.dropped: dict[str, None] = {}
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        """Read one pickle and leave the stream behind it.

        Raises:
            Refused: it is none, or asks for what no checkpoint asks for.
        """
        self._stack, self._marks, self._memo = [], [], {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    return self._stack.pop()
                getattr(self, f"_{opcode.name.lower()}", self._unknown)(argument)
        except Refused:
            raise
        except Exception as error:  # an empty stack, a missing memo entry, bytes that end too early
            raise Refused(f"no pickle that can be read ({type(error).__name__})") from error
        raise Refused("a pickle without an end")

    def _unknown(self, argument: Any) -> None:
        raise Refused("an instruction that no checkpoint has")

    def _skip(self, argument: Any) -> None:
        """Do nothing: protocol numbers and frames."""

    def _push(self, argument: Any) -> None:
        self._stack.append(argument)

    _proto = _frame = _skip
    _int = _binint = _binint1 = _binint2 = _long = _long1 = _long4 = _float = _binfloat = _push
    _string = _binstring = _short_binstring = _unicode = _binunicode = _short_binunicode = _binunicode8 = _push
    _binbytes = _short_binbytes = _binbytes8 = _bytearray8 = _push

    def _none(self, argument: Any) -> None:
        self._push(None)

    def _newtrue(self, argument: Any) -> None:
        self._push(True)

    def _newfalse(self, argument: Any) -> None:
        self._push(False)

    def _empty_list(self, argument: Any) -> None:
        self._push([])

    def _empty_tuple(self, argument: Any) -> None:
        self._push(())

    def _empty_dict(self, argument: Any) -> None:
        self._push({})

    def _empty_set(self, argument: Any) -> None:
        self._push(set())

    def _mark(self, argument: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _pop(self, argument: Any) -> None:
        # A mark that nothing was put on is what is popped.
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _pop_mark(self, argument: Any) -> None:
        self._to_mark()

    def _dup(self, argument: Any) -> None:
        self._push(self._stack[-1])

    def _list(self, argument: Any) -> None:
        self._push(self._to_mark())

    def _tuple(self, argument: Any) -> None:
        self._push(tuple(self._to_mark()))

    def _dict(self, argument: Any) -> None:
        items = self._to_mark()
        self._push({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def _frozenset(self, argument: Any) -> None:
        self._push(_set(self._to_mark()))

    def _tuples(self, count: int) -> None:
        items = self._stack[-count:]
        if len(items) < count:
            raise Refused("a tuple of nothing")
        self._stack[-count:] = [tuple(items)]

    def _tuple1(self, argument: Any) -> None:
        self._tuples(1)

    def _tuple2(self, argument: Any) -> None:
        self._tuples(2)

    def _tuple3(self, argument: Any) -> None:
        self._tuples(3)

    def _append(self, argument: Any) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, argument: Any) -> None:
        self._extend(self._to_mark())

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def _setitem(self, argument: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._fill([key, value])

    def _setitems(self, argument: Any) -> None:
        self._fill(self._to_mark())

    def _fill(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key)] = value

    def _additems(self, argument: Any) -> None:
        items = self._to_mark()
        if isinstance(self._stack[-1], set):
            self._stack[-1].update(map(_key, items))

    def _binput(self, argument: Any) -> None:
        self._memo[argument] = self._stack[-1]

    _put = _long_binput = _binput

    def _memoize(self, argument: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _binget(self, argument: Any) -> None:
        self._push(self._memo[argument])

    _get = _long_binget = _binget

    def _global(self, argument: Any) -> None:
        self._push(self._named(*argument.split(" ", 1)))

    def _stack_global(self, argument: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push(self._named(module, name))

    def _named(self, module: Any, name: Any) -> Any:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused("a class without a name")
        full = f"{module}.{name}"
        if full in _KNOWN:
            return _KNOWN[full]
        return self._drop(full)

    def _drop(self, name: str) -> Dropped:
        # A hostile name stays one short printable line.
        name = "".join(letter if letter.isprintable() else "?" for letter in name[:120])
        if len(self.dropped) < 1000:
            self.dropped[name] = None
        return Dropped(name)

    def _call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, _Known) and isinstance(arguments, tuple):
            self._push(function.build(*arguments))
        else:
            name = function.name if isinstance(function, Dropped) else type(function).__name__
            self._push(Dropped(name))

    def _reduce(self, argument: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._call(function, arguments)

    _newobj = _reduce

    def _newobj_ex(self, argument: Any) -> None:
        self._stack.pop()
        self._reduce(argument)

    def _inst(self, argument: Any) -> None:
        arguments = tuple(self._to_mark())
        self._call(self._named(*argument.split(" ", 1)), arguments)

    def _obj(self, argument: Any) -> None:
        function, *arguments = self._to_mark()
        self._call(function, tuple(arguments))

    def _build(self, argument: Any) -> None:
        # The state of an object; what is rebuilt here has none that matters (an OrderedDict's `_metadata`).
        self._stack.pop()

    def _ext1(self, argument: Any) -> None:
        self._push(self._drop("an entry of the extension registry"))

    _ext2 = _ext4 = _ext1

    def _binpersid(self, argument: Any) -> None:
        identity = self._stack.pop()
        if not (isinstance(identity, tuple) and identity):
            raise Refused("a storage without a key")
        if identity[0] == "module":  # a whole module with its source code
            self._push(identity[1] if len(identity) > 1 and isinstance(identity[1], Dropped) else Dropped("a module"))
            return
        if identity[0] != "storage" or len(identity) < 5:
            raise Refused("a storage without a key")
        kind, key, count = identity[1], identity[2], identity[4]
        if not (isinstance(kind, Kind) and isinstance(key, (str, int)) and type(count) is int and 0 <= count < 1 << 62):
            raise Refused("a storage of no known type")
        if len(identity) > 5 and identity[5] is not None:
            raise Refused("a storage that is a part of another one")
        storage = Storage(kind.dtype, str(key), count)
        self.storages.setdefault(storage.key, storage)
        self._push(storage)


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
