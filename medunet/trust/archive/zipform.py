"""The one form in which a bundle is archived: the same content is the same bytes, and any other byte is refused.

A zip (PKWARE APPNOTE 6.3.10) of stored members in the order of their names, dated 1980-01-01, plain files of mode
0644, without comments, data descriptors or extra fields; zip64 only where a size or offset needs it. Nothing is
compressed, so that the bytes do not depend on a compression library. What is read is built again and compared, byte for
byte.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medunet.errors import UnsafeError
from medunet.trust.archive.names import name_problem
from medunet.trust.archive.slices import CHUNK, Slice

_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
_HEADER = struct.Struct("<4s5H3I2H")
_DATE = 0x21  # 1980-01-01, the first day that a zip knows
_ATTRIBUTES = 0o100644 << 16
_FULL, _FULL_COUNT = 0xFFFFFFFF, 0xFFFF
_MOST_MEMBERS = 10_000


@dataclass(frozen=True)
class Member:
    """A file of an archive: its size in bytes, checksums, and where its bytes begin (0 until it is written)."""

    name: str
    size: int
    crc: int
    sha256: str
    start: int = 0


@dataclass(frozen=True)
class Listing:
    """What an archive holds, and its own size and sha256."""

    members: tuple[Member, ...]
    size: int
    sha256: str


def measure(name: str, content: Path | bytes) -> Member:
    """Size and checksums of a file or of bytes, in one reading.

    Raises:
        UnsafeError: a name that no member may have.
    """
    problem = name_problem(name)
    if problem:
        raise UnsafeError(f"{name!r}: the name {problem}; rename the file")
    digest, crc, size = hashlib.sha256(), 0, 0
    for chunk in _chunks(content):
        digest.update(chunk)
        crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return Member(name, size, crc, digest.hexdigest())


def write_archive(file: BinaryIO, contents: Mapping[str, Path | bytes], members: Iterable[Member]) -> None:
    """Write `members`, as `measure` saw them, in the canonical form.

    Raises:
        UnsafeError: a file changed since it was measured.
    """
    placed, start = [], 0
    for member in sorted(members, key=lambda m: m.name):
        header = _local(member)
        file.write(header)
        crc, size = 0, 0
        for chunk in _chunks(contents[member.name]):
            file.write(chunk)
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        if (crc, size) != (member.crc, member.size):
            raise UnsafeError(f"{member.name}: changed while the bundle was packed; pack it again")
        placed.append((member, start))
        start += len(header) + size
    file.write(_directory(placed, start))


def read_archive(file: BinaryIO) -> Listing:
    """Read an archive from its first byte to its last, and hold each against the canonical form.

    Memory does not grow with the members' sizes.

    Raises:
        UnsafeError: any byte is not as `write_archive` would write it.
    """
    reader = _Reader(file)
    placed: list[tuple[Member, int]] = []
    starts: list[int] = []
    while True:
        start = reader.position
        signature = reader.take(4)
        if signature != _LOCAL:
            break
        if len(placed) == _MOST_MEMBERS:
            raise UnsafeError(f"holds more than {_MOST_MEMBERS:,} members; refuse it")
        last = placed[-1][0].name if placed else ""
        member = _read_member(reader, signature, last)
        placed.append((member, start))
        starts.append(reader.position - member.size)
    if not placed:
        raise UnsafeError("is not an archive that medunet pack wrote (it does not begin with a member); get it again")
    _read_directory(reader, signature, _directory(placed, start))
    members = tuple(
        Member(m.name, m.size, m.crc, m.sha256, begin) for (m, _), begin in zip(placed, starts, strict=True)
    )
    return Listing(members, reader.position, reader.digest.hexdigest())


class _Reader:
    """Bytes in order, hashed as they pass."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position, self.digest = file, 0, hashlib.sha256()
        file.seek(0)

    def take(self, count: int) -> bytes:
        """Up to `count` bytes."""
        data = self.file.read(count)
        self.digest.update(data)
        self.position += len(data)
        return data

    def need(self, count: int, where: str) -> bytes:
        """Exactly `count` bytes."""
        data = self.take(count)
        if len(data) != count:
            raise UnsafeError(f"the archive is cut short in {where}; get it again from the sender")
        return data


