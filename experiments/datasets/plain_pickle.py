"""Reader of pickles of plain values and arrays of numbers. It calls nothing that a pickle names.

A pickle is a program for a stack machine, and ``pickle.load`` calls whatever function the program asks for. The machine below has
the same instructions, but knows only the functions by which numpy rebuilds arrays, and replaces them by checks of its own.
"""

import math
import pickletools
import re
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

_NUMBER = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_MOST_AXES = 8
_CORES = ("numpy.core", "numpy._core")
"""The package of numpy's functions in numpy 1 and in numpy 2."""


class PlainPickleError(ValueError):
    """The pickle is damaged, or holds anything but dicts, lists, tuples, text, bytes, numbers and whole arrays of numbers."""

    def __init__(self, message: str):
        super().__init__(textwrap.shorten(message, 200))  # names in a damaged file may have any length


def load(content: bytes) -> Any:
    """Return the value in a pickle of any protocol. Byte strings of Python 2 become text, by latin1; of its protocol 0, only ASCII
    is read.

    Raises:
        PlainPickleError: the pickle is damaged or holds anything else.
    """
    try:
        return _with_arrays(_Machine().run(content), {})
    except PlainPickleError:
        raise
    except Exception as error:  # a damaged pickle can raise any error
        raise PlainPickleError(f"{type(error).__name__}: {error}") from error


def load_dict(content: bytes) -> dict[Any, Any]:
    """Return the dict in a pickle, as ``load``.

    Raises:
        PlainPickleError: the pickle is damaged or holds anything but a dict.
    """
    value = load(content)
    if not isinstance(value, dict):
        raise PlainPickleError("it is not a dict")
    return value


def _with_arrays(value: Any, done: dict[int, Any]) -> Any:
    """A value of the stack machine with its arrays as those of numpy; ``done`` has what was converted, by identity.

    Lists and dicts are changed in place, so that values that share parts keep sharing them.
    """
    if isinstance(value, _Global | _Dtype):
        raise PlainPickleError("it holds a function or a type")
    if isinstance(value, _Array):
        return value.values
    if not isinstance(value, list | dict | tuple) or id(value) in done:
        return done.get(id(value), value)
    done[id(value)] = value
    if isinstance(value, list):
        value[:] = [_with_arrays(part, done) for part in value]
    elif isinstance(value, dict):
        value.update({key: _with_arrays(part, done) for key, part in value.items()})
    else:
        done[id(value)] = tuple(_with_arrays(part, done) for part in value)
    return done[id(value)]


class _Global:
    """A function or class that the pickle names."""

    def __init__(self, module: str, name: str):
        self.call = _FUNCTIONS.get((module, name))
        if self.call is None:
            raise PlainPickleError(f"it uses {module}.{name}, which plain values and arrays do not need")


class _Dtype:
    """The type of an array's numbers. Its state, which follows in the pickle, has the byte order."""

    def __init__(self, name: Any, *_: Any):
        if not isinstance(name, str) or not _NUMBER.fullmatch(name):
            raise PlainPickleError(f"it has an array of {name!r}: only integers, floats and booleans are allowed")
        self.value = np.dtype(name)

    def build(self, state: Any) -> None:
        _, order, *fields = state
        if order not in ("<", ">", "|", "=") or any(field is not None for field in fields[:3]):
            raise PlainPickleError("it has an array of records: only numbers are allowed")
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array, empty until its state follows in the pickle."""

    def __init__(self, *_: Any):
        self.values: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.values = _values(content, dtype, shape, "F" if fortran else "C")


def _values(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    content = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise PlainPickleError("it has an array of objects: only numbers are allowed")
    sides = shape if isinstance(shape, tuple) else (shape,)
    plain = len(sides) <= _MOST_AXES and all(type(side) is int and 0 <= side < 2**63 for side in sides)
    if not plain or len(content) != math.prod(sides) * dtype.value.itemsize:
        raise PlainPickleError(f"it has an array of {len(content)} bytes that do not fill its shape")
    return np.frombuffer(content, dtype.value).reshape(sides, order=order)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, axis_order: None = None) -> _Array:
    array = _Array()
    array.values = _values(content, dtype, shape, order)
    return array


def _scalar(dtype: Any, content: Any) -> Any:
    return _values(content, dtype, (), "C").item()


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes in pickles of protocols 0 to 2 by Python 3."""
    if encoding != "latin1":
        raise PlainPickleError(f"it has text in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Empty bytes in pickles of protocols 0 to 2."""
    return b""


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,
    **{(f"{core}.multiarray", "_reconstruct"): _Array for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in _CORES},
}


class _Machine:
    """The stack machine of pickles. ``marks`` has the positions of the marks in the stack."""

    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for instruction, argument, _ in pickletools.genops(content):
            name = instruction.name
            if name == "STOP":
                return self.stack.pop()
            if name in _PUSHED:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _INSTRUCTIONS:
                _INSTRUCTIONS[name](self, argument)
            elif name not in _IGNORED:
                raise PlainPickleError(f"it has the instruction {name}, which plain values and arrays do not need")
        raise PlainPickleError("it has no end")

    def pop(self, count: int) -> list[Any]:
        """Remove the uppermost ``count`` values above the last mark."""
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise PlainPickleError("it takes more from its stack than there is")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, kind: type | tuple[type, ...] = object) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise PlainPickleError("it changes a value of another type than it says")
        return self.stack[-1]

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def remember(self, key: Any) -> None:
        self.memo[len(self.memo) if key is None else key] = self.top()

    def recall(self, key: Any) -> None:
        self.stack.append(self.memo[key])

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | bytes | int):
                raise PlainPickleError("it has a dict with keys that are neither text nor whole numbers")
            target[key] = value

    def make_dict(self, _: Any) -> None:
        values = self.pop_to_mark()
        self.stack.append({})
        self.set_items(values)

    def reduce(self, _: Any) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple) or function.call is None:
            raise PlainPickleError("it calls something else than a function")
        self.stack.append(function.call(*arguments))

    def build(self, _: Any) -> None:
        (state,) = self.pop(1)
        self.top((_Array, _Dtype)).build(state)


_IGNORED = {"PROTO", "FRAME"}
_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.pop(3))),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "DICT": _Machine.make_dict,
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "GLOBAL": lambda machine, name: machine.stack.append(_Global(*name.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.stack.append(_Global(*machine.pop(2))),
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
