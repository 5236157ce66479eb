"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medunet.errors import DiskFullError

if TYPE_CHECKING:
    from medunet.types import StrPath

PART = ".part-"
"""How the names of files begin that are not whole yet."""

_TORCH_FULL = ("file write failed", "unexpected pos", "iostream error")
_UMASK = os.umask(0)  # asking sets it, for all threads: once, before there are any
os.umask(_UMASK)
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_path(target: StrPath) -> Iterator[Path]:
    """A temporary path beside `target`, with its suffixes, that replaces it when the block ends well.

    Raises:
        DiskFullError: the disk is full or a file-size limit was reached; nothing is left behind.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(target.suffixes[-2:])
    handle, name = tempfile.mkstemp(prefix=PART, suffix=suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with disk_errors(target):
            yield temporary
            _sync(temporary)
            temporary.chmod(0o666 & ~_UMASK)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: StrPath, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8", newline="\n")


def write_json(target: StrPath, content: Any) -> None:
    """Write JSON atomically; NaN is refused, since JSON has none."""
    write_text(target, json_text(content))


def json_text(content: Any) -> str:
    """JSON as all our files have it.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file that grows; one that a killed run did not finish is left out. No file: no rows."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def write_with(target: StrPath, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary path)`` and put the result at `target` atomically."""
    with atomic_path(target) as path:
        write(path)


@contextmanager
def disk_errors(target: StrPath) -> Iterator[None]:
    """Turn a full disk into a DiskFullError that names `target`."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise _full(target, error) from error
        raise
    except RuntimeError as error:  # torch.save reports a failed write so
        if any(words in str(error) for words in _TORCH_FULL):
            raise _full(target, error) from error
        raise


def reserve(path: Path) -> None:
    """Take the disk space that a file's size claims: a memory-mapped write to a full disk would kill the program."""
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def remove_stale(folder: Path, seconds: float = 3600.0) -> None:
    """Remove temporary files below `folder` that a killed run left behind; younger ones may still be written."""
    for path in folder.rglob(f"{PART}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > seconds:
                path.unlink()


def is_disk_full(error: BaseException) -> bool:
    """Whether the system refused a write for want of space."""
    return isinstance(error, OSError) and error.errno in _NO_SPACE


def _full(target: StrPath, error: BaseException) -> DiskFullError:
    message = f"{target}: cannot be written, the disk is full ({error}); free some space and run again"
    return DiskFullError(message, target)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
