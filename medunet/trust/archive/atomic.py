"""Files of the trust room that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from medunet.errors import ResourceError


@contextmanager
def atomic_file(target: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file beside `target` that takes its place when the block ends well; `mode`: its permissions, else the umask's.

    Raises:
        ResourceError: it cannot be written; nothing is left behind then.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", dir=target.parent)
    except OSError as error:
        raise ResourceError(f"{target}: cannot be written ({error.strerror}); choose another place") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask() if mode is None else mode)
        temporary.replace(target)
    except OSError as error:
        raise ResourceError(f"{target}: cannot be written ({error.strerror}); free some space") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
