"""safetensors files, read and written, and the comparison of weights in two files; nothing is loaded whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, BinaryIO

from medunet.errors import UnsafeError
from medunet.trust.archive.slices import Slice
from medunet.trust.archive.strictjson import LARGEST, parse
from medunet.trust.archive.torch_file import Tensor, read_torch
from medunet.trust.archive.torch_pickle import SIZES

__all__ = ["Tensor", "differences", "read_safetensors", "read_torch", "write_safetensors"]

_MOST_AXES = 64


def read_safetensors(part: Slice) -> dict[str, Tensor]:
    """The tensors of a safetensors file by their names.

    Raises:
        UnsafeError: its header is not plain, or its tensors overlap, leave gaps or do not fill the file.
    """
    if part.size < 8:
        raise UnsafeError("is cut short; get the file again")
    length = int.from_bytes(part.read(0, 8), "little")
    if length > min(LARGEST, part.size - 8):
        raise UnsafeError(f"says that its header has {length:,} bytes, more than it holds or should; get it again")
    header = parse("its header", part.read(8, length))
    if not isinstance(header, dict):
        raise UnsafeError("has a header that is no list of tensors; get the file again")
    entries = {name: _entry(name, value) for name, value in header.items()}
    _require_tiled(entries, part.size - 8 - length)
    return {
        name: Tensor(dtype, shape, part.part(8 + length + begin, end - begin))
        for name, (dtype, shape, begin, end) in entries.items()
    }


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor | tuple[str, tuple[int, ...], bytes]]) -> None:
    """Write tensors, or (type, shape, bytes), in one order: wide types first, then by name; without other metadata."""
    whole = {n: t if isinstance(t, Tensor) else _in_memory(*t) for n, t in tensors.items()}
    order = sorted(whole, key=lambda name: (-SIZES[whole[name].dtype], name))
    header: dict[str, Any] = {}
    begin = 0
    for name in order:
        end = begin + _size(whole[name].dtype, whole[name].shape)
        header[name] = {
            "dtype": whole[name].dtype, "shape": list(whole[name].shape), "data_offsets": [begin, end]
        }  # fmt: skip
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        for chunk in whole[name].data.stream():
            file.write(chunk)


def differences(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """How two sets of tensors differ, a sentence per tensor; empty when they are equal, bit for bit."""
    found = [f"{name}: is in only one of the two files" for name in sorted(set(first) ^ set(second))]
    for name in sorted(set(first) & set(second)):
        ours, theirs = first[name], second[name]
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            found.append(f"{name}: is {ours.dtype} {list(ours.shape)} in one, {theirs.dtype} {list(theirs.shape)} in"
                         f" the other")  # fmt: skip
        elif any(a != b for a, b in zip(ours.data.stream(), theirs.data.stream(), strict=True)):
            found.append(f"{name}: has other numbers in the two files")
    return found


def _in_memory(dtype: str, shape: tuple[int, ...], data: bytes) -> Tensor:
    import io

    return Tensor(dtype, shape, Slice(io.BytesIO(data), 0, len(data)))


def _entry(name: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        right = set(value) == {"dtype", "shape", "data_offsets"} and dtype in SIZES and len(shape) <= _MOST_AXES
        right = right and all(type(n) is int and 0 <= n < 2**62 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        right = False
    if not right:
        raise UnsafeError(f"{name}: is not described as a tensor of a known type; refuse the file")
    if end - begin != _size(dtype, shape):
        raise UnsafeError(f"{name}: has {end - begin:,} bytes, its shape asks for {_size(dtype, shape):,}; refuse it")
    return dtype, shape, begin, end


def _require_tiled(entries: Mapping[str, tuple[str, tuple[int, ...], int, int]], size: int) -> None:
    expected = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != expected:
            words = "overlaps another tensor" if begin < expected else "leaves a gap before it"
            raise UnsafeError(f"{name}: {words} in the file; refuse it")
        expected = end
    if expected != size:
        raise UnsafeError(f"holds {size:,} bytes of numbers, its header describes {expected:,}; get the file again")


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    return SIZES[dtype] * math.prod(shape)
