"""Pickles read opcode by opcode, never executed: which globals they would import."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO, cast

from medunet.trust.inspection.words import words

MAX_OPCODES = 1_000_000
MAX_ARGUMENT = 64 * 1024 * 1024
_MAX_MEMO = 1_000_000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_FIRST = b"c(]})lidSVNIJKLMGTUXFBCP\x82\x83\x84\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96\x97"
_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_DTYPES = words(
    """float16 float32 float64 bfloat16 complex32 complex64 complex128 bool int8 int16 int32 int64 uint8 uint16 uint32
uint64 qint8 qint32 quint8 quint4x2 quint2x4 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu
bits8 bits16 bits1x8 bits2x4 bits4x2 per_tensor_affine per_channel_affine per_tensor_symmetric per_channel_symmetric
per_channel_affine_float_qparams"""
)
_STORAGES = words(
    "BFloat16 Bool Byte Char ComplexDouble ComplexFloat Double Float Half Int Long Short QInt32 QInt8 QUInt8"
)
# What torch's weights_only unpickler allows (torch 2.13), without those that call or make a type named in the file.
TENSOR_GLOBALS = frozenset(
    ["collections.OrderedDict", "collections.Counter", "torch.Size", "torch.Tensor", "torch.device",
     "torch.nn.parameter.Parameter", "torch.serialization._get_layout", "_codecs.encode", "builtins.bytearray",
     "builtins.set", "builtins.complex", "torch.storage.UntypedStorage", "torch.storage.TypedStorage",
     "torch.QUInt4x2Storage", "torch.QUInt2x4Storage"]
    + [f"torch.{name}" for name in _DTYPES]
    + [f"torch.{device}{name}Storage" for name in _STORAGES for device in ("", "cuda.")]
    + [f"torch.{device}{name}Tensor" for name in _STORAGES for device in ("", "cuda.")]
    + [f"torch._utils._rebuild_{name}" for name in (
        "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "qtensor", "sparse_tensor",
        "meta_tensor_no_storage", "nested_tensor", "device_tensor_from_numpy", "device_tensor_from_cpu_tensor")]
)  # fmt: skip


@dataclass
class PickleScan:
    """What a pickle would do: globals it imports, what else is odd, whether it ended, how many follow each other."""

    globals: set[str] = field(default_factory=set)
    odd: list[str] = field(default_factory=list)
    ended: bool = False
    calls: bool = False
    count: int = 0

    @property
    def foreign(self) -> list[str]:
        """The globals that plain tensors do not need."""
        return sorted(self.globals - TENSOR_GLOBALS)

    def say(self, what: str) -> None:
        """Add something odd once."""
        if what not in self.odd and len(self.odd) < 20:
            self.odd.append(what)


class _Bounded:
    """A stream that refuses to read a huge piece at once."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream, self.left = stream, limit

    def read(self, size: int = -1) -> bytes:
        """So many bytes, if that is not too many."""
        if size < 0 or size > MAX_ARGUMENT:
            raise ValueError("a piece is longer than any value of a state dict")
        return self._count(self.stream.read(size))

    def readline(self) -> bytes:
        """A line, if it is not too long."""
        line = self._count(self.stream.readline(1 << 16))
        if len(line) == 1 << 16:
            raise ValueError("a line is longer than any name")
        return line

    def tell(self) -> int:
        """The position."""
        return self.stream.tell()

    def _count(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("the pickle is longer than any state dict without its tensors")
        return data


def looks_like_pickle(head: bytes) -> bool:
    """By the first bytes: protocol 2 and later say so themselves."""
    return len(head) > 2 and head[0] == 0x80 and head[1] <= 5


def scan_pickles(stream: BinaryIO, limit: int, several: bool = True) -> PickleScan:
    """Scan one pickle after another from where the stream stands; tensors of the old torch format may follow."""
    result = PickleScan()
    bounded = _Bounded(stream, limit)
    legacy = False
    while True:
        number = _scan_one(bounded, result)
        if not result.ended:
            return result
        result.count += 1
        legacy = legacy or (result.count == 1 and number == _LEGACY_MAGIC)
        if not several or (legacy and result.count == 5):
            return result
        position = stream.tell()
        following = stream.read(2)
        if not following:
            return result
        stream.seek(position)
        if not legacy and not (looks_like_pickle(following + b"\x00") or following[:1] in b"c(]}lSVNIJKMG"):
            result.say("data follow the end of the pickle")
            return result
        result.ended = False


def _scan_one(bounded: _Bounded, result: PickleScan) -> Any:
    """Up to STOP; the last number that was seen (the old torch format begins with a magic one)."""
    machine = _Machine(result)
    number = None
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", bounded))):
            if count > MAX_OPCODES:
                result.say(f"has more than {MAX_OPCODES} steps")
                return number
            if isinstance(argument, int):
                number = argument
            machine.step(opcode, argument)
            if opcode.name == "STOP":
                result.ended = True
                return number
    except (ValueError, EOFError, IndexError, UnicodeError, OverflowError, MemoryError, AttributeError) as error:
        result.say(f"cannot be read to its end ({str(error).splitlines()[0][:100] if str(error) else 'damaged'})")
    return number


_GLOBAL = object()


class _Machine:
    """The stack of a pickle as far as text goes: enough to name what STACK_GLOBAL imports."""

    def __init__(self, result: PickleScan) -> None:
        self.result = result
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: Any, argument: Any) -> None:
        """Follow one opcode."""
        name = opcode.name
        if name == "BUILD" and len(self.stack) > 1 and self.stack[-2] is _GLOBAL:
            self.result.say("changes a class or a function itself")
        if name in ("GLOBAL", "INST"):
            self.result.globals.add(".".join(str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            self._stack_global()
        elif name in ("EXT1", "EXT2", "EXT4"):
            self.result.say("takes a class from the extension registry of the machine")
        elif name == "PERSID":
            self.result.say("holds a persistent id in text, which no state dict has")
        elif name in ("NEXT_BUFFER", "READONLY_BUFFER"):
            self.result.say("takes its data from outside of the file")
        if name in ("REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"):
            self.result.calls = True
        if isinstance(argument, (bytes, bytearray)) and looks_like_pickle(bytes(argument[:3])):
            self._nested(bytes(argument))
        self._move(opcode, argument)

    def _stack_global(self) -> None:
        found = self.stack[-2:]
        if len(found) == 2 and all(isinstance(word, str) for word in found):
            self.result.globals.add(f"{found[0]}.{found[1]}")
        else:
            self.result.say("imports something by a name that it computes")

    def _nested(self, data: bytes) -> None:
        inner = PickleScan()
        _scan_one(_Bounded(io.BytesIO(data), len(data) + 1), inner)
        if inner.ended and inner.foreign:
            self.result.say(f"holds another pickle that imports {', '.join(inner.foreign[:5])}")

    def _move(self, opcode: Any, argument: Any) -> None:
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            key = len(self.memo) if name == "MEMOIZE" else argument
            if len(self.memo) < _MAX_MEMO:
                self.memo[key] = self.stack[-1] if self.stack else None
            return
        if name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo.get(argument))
            return
        if name == "DUP":
            self.stack.append(self.stack[-1] if self.stack else None)
            return
        if name == "MARK":
            self.stack.append(pickletools.markobject)
            return
        if pickletools.markobject in opcode.stack_before:
            self._pop_to_mark()
            kept = opcode.stack_before.index(pickletools.markobject)
        else:
            kept = len(opcode.stack_before)
        if kept:
            del self.stack[-kept:]
        made = argument if name in _STRINGS else _GLOBAL if name in ("GLOBAL", "STACK_GLOBAL") else None
        self.stack += [made] * len(opcode.stack_after)

    def _pop_to_mark(self) -> None:
        while self.stack and self.stack.pop() is not pickletools.markobject:
            pass


def text_pickle(stream: BinaryIO, limit: int) -> PickleScan | None:
    """A scan, when data without the mark of a pickle are one all the same: the first instruction may be another."""
    first = stream.read(1)
    stream.seek(0)
    if not first or first not in _FIRST:
        return None
    scan = PickleScan()
    _scan_one(_Bounded(stream, limit), scan)
    return scan if scan.ended and (scan.globals or scan.calls) else None


def describe(scan: PickleScan) -> Iterator[str]:
    """What is wrong with a pickle, in words that follow its name."""
    if scan.foreign:
        shown = ", ".join(scan.foreign[:8]) + (f" and {len(scan.foreign) - 8} more" if len(scan.foreign) > 8 else "")
        yield f"is a pickle that would import {shown}"
    yield from (f"is a pickle that {what}" for what in scan.odd)
    if not scan.ended and not scan.odd:
        yield "is a pickle that does not end"