def _read_member(reader: _Reader, signature: bytes, last: str) -> Member:
    where = f"the member after {last}" if last else "its first member"
    raw = signature + reader.need(_HEADER.size - 4, where)
    *_, crc, _stored, size, name_length, extra_length = _HEADER.unpack(raw)
    tail = reader.need(name_length + extra_length, where)
    name = tail[:name_length].decode("latin-1")
    problem = name_problem(name)
    if problem:
        raise UnsafeError(f"{name!r}: a member's name {problem}; refuse the archive")
    if name <= last:
        words = "stands twice" if name == last else f"stands after {last}, members come in the order of their names"
        raise UnsafeError(f"{name}: {words}; the archive was not written by medunet pack, refuse it")
    if size == _FULL and extra_length == 20:
        size = struct.unpack("<Q", tail[name_length + 4 : name_length + 12])[0]
    if raw + tail != _local(Member(name, size, crc, "")):
        raise UnsafeError(
            f"{name}: its header is not as medunet pack writes it (flags, method, date, sizes or extra fields); "
            f"the archive was damaged or made by something else, get it again"
        )
    digest, found, left = hashlib.sha256(), 0, size
    while left:
        chunk = reader.need(min(left, CHUNK), name)
        digest.update(chunk)
        found, left = zlib.crc32(chunk, found), left - len(chunk)
    if found != crc:
        raise UnsafeError(f"{name}: its bytes do not match their checksum; the archive was damaged, get it again")
    return Member(name, size, crc, digest.hexdigest())


def _read_directory(reader: _Reader, signature: bytes, expected: bytes) -> None:
    found = signature + reader.take(len(expected) - 4)
    if found != expected[: len(found)]:
        raise UnsafeError(
            "the archive's directory differs from its members; it was damaged or changed after packing, get it again"
        )
    if len(found) < len(expected):
        raise UnsafeError("the archive is cut short in its directory; get it again from the sender")
    if reader.take(1):
        raise UnsafeError("bytes follow the end of the archive; it was changed after packing, get it again")


def _local(member: Member) -> bytes:
    large = member.size >= _FULL
    size = _FULL if large else member.size
    extra = struct.pack("<HHQQ", 1, 16, member.size, member.size) if large else b""
    name = member.name.encode("latin-1")
    version = 45 if large else 20
    return _HEADER.pack(_LOCAL, version, 0, 0, 0, _DATE, member.crc, size, size, len(name), len(extra)) + name + extra


def _directory(placed: Iterable[tuple[Member, int]], start: int) -> bytes:
    """The central directory and its end, for members and the offsets of their headers."""
    entries = [_entry(member, offset) for member, offset in placed]
    count, size = len(entries), sum(map(len, entries))
    end = struct.pack(
        "<4s4H2IH", _END, 0, 0, min(count, _FULL_COUNT), min(count, _FULL_COUNT), min(size, _FULL), min(start, _FULL), 0
    )
    if start >= _FULL or size >= _FULL or count >= _FULL_COUNT:
        end64 = struct.pack("<4sQ2H2I4Q", _END64, 44, 45 | 3 << 8, 45, 0, 0, count, count, size, start)
        end = end64 + struct.pack("<4sIQI", _LOCATOR64, 0, start + size, 1) + end
    return b"".join(entries) + end


def _entry(member: Member, offset: int) -> bytes:
    large, far = member.size >= _FULL, offset >= _FULL
    values = ([member.size, member.size] if large else []) + ([offset] if far else [])
    extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    name, size = member.name.encode("latin-1"), _FULL if large else member.size
    version = 45 if values else 20
    return struct.pack(
        "<4s6H3I5H2I", _CENTRAL, version | 3 << 8, version, 0, 0, 0, _DATE, member.crc, size, size,
        len(name), len(extra), 0, 0, 0, _ATTRIBUTES, _FULL if far else offset,
    ) + name + extra  # fmt: skip


def _chunks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    handle = os.open(content, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(handle, "rb") as file:
        yield from Slice.whole(file).stream()
