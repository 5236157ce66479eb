"""Where a DICOM file's bytes are - a file, a member of a zip, deflated or not - and a bounded way to read them.

A hostile file costs little memory: no read passes the end of the file, none is larger than a header may be unless a
picture is asked for, and what is packed is inflated piece by piece.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medunet.types import StrPath

MOST_HEADER = 1 << 26  # bytes: no element before the pixels is that large (100 000 frames are described in 50 MB)
_BUFFER = 1 << 16
_MOST_INFLATED = 1 << 25  # bytes, or so many times the packed size:
_MOST_GROWTH = 20
_FILE_META = 132
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_EXPLICIT = b"1.2.840.10008.1.2.1\0\0\0"
_LONG_VRS = (b"OB", b"OW", b"UN", b"UT")


@dataclass(frozen=True)
class Location:
    """A file, or a member of a zip archive."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return one_line(f"{self.path}/{self.member}" if self.member else str(self.path))

    @property
    def folder(self) -> str:
        """The folder, in or outside of an archive."""
        return os.path.dirname(f"{self.path}/{self.member}" if self.member else self.path)

    @property
    def suffix(self) -> str:
        """The end of the file's name in lower case, as ``.dcm``."""
        return os.path.splitext(self.member or self.path.name)[1].lower()

    @contextmanager
    def open(self, most: int = MOST_HEADER) -> Iterator[BoundedFile]:
        """The bytes, for reads of at most `most` each; a deflated data set (PS3.5 A.5) is inflated.

        Raises:
            OSError: it cannot be read, or inflates beyond measure.
        """
        with self._opened() as (file, size):
            inflated = _inflated(file, size)
            yield BoundedFile(file, size, most) if inflated is None else BoundedFile(*inflated, most)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, int]]:
        if not self.member:
            with self.path.open("rb", buffering=_BUFFER) as file:
                yield file, os.fstat(file.fileno()).st_size
            return
        archive = _archive(self.path, file_state(self.path))
        with archive.open(self.member) as packed:
            yield io.BufferedReader(packed, _BUFFER), archive.getinfo(self.member).file_size


class BoundedFile:
    """A binary file whose reads stop at its end and are never larger than `most`, whatever length was asked for.

    A header may claim an element of 4 GB: plain files would allocate that much before they notice.
    """

    def __init__(self, file: Any, size: int, most: int = MOST_HEADER) -> None:
        self._file, self.size, self._most = file, size, most
        self.seek, self.tell, self.close, self.name = file.seek, file.tell, file.close, getattr(file, "name", "")

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes.

        Raises:
            OSError: there are more than `most`.
        """
        left = max(0, self.size - int(self._file.tell()))
        wanted = left if count < 0 else min(count, left)
        if wanted > self._most:
            raise OSError(f"an element of {wanted} bytes is larger than any header's")
        content: bytes = self._file.read(wanted)
        return content

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; the number of bytes that were there."""
        return int(self._file.readinto(buffer))


def one_line(text: object, most: int = 0) -> str:
    """Text from a file as a message may hold it: printable, on one line, at most `most` characters."""
    words = "".join(c if c.isprintable() else " " for c in str(text)).strip()
    return words[:most] if most else words


def file_state(path: StrPath) -> tuple[int, int, int, int]:
    """What changes when a file is written or replaced; its size and time alone may be kept by a copy."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@lru_cache(maxsize=2)
def _archive(path: Path, state: tuple[int, ...]) -> zipfile.ZipFile:
    """An open archive: its directory is parsed once and not for every slice."""
    return zipfile.ZipFile(path)


def _inflated(file: Any, size: int) -> tuple[Any, int] | None:
    """A deflated file as if it had been written without deflating; None where it is not deflated."""
    start = file.read(4096)
    file.seek(0)
    syntax, end = _file_meta(start)
    if start[syntax : syntax + len(_DEFLATED)] != _DEFLATED:
        return None
    file.seek(end)
    result = io.BytesIO()
    result.write(start[:syntax] + _EXPLICIT + start[syntax + len(_EXPLICIT) : end])
    _inflate(file, result, max(_MOST_INFLATED, _MOST_GROWTH * size))
    length = result.tell()
    result.seek(0)
    return result, length


def _file_meta(start: bytes) -> tuple[int, int]:
    """Where the value of TransferSyntaxUID stands in the file meta information, and where that ends (PS3.10 7.1)."""
    place = syntax = _FILE_META
    while place + 8 <= len(start) and start[place : place + 2] == b"\2\0":
        element, vr, length = struct.unpack("<H2sH", start[place + 2 : place + 8])
        head = 8
        if vr in _LONG_VRS:
            length, head = int.from_bytes(start[place + 8 : place + 12], "little"), 12
        if element == 0x0010:
            syntax = place + head
        place += head + length
    return syntax, place


def _inflate(file: Any, result: io.BytesIO, most: int) -> None:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    while not unpacker.eof:
        packed = unpacker.unconsumed_tail or file.read(_BUFFER)
        if not packed:
            raise OSError("its deflated data set is cut off")
        try:
            result.write(unpacker.decompress(packed, _BUFFER * 16))
        except zlib.error as error:
            raise OSError(f"its deflated data set is broken ({error})") from error
        if result.tell() > most:
            raise OSError(f"its deflated data set grows beyond {most} bytes; not inflated")
