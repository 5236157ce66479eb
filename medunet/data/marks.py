"""Which files a source is read from, and a mark of them that changes when any of them does, without reading them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from medunet.data.dicom.source import Source
from medunet.data.volume import suffix_of
from medunet.types import StrPath

FileState = tuple[str, int, int, int, int]
"""Name, size, times of the last change of content and of status (ns), and inode of a file.

No program can set ``st_ctime`` back: copying with ``cp -p`` or ``rsync`` keeps the first time and not the second.
"""

_NAMED_DATA = re.compile(rb"^\s*(?:data ?file|ElementDataFile)\s*[:=]\s*(.+?)\s*$", re.I | re.M)
_PAIRS = {".hdr": ".img", ".img": ".hdr", ".hdr.gz": ".img.gz", ".img.gz": ".hdr.gz"}


class Marks:
    """Marks of sources; a folder is looked at once, so that many series may lie in it.

    Args:
        leave_out: a folder whose files do not count where it lies below a source; results are written there.
    """

    def __init__(self, leave_out: StrPath) -> None:
        self._leave_out = os.path.realpath(leave_out)
        self._folders: dict[Path, list[FileState]] = {}

    def of(self, sources: Iterable[StrPath]) -> str:
        """A digest over the state of every file that the sources are read from; empty where one is missing."""
        try:
            states = [self._states(Source.parse(source).path) for source in sources]
        except OSError:
            return ""
        return hashlib.sha256(repr(states).encode()).hexdigest()

    def _states(self, path: Path) -> list[FileState]:
        folder = folder_of(path)
        if folder is None:
            return [_state(name, os.stat(file)) for name, file in files_of(path)]
        if folder not in self._folders:
            self._folders[folder] = sorted(walk(folder, self._leave_out))
        return self._folders[folder]


def folder_of(path: Path) -> Path | None:
    """The folder that a source is read from: itself, or that of a DICOMDIR; None where it is a file."""
    folder = path.parent if path.name.upper() == "DICOMDIR" else path
    return folder if folder.is_dir() else None


def files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """The files that a source which is a file is read from: itself and those that belong to it."""
    yield "", path
    suffix = suffix_of(path)
    if suffix in _PAIRS:
        other = path.with_name(path.name[: -len(suffix)] + _PAIRS[suffix])
        if other.is_file():
            yield _PAIRS[suffix], other
    elif suffix in (".nhdr", ".mhd"):
        yield from _data_files(path)


def walk(folder: Path, leave_out: str | None = None) -> Iterator[FileState]:
    """The state of every file below a folder, but for those below `leave_out` (a real path) inside of it."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) != leave_out]
        for name in names:
            path = os.path.join(place, name)
            with suppress(FileNotFoundError):
                yield _state(os.path.relpath(path, folder), os.stat(path))


def _state(name: str, found: os.stat_result) -> FileState:
    return name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _data_files(header: Path) -> Iterator[tuple[str, Path]]:
    """The files beside a detached header that hold its voxels; all of the folder where it lists several."""
    with suppress(OSError):
        named = _NAMED_DATA.search(header.read_bytes()[:65_536])
        name = named[1].decode("utf-8", "replace") if named else ""
        if name and (header.parent / name).is_file():
            yield name, header.parent / name
        else:
            yield from ((p.name, p) for p in sorted(header.parent.iterdir()) if p.is_file() and p != header)
