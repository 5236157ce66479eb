"""The records of a zip file as they are written: central directory, local headers, and what lies between them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from medunet.trust.findings import Finding, Place, danger, note

_END, _END64, _LOCATOR, _CENTRAL, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04"
MAX_MEMBERS = 100_000
_MAX_DIRECTORY = 64 * 1024 * 1024
_PIECE = 1 << 20


class ArchiveError(ValueError):
    """Not a zip file, or one that cannot be followed."""


@dataclass(frozen=True)
class Member:
    """An entry of the central directory; `start` is where its data begin, once the local header was read."""

    name: str
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    header: int
    attributes: int
    system: int
    comment: bytes
    raw_name: bytes
    start: int = 0
    end: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether it only names a folder."""
        return self.name.endswith("/")


@dataclass(frozen=True)
class Directory:
    """All members, where their records begin and end, and the comment."""

    members: tuple[Member, ...]
    start: int
    end: int
    comment: bytes


def read_directory(stream: BinaryIO) -> Directory:
    """The central directory.

    Raises:
        ArchiveError: there is none, or it contradicts itself.
    """
    size = stream.seek(0, 2)
    tail_start = max(0, size - 65557)
    stream.seek(tail_start)
    tail = stream.read(65557)
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise ArchiveError("has no end record of a zip file")
    disk, first, here, total, length, offset, comment_size = struct.unpack("<4H2LH", tail[at + 4 : at + 22])
    end = tail_start + at
    comment = tail[at + 22 : at + 22 + comment_size]
    if end + 22 + comment_size != size:
        raise ArchiveError("has data after its end")
    directory_end = end
    locator = tail[at - 20 : at] if at >= 20 else b""
    if locator[:4] == _LOCATOR:
        directory_end, total, length, offset = _zip64(stream, struct.unpack("<Q", locator[8:16])[0], end - 20)
    elif 0xFFFF in (here, total) or 0xFFFFFFFF in (length, offset):
        raise ArchiveError("says that it is large (zip64) but has no record of that")
    if disk or first:
        raise ArchiveError("is one part of several")
    if offset + length != directory_end:
        raise ArchiveError("has a gap or an overlap around its table of contents")
    if total > MAX_MEMBERS or length > _MAX_DIRECTORY:
        raise ArchiveError(f"has more than {MAX_MEMBERS} members")
    stream.seek(offset)
    return Directory(tuple(_central(stream.read(length), total)), offset, size, comment)


def _zip64(stream: BinaryIO, at: int, before: int) -> tuple[int, int, int, int]:
    stream.seek(at)
    record = stream.read(56)
    if record[:4] != _END64 or len(record) < 56:
        raise ArchiveError("points to a zip64 record that is not there")
    (length,) = struct.unpack("<Q", record[4:12])
    if at + 12 + length != before:
        raise ArchiveError("has a zip64 record of a wrong length")
    total, size, offset = struct.unpack("<3Q", record[32:56])
    return at, total, size, offset


def _central(data: bytes, total: int) -> Iterator[Member]:
    at = 0
    for _ in range(total):
        if data[at : at + 4] != _CENTRAL or len(data) < at + 46:
            raise ArchiveError("has a damaged table of contents")
        fields = struct.unpack("<6H3L5H2L", data[at + 4 : at + 46])
        made, _, flags, method, _, _, crc, packed, size, name_size, extra_size, comment_size, disk, _, attr, header = (
            fields
        )
        raw = data[at + 46 : at + 46 + name_size]
        extra = data[at + 46 + name_size : at + 46 + name_size + extra_size]
        comment_at = at + 46 + name_size + extra_size
        size, packed, header = _large(extra, size, packed, header)
        if disk:
            raise ArchiveError("is one part of several")
        yield Member(_text(raw, flags), method, flags, crc, packed, size, header, attr, made >> 8,
                     data[comment_at : comment_at + comment_size], raw)  # fmt: skip
        at = comment_at + comment_size
    if at != len(data):
        raise ArchiveError("has more in its table of contents than it counts")


def _text(raw: bytes, flags: int) -> str:
    return raw.decode("utf-8" if flags & 0x800 else "cp437", "surrogateescape")


