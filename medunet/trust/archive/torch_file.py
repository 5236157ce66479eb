"""Where the tensors of a ``torch.save`` file lie, found without torch and without unpickling.

The file is a zip of stored records. Its parts must fill it from the first byte to the last: two readers of a zip agree
only on one that has no gaps, and nothing may hide in them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from medunet.errors import UnsafeError
from medunet.trust.archive.slices import Slice
from medunet.trust.archive.torch_pickle import SIZES, StoredTensor, read_state

_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_FULL = 0xFFFFFFFF
_SMALL = {"version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
_LARGEST_PICKLE, _LARGEST_DIRECTORY, _LARGEST_SMALL = 64 << 20, 64 << 20, 128
_ZIP64, _PADDING = 1, 0x4246


@dataclass(frozen=True)
class Tensor:
    """Numbers in C order: their type (as safetensors names it), shape, and bytes (little endian)."""

    dtype: str
    shape: tuple[int, ...]
    data: Slice


def read_torch(part: Slice) -> dict[str, Tensor]:
    """The tensors of a plain state dict by their names.

    Raises:
        UnsafeError: it is not a zip of torch without gaps, describes anything but tensors, or holds numbers that
            belong to no tensor.
    """
    records = _records(part)
    if "data.pkl" not in records:
        raise UnsafeError("has no data.pkl; it is not a file of torch.save, save it again")
    if records["data.pkl"].size > _LARGEST_PICKLE:
        raise UnsafeError(f"has a data.pkl of {records['data.pkl'].size:,} bytes, more than any state dict; refuse it")
    state = read_state(records["data.pkl"].read())
    _require_nothing_else(records, state)
    return {name: _located(name, tensor, records) for name, tensor in state.items()}


def _located(name: str, tensor: StoredTensor, records: dict[str, Slice]) -> Tensor:
    storage = tensor.storage
    data = records[f"data/{storage.key}"]
    if data.size != storage.count * SIZES[storage.dtype]:
        raise UnsafeError(f"{name}: its storage has {data.size:,} bytes, its description says another size; refuse it")
    count = 1
    for size in tensor.shape:
        count *= size
    if not tensor.contiguous or tensor.offset or count != storage.count:
        raise UnsafeError(f"{name}: is a part of its storage or not in order; pack the bundle again")
    if storage.device != "cpu":
        raise UnsafeError(f"{name}: was saved on {storage.device}; save it from the CPU, or pack the bundle again")
    return Tensor(storage.dtype, tensor.shape, data)


def _require_nothing_else(records: dict[str, Slice], state: dict[str, StoredTensor]) -> None:
    keys = [tensor.storage.key for tensor in state.values()]
    if len(set(keys)) != len(keys):
        raise UnsafeError("has tensors that share their numbers; pack the bundle again")
    missing = {f"data/{key}" for key in keys} - set(records)
    if missing:
        raise UnsafeError(f"lacks the record {min(missing)}; get the file again")
    extra = set(records) - {f"data/{key}" for key in keys} - _SMALL - {"data.pkl"}
    if extra:
        raise UnsafeError(f"holds a record {min(extra)!r} that belongs to no tensor; refuse it")
    for name in _SMALL & set(records):
        if records[name].size > _LARGEST_SMALL:
            raise UnsafeError(f"holds a record {name!r} of {records[name].size:,} bytes; refuse it")
    if "byteorder" not in records or records["byteorder"].read() != b"little":
        raise UnsafeError("does not say that its numbers are little endian; save it again with torch 2.1 or later")


def _records(part: Slice) -> dict[str, Slice]:
    """The records of the zip by their names, without the folder that all are in."""
    try:
        count, start, size = _directory(part)
        data = part.read(start, size)
        found: list[tuple[int, int, str, Slice]] = []
        position = 0
        for _ in range(count):
            entry, position = _record(part, data, position)
            found.append(entry)
        if position != len(data):
            raise UnsafeError("has a directory with bytes between its entries; get the file again")
    except struct.error as error:
        raise UnsafeError("is cut short or is not a zip of torch.save; get the file again") from error
    _require_no_gaps(sorted(found), start)
    return _by_name(found)


def _by_name(found: list[tuple[int, int, str, Slice]]) -> dict[str, Slice]:
    prefixes = {name.partition("/")[0] for _, _, name, _ in found}
    records = {name.partition("/")[2]: data for _, _, name, data in found}
    if len(prefixes) != 1 or len(records) != len(found) or "" in records:
        raise UnsafeError("has records of one name, or in more than one folder; refuse it")
    return records


def _directory(part: Slice) -> tuple[int, int, int]:
    """How many records there are, where the directory begins, and its bytes."""
    end = part.size - _END.size
    if end < 0:
        raise UnsafeError("is cut short or is not a zip of torch.save; get the file again")
    signature, _, _, _, count, size, start, comment = _END.unpack(part.read(end, _END.size))
    if signature != b"PK\x05\x06" or comment:
        raise UnsafeError("does not end as a zip of torch.save ends; get the file again")
    before = end - _LOCATOR64.size
    if before >= 0 and part.read(before, 4) == b"PK\x06\x07":
        _, _, place, _ = _LOCATOR64.unpack(part.read(before, _LOCATOR64.size))
        end = before - _END64.size
        signature, *_, count, size, start = _END64.unpack(part.read(end, _END64.size))
        if signature != b"PK\x06\x06" or place != end:
            raise UnsafeError("has an end that points elsewhere; refuse it")
    if start + size != end or size > _LARGEST_DIRECTORY:
        raise UnsafeError("has bytes before or after what its directory lists; refuse it")
    return count, start, size


def _record(part: Slice, directory: bytes, position: int) -> tuple[tuple[int, int, str, Slice], int]:
    """(first byte, last byte + 1 without a data descriptor or with, name, content) of an entry, and the next one."""
    fields = _CENTRAL.unpack_from(directory, position)
    signature, flags, method = fields[0], fields[3], fields[4]
    _, stored, size, name_length, extra_length, comment = fields[7:13]
    offset = fields[16]
    position += _CENTRAL.size
    raw = directory[position : position + name_length]
    extra = directory[position + name_length : position + name_length + extra_length]
    if signature != b"PK\x01\x02" or method or comment or flags & ~0x808 or not raw.isascii():
        raise UnsafeError("has an entry that is compressed, encrypted or not a record; refuse it")
    size, stored, offset = _large(extra, size, stored, offset)
    header = _LOCAL.unpack(part.read(offset, _LOCAL.size))
    begin = offset + _LOCAL.size + header[9] + header[10]
    tail = part.read(offset + _LOCAL.size, header[9] + header[10])
    if header[0] != b"PK\x03\x04" or header[3] or tail[: header[9]] != raw or stored != size:
        raise UnsafeError(f"{raw.decode()}: its header differs from the directory; refuse it")
    _require_padding(raw.decode(), tail[header[9] :])
    end = begin + size
    if flags & 8:
        end += 24 if size >= _FULL or _is_wide(part, end, size) else 16
    return (offset, end, raw.decode(), part.part(begin, size)), position + name_length + extra_length


def _is_wide(part: Slice, end: int, size: int) -> bool:
    """Whether a data descriptor (signature, CRC, sizes) has sizes of 8 bytes."""
    descriptor = part.read(end, min(24, part.size - end))
    return len(descriptor) == 24 and struct.unpack("<2Q", descriptor[8:]) == (size, size)


def _large(extra: bytes, size: int, stored: int, offset: int) -> tuple[int, int, int]:
    """Sizes and offset, from the zip64 field where they do not fit 32 bits."""
    if _FULL not in (size, stored, offset):
        return size, stored, offset
    identifier, length = struct.unpack_from("<HH", extra)
    values = list(struct.unpack_from(f"<{length // 8}Q", extra, 4)) if identifier == _ZIP64 else []
    taken = [values.pop(0) if value == _FULL and values else value for value in (size, stored, offset)]
    return taken[0], taken[1], taken[2]


def _require_padding(name: str, extra: bytes) -> None:
    position = 0
    while position < len(extra):
        identifier, length = struct.unpack_from("<HH", extra, position)
        field = extra[position + 4 : position + 4 + length]
        if identifier not in (_ZIP64, _PADDING) or (identifier == _PADDING and field.strip(b"Z\0")):
            raise UnsafeError(f"{name}: has bytes beside its content; refuse it")
        position += 4 + length


def _require_no_gaps(found: list[tuple[int, int, str, Slice]], start: int) -> None:
    expected = 0
    for first, end, name, _ in found:
        if first != expected:
            raise UnsafeError(f"{name}: overlaps another record or leaves a gap before it; refuse it")
        expected = end
    if expected != start:
        raise UnsafeError("has bytes between its last record and its directory; refuse it")
