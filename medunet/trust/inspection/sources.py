"""The files of a bundle, from a folder or a zip file, opened one at a time and never written."""

from __future__ import annotations

import io
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from medunet.trust.inspection.archive import ArchiveError, Member, locate, pieces, read_directory
from medunet.trust.inspection.members import MAX_FILES, MAX_RATIO

_SPOOL = 16 * 1024 * 1024
_SMALL = 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """A file: its name in the bundle with ``/``, its size in bytes, and how to open it (seekable)."""

    name: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]


class Window(io.RawIOBase):
    """A part of a stream as a stream of its own."""

    def __init__(self, stream: BinaryIO, start: int, length: int) -> None:
        self._stream, self._start, self._length, self._at = stream, start, length, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position within the part."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move within the part."""
        base = (0, self._at, self._length)[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: object) -> int:
        """Read on, to the end of the part at most."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        size = max(0, min(len(view), self._length - self._at))
        self._stream.seek(self._start + self._at)
        data = self._stream.read(size)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def entries(source: Path) -> Iterator[Entry]:
    """All regular files of a folder or a zip file, sorted by name; links and devices are left out."""
    if source.is_dir():
        yield from sorted(_folder(source), key=lambda entry: entry.name)
        return
    with source.open("rb") as stream:
        try:
            members = locate(stream, read_directory(stream), [])
        except ArchiveError:
            return
    yield from sorted((_entry(source, m) for m in members if _readable(m)), key=lambda entry: entry.name)


def _folder(root: Path) -> Iterator[Entry]:
    waiting, count = [root], 0
    while waiting:
        for path in waiting.pop().iterdir():
            count += 1
            status = path.lstat()
            if count > MAX_FILES:
                return
            if stat.S_ISDIR(status.st_mode):
                waiting.append(path)
            elif stat.S_ISREG(status.st_mode):
                yield Entry(path.relative_to(root).as_posix(), status.st_size, _opener(path))


def _opener(path: Path) -> Callable[[], AbstractContextManager[BinaryIO]]:
    return lambda: cast("AbstractContextManager[BinaryIO]", path.open("rb"))


def _readable(member: Member) -> bool:
    return (
        not member.is_folder
        and member.method in (0, 8)
        and not member.flags & 0x2041
        and stat.S_IFMT(member.attributes >> 16) in (0, stat.S_IFREG)
        and (member.size <= MAX_RATIO * max(1, member.packed) or member.size <= 4 * _SMALL)
    )


def _entry(source: Path, member: Member) -> Entry:
    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        """The member's data: from the archive itself, or unpacked for the time of reading."""
        with source.open("rb") as stream:
            if member.method == 0:
                yield cast("BinaryIO", io.BufferedReader(Window(stream, member.start, member.packed)))
                return
            with tempfile.SpooledTemporaryFile(max_size=_SPOOL) as spool:
                for piece in pieces(stream, member):
                    spool.write(piece)
                spool.seek(0)
                yield cast("BinaryIO", spool)

    return Entry(member.name, member.size, opened)