def _large(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """The zip64 field, in the order of the specification (4.5.3): only what did not fit stands there."""
    at, found = 0, 0
    values = [size, packed, header]
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<2H", extra[at : at + 4])
        field = extra[at + 4 : at + 4 + length]
        if kind == 1:
            found += 1
            for index in range(3):
                if values[index] == 0xFFFFFFFF:
                    if len(field) < 8:
                        raise ArchiveError("has a zip64 field that is too short")
                    values[index] = struct.unpack("<Q", field[:8])[0]
                    field = field[8:]
        at += 4 + length
    if found > 1:
        raise ArchiveError("gives a size twice")
    return values[0], values[1], values[2]


def locate(stream: BinaryIO, directory: Directory, findings: list[Finding], prefix: str = "") -> list[Member]:
    """Members with the place of their data; local headers that say something else are dangers."""
    located: list[Member] = []
    position = 0
    for member in sorted(directory.members, key=lambda each: each.header):
        place = Place(prefix + member.name)
        if member.header < position:
            findings.append(danger("archive-overlap", place, "overlaps another member of the archive", "files"))
            continue
        if member.header > position:
            what = f"has {member.header - position} bytes before it that belong to no member"
            findings.append(danger("archive-gap", place, what, "files"))
        stream.seek(member.header)
        local = stream.read(30)
        if local[:4] != _LOCAL or len(local) < 30:
            findings.append(danger("archive-header", place, "has no header where the archive says", "files"))
            position = max(position, member.header + 30 + member.packed)
            continue
        _, flags, method, _, _, crc, packed, size, name_size, extra_size = struct.unpack("<5H3L2H", local[4:])
        raw = stream.read(name_size)
        extra = stream.read(extra_size)
        start = member.header + 30 + name_size + extra_size
        described = bool(flags & 8)
        try:
            size, packed, _ = _large(extra, size, packed, 0)
        except ArchiveError:
            findings.append(danger("archive-header", place, "has a damaged header", "files"))
        same = (crc, packed, size) == (member.crc, member.packed, member.size)
        zero = described and (crc, packed, size) in ((0, 0, 0), (member.crc, 0, 0))
        if raw != member.raw_name or method != member.method or flags != member.flags or not (same or zero):
            what = "has two headers that differ: programs would unpack different things"
            findings.append(danger("archive-header", place, what, "files"))
        position = start + member.packed
        if described:
            position += _descriptor(stream, member, position, directory.start)
        located.append(Member(**{**vars(member), "start": start, "end": start + member.packed}))
    if position < directory.start:
        what = f"has {directory.start - position} bytes between its members and its table of contents"
        findings.append(danger("archive-gap", Place(prefix or "archive"), what, "files"))
    elif position > directory.start:
        findings.append(
            danger(
                "archive-overlap",
                Place(prefix or "archive"),
                "has a member that overlaps its table of contents",
                "files",
            )
        )
    return located


def _descriptor(stream: BinaryIO, member: Member, at: int, stop: int) -> int:
    """The length of the data descriptor after a member (specification 4.3.9)."""
    stream.seek(at)
    data = stream.read(min(24, max(0, stop - at)))
    for signed in (b"PK\x07\x08", b""):
        for form in ("<LLL", "<LQQ"):
            length = len(signed) + struct.calcsize(form)
            if data.startswith(signed) and len(data) >= length:
                values = struct.unpack(form, data[len(signed) : length])
                if values == (member.crc, member.packed, member.size):
                    return length
    return 0


def pieces(stream: BinaryIO, member: Member) -> Iterator[bytes]:
    """The unpacked data of a stored or deflated member, a megabyte at most at a time; never more than it declares.

    Raises:
        ArchiveError: it is longer, shorter or other than its header says.
    """
    stream.seek(member.start)
    left, made, crc = member.packed, 0, 0
    inflate = zlib.decompressobj(-15) if member.method == 8 else None
    position = member.start
    while left or (inflate and inflate.unconsumed_tail):
        if inflate and inflate.unconsumed_tail:
            data = inflate.unconsumed_tail
        else:
            stream.seek(position)
            data = stream.read(min(_PIECE, left))
            if not data:
                raise ArchiveError("ends before its data do")
            left -= len(data)
            position += len(data)
        try:
            piece = inflate.decompress(data, _PIECE) if inflate else data
        except zlib.error:
            raise ArchiveError("holds damaged compressed data") from None
        made += len(piece)
        crc = zlib.crc32(piece, crc)
        if made > member.size:
            raise ArchiveError("unpacks to more than it says")
        if piece:
            yield piece
        if inflate and inflate.eof:
            break
    if made != member.size or left or (inflate and (inflate.unused_data or not inflate.eof)):
        raise ArchiveError("unpacks to something else than it says")
    if crc != member.crc:
        raise ArchiveError("has a wrong checksum")


def comments(directory: Directory, name: str) -> Iterator[Finding]:
    """Comments are named: nobody sees them otherwise."""
    if directory.comment:
        yield note("archive-comment", Place(name), f"has a comment of {len(directory.comment)} bytes")
    for member in directory.members:
        if member.comment:
            yield note("archive-comment", Place(member.name), f"has a comment of {len(member.comment)} bytes")
