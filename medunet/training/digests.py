"""What a source holds, by its content: where it lies makes no difference, and a file that changed is another one."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from medunet.data.atomic import write_json
from medunet.data.dicom.source import Source
from medunet.data.marks import files_of, folder_of, walk
from medunet.data.volume import suffix_of
from medunet.errors import InputError
from medunet.types import StrPath

_SETTLED_SECONDS = 3.0  # a file that changed later than this ago may change again within the clock's resolution
_BLOCK = 1 << 20
_LOCK = threading.Lock()


class Digests:
    """sha256 of the content of sources; remembered in a file, so that a file is read again only when it changed.

    A file is taken for unchanged when its place, size, inode and times are as they were, the time of the last change
    of its status (``st_ctime``) among them, which no program can set back.

    Args:
        cache: a JSON file, made when it is not there; it holds no names, only digests of them.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._known = _load(cache)
        self._new: dict[str, list[str]] = {}
        self._folders: dict[Path, tuple[str, list[list[str]]]] = {}

    def source(self, source: StrPath) -> str:
        """The digest of a file, a folder of DICOM, or one with options (`medunet.data.dicom.source`).

        Raises:
            InputError: it is missing or cannot be read.
        """
        where = Source.parse(source)
        folder = folder_of(where.path)
        parts = self._files(files_of(where.path)) if folder is None else self._folder(folder)
        options = dict(where.options)
        if "on" in options:
            options["on"] = self.source(Path(where.path.parent, options["on"]))
        return _sha(json.dumps([suffix_of(where.path), options, parts]).encode())

    def save(self) -> None:
        """Keep what was found for the next run; another run's findings stay."""
        with _LOCK:
            if self._new:
                write_json(self.cache, {**_load(self.cache), **self._new})
                self._known |= self._new
                self._new = {}

    def _folder(self, folder: Path) -> list[list[str]]:
        """The digests of a folder's files; looked at once for all cases in it, unless something there changed."""
        found = sorted(walk(folder))
        mark = _sha(repr(found).encode())
        if self._folders.get(folder, ("",))[0] != mark:
            names = [name for name, *_ in found]
            self._folders[folder] = (mark, self._files((name, folder / name) for name in names))
        return self._folders[folder][1]

    def _files(self, files: Iterable[tuple[str, Path]]) -> list[list[str]]:
        return [[name, self._file(path)] for name, path in files]

    def _file(self, path: Path) -> str:
        try:
            real = path.resolve(strict=True)
            state = real.stat()
            place = _sha(str(real).encode())
            mark = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino} {state.st_dev}"
            known = self._known.get(place) or self._new.get(place)
            if known and known[0] == mark:
                return known[1]
            digest = _content(real)
        except FileNotFoundError as error:
            raise missing(path) from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); look to the disk or the rights") from error
        if time.time() - max(state.st_mtime, state.st_ctime) > _SETTLED_SECONDS:
            with _LOCK:
                self._new[place] = [mark, digest]
        return digest


def missing(path: Path) -> InputError:
    """That a file of the dataset is not there."""
    return InputError(f"{path}: is missing; give the dataset's place with --set dataset_dir=PATH")


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _load(path: Path) -> dict[str, list[str]]:
    """What was remembered; nothing where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    pairs = content.items() if isinstance(content, dict) else ()
    return {k: v for k, v in pairs if isinstance(v, list) and len(v) == 2 and all(isinstance(x, str) for x in v)}
