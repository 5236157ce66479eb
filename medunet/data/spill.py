"""Arrays that may be larger than the memory: beyond a size they lie in a temporary file, which no name refers to."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data.atomic import disk_errors, reserve
from medunet.types import AnyArray

LARGE = 256_000_000
"""Bytes from which on an array lies in a file of the system's temporary folder (``TMPDIR``)."""
_CHUNK = 4_000_000  # elements that are looked at at a time


def zeros(shape: Sequence[int], dtype: Any, order: str = "C") -> AnyArray:
    """An array of zeros; from `LARGE` bytes on, memory-mapped from a temporary file that is gone when the array is.

    Raises:
        ResourceError: the temporary folder has not enough room.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < LARGE or os.name != "posix":
        return np.zeros(shape, dtype, "F" if order == "F" else "C")
    with disk_errors(tempfile.gettempdir()):
        handle, name = tempfile.mkstemp(prefix=".medunet-")
        path = Path(name)
        try:
            os.truncate(handle, size)
            reserve(path)
            return np.memmap(path, dtype, "r+", 0, tuple(shape), "F" if order == "F" else "C")
        finally:
            os.close(handle)
            path.unlink()


def slabs(array: AnyArray) -> Iterator[AnyArray]:
    """The parts of an array (..., x, y, z) along its last axis with more than one element, a few million at a time."""
    axis = next((a for a in range(array.ndim - 1, -1, -1) if array.shape[a] > 1), 0)
    along = np.moveaxis(array, axis, 0)
    step = max(1, _CHUNK * len(along) // max(1, array.size))
    yield from (along[start : start + step] for start in range(0, len(along), step))


def free_memory() -> int:
    """Bytes that programs can still take; 8 GB where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8_000_000_000
