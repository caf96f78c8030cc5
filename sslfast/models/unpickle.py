"""Reading a pickle without running it: tensors and plain containers are rebuilt, other classes become placeholders.

A pickle is a program for a small stack machine, and three of its instructions call what the file names. Here they call
nothing but the functions of `sslfast.models.rebuilt`: a name that is not in its `KNOWN` is written down and replaced by
a `Dropped`, which has no behaviour. Neither constructors nor ``__reduce__``, ``__setstate__`` or module imports of the
file happen.
"""

import pickletools
from typing import Any, BinaryIO

from sslfast.models.rebuilt import KNOWN, Dropped, Kind, Known, Refused, Storage, as_key, as_set


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
        self._push({as_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def _frozenset(self, argument: Any) -> None:
        self._push(as_set(self._to_mark()))

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
                target[as_key(key)] = value

    def _additems(self, argument: Any) -> None:
        items = self._to_mark()
        if isinstance(self._stack[-1], set):
            self._stack[-1].update(map(as_key, items))

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
        if full in KNOWN:
            return KNOWN[full]
        return self._drop(full)

    def _drop(self, name: str) -> Dropped:
        # A hostile name stays one short printable line.
        name = "".join(letter if letter.isprintable() else "?" for letter in name[:120])
        if len(self.dropped) < 1000:
            self.dropped[name] = None
        return Dropped(name)

    def _call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, Known) and isinstance(arguments, tuple):
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
