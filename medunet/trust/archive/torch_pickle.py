"""What ``torch.save`` wrote about tensors, read without running it: a machine that knows nothing else.

A pickle is a program. This one follows the few instructions and the four functions that a saved dictionary of tensors
consists of, builds descriptions instead of tensors, imports nothing, and refuses everything else by name.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medunet.errors import UnsafeError

TYPES = {
    "DoubleStorage": ("F64", 8), "FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1),
}  # fmt: skip
"""torch's storages: the name of their type in safetensors, and bytes per number."""

SIZES = dict(TYPES.values())
"""Bytes per number, by the name of the type."""

_DICT, _TENSOR, _PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_FUNCTIONS = {_DICT, _TENSOR, _PARAMETER, *(f"torch {name}" for name in TYPES)}
_MOST_STEPS = 5_000_000
_MOST_AXES = 64


@dataclass(frozen=True)
class Storage:
    """Numbers in a row, kept in the archive under `key`."""

    dtype: str
    key: str
    device: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a view of a storage; `strides` and `offset` in numbers, not bytes."""

    storage: Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def contiguous(self) -> bool:
        """Whether its numbers stand in order and without gaps."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected and math.prod(self.shape) > 0:
                return False
            expected *= size
        return True


class _Function(str):
    """A function or type that was named, not imported."""


class _Mark:
    """Where a group on the stack begins."""


def read_state(data: bytes) -> dict[str, StoredTensor]:
    """The tensors by their names that a ``data.pkl`` describes.

    Raises:
        UnsafeError: it is anything but a dictionary of tensors, or would run code.
    """
    try:
        state = _Machine().run(data)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UnsafeError(f"is not what torch.save writes ({error}); get the file again") from error
    if not isinstance(state, dict) or not state:
        raise UnsafeError("holds no state dict; save network.state_dict() alone")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise UnsafeError(
                f"is a checkpoint, not a plain state dict ({name!r} is no tensor); save network.state_dict() alone"
            )
    return state


class _Machine:
    """The stack and the memo of a pickle of protocol 2."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Follow the instructions to the last."""
        for step, (instruction, argument, place) in enumerate(pickletools.genops(data)):
            position = int(place or 0)
            act = _ACTS.get(instruction.name)
            if act is None or step > _MOST_STEPS:
                raise UnsafeError(
                    f"holds the instruction {instruction.name} at byte {position}, which no state dict needs; refuse it"
                )
            act(self, argument)
            if instruction.name == "STOP":
                if position + 1 != len(data) or len(self.stack) != 1:
                    raise UnsafeError("does not end where its instructions end; refuse it")
                return self.stack[0]
        raise UnsafeError("ends before its last instruction; get the file again")

    def group(self) -> list[Any]:
        """What lies above the last mark."""
        place = len(self.stack) - 1
        while self.stack[place] is not _Mark:
            place -= 1
            if place < 0:
                raise ValueError("ends a group that was not begun")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def top(self, count: int) -> list[Any]:
        """The last `count` values."""
        if count > len(self.stack):
            raise ValueError("takes from an empty stack")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def set_items(self, pairs: list[Any]) -> None:
        """Put keys and values into the dictionary below."""
        target = self.stack[-1]
        if type(target) is not dict or len(pairs) % 2:
            raise ValueError("sets an item of what is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, int)) or isinstance(key, _Function) or key in target:
                raise ValueError("has a key that is no text, or stands twice")
            target[key] = value

    def name(self, text: str) -> None:
        """Take a function by its name."""
        if text not in _FUNCTIONS:
            raise UnsafeError(f"would run {text.replace(' ', '.')}, which no state dict needs; do not load it")
        self.stack.append(_Function(text))

    def call(self) -> None:
        """Do what the three functions would."""
        function, arguments = self.top(2)
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise ValueError("calls what is no function")
        if function == _DICT and arguments == ():
            self.stack.append({})
        elif function == _TENSOR:
            self.stack.append(_tensor(*arguments))
        elif function == _PARAMETER and len(arguments) == 3 and isinstance(arguments[0], StoredTensor):
            self.stack.append(arguments[0])
        else:
            raise ValueError(f"calls {function} with what it does not take")

    def build(self) -> None:
        """The attribute that ``state_dict`` hangs on its dictionary: versions of layers, which nothing here needs."""
        target, state = self.top(2)
        if type(target) is not dict or type(state) is not dict or set(state) != {"_metadata"}:
            raise UnsafeError("sets attributes beside _metadata; save network.state_dict() alone")
        self.stack.append(target)

    def storage(self) -> None:
        """The description of a storage."""
        kind, function, key, device, count = self.top(1)[0]
        if kind != "storage" or not isinstance(function, _Function) or not function.startswith("torch "):
            raise ValueError("has a persistent object that is no storage")
        if not (isinstance(key, str) and key.isascii() and key.isdecimal() and isinstance(device, str)):
            raise ValueError("has a storage without a number")
        if type(count) is not int or count < 0:
            raise ValueError("has a storage without a size")
        self.stack.append(Storage(TYPES[function.split(" ")[1]][0], key, device, count))

    def remember(self, number: int) -> None:
        """Note the last value under a number."""
        if self.stack[-1] is _Mark:
            raise ValueError("remembers a mark")
        self.memo[number] = self.stack[-1]


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, metadata: Any = None
) -> StoredTensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not isinstance(gradient, bool) or hooks != {} or metadata is not None:
        raise ValueError("has a tensor with hooks or without a storage")
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers) or not len(shape) == len(strides) <= _MOST_AXES:
        raise ValueError("has a tensor of impossible shape")
    last: int = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if math.prod(shape) > 0 and last >= storage.count:
        raise UnsafeError(f"has a tensor that reaches beyond its storage {storage.key}; refuse it")
    return StoredTensor(storage, tuple(shape), tuple(strides), offset)


def _protocol(machine: _Machine, argument: int) -> None:
    if argument != 2:
        raise UnsafeError(f"is a pickle of protocol {argument}, torch.save writes 2; save it again")


_ACTS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": _protocol,
    "STOP": lambda m, a: None,
    "MARK": lambda m, a: m.stack.append(_Mark),
    "NONE": lambda m, a: m.stack.append(None),
    "NEWTRUE": lambda m, a: m.stack.append(True),
    "NEWFALSE": lambda m, a: m.stack.append(False),
    "BININT": lambda m, a: m.stack.append(a),
    "BININT1": lambda m, a: m.stack.append(a),
    "BININT2": lambda m, a: m.stack.append(a),
    "LONG1": lambda m, a: m.stack.append(a),
    "BINUNICODE": lambda m, a: m.stack.append(a),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.group())),
    "TUPLE1": lambda m, a: m.stack.append(tuple(m.top(1))),
    "TUPLE2": lambda m, a: m.stack.append(tuple(m.top(2))),
    "TUPLE3": lambda m, a: m.stack.append(tuple(m.top(3))),
    "SETITEM": lambda m, a: m.set_items(m.top(2)),
    "SETITEMS": lambda m, a: m.set_items(m.group()),
    "GLOBAL": lambda m, a: m.name(a),
    "REDUCE": lambda m, a: m.call(),
    "BUILD": lambda m, a: m.build(),
    "BINPERSID": lambda m, a: m.storage(),
    "BINPUT": lambda m, a: m.remember(a),
    "LONG_BINPUT": lambda m, a: m.remember(a),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
}
