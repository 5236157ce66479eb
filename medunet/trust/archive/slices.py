"""A part of an open file, read where it is asked for; nothing is held."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from medunet.errors import UnsafeError

CHUNK = 1 << 20


@dataclass(frozen=True)
class Slice:
    """`size` bytes of an open file from `start`."""

    file: BinaryIO
    start: int
    size: int

    @classmethod
    def whole(cls, file: BinaryIO) -> Slice:
        """All of a file."""
        return cls(file, 0, file.seek(0, os.SEEK_END))

    def part(self, start: int, size: int) -> Slice:
        """A part of this part.

        Raises:
            UnsafeError: it reaches beyond.
        """
        if start < 0 or size < 0 or start + size > self.size:
            raise UnsafeError(f"bytes {start} to {start + size} lie outside a file of {self.size} bytes")
        return Slice(self.file, self.start + start, size)

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """Bytes `start` to ``start + size``, or to the end.

        Raises:
            UnsafeError: they lie outside, or the file became shorter.
        """
        part = self.part(start, self.size - start if size is None else size)
        data = bytearray()
        while len(data) < part.size:
            self.file.seek(part.start + len(data))
            piece = self.file.read(part.size - len(data))
            if not piece:
                raise UnsafeError("the file became shorter while it was read; try again")
            data += piece
        return bytes(data)

    def stream(self) -> Iterator[bytes]:
        """All bytes, a megabyte at a time."""
        for start in range(0, self.size, CHUNK):
            yield self.read(start, min(CHUNK, self.size - start))

    def sha256(self) -> str:
        """Of all bytes."""
        digest = hashlib.sha256()
        for chunk in self.stream():
            digest.update(chunk)
        return digest.hexdigest()
