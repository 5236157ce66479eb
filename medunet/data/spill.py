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


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take: the machine's, and what its control group leaves (a container, a job).

    8 GB where the system does not tell. `root`: where ``proc`` and ``sys`` are.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst ("memory.max") and cgroup-v1/memory.rst.
    """
    free = _numbers(root / "proc/meminfo", "MemAvailable:").get("MemAvailable:", 8_000_000)
    return min([free * 1024, *_left_by_groups(root)])


def _left_by_groups(root: Path) -> Iterator[int]:
    """What each control group around this process leaves; what it holds of files can be given back."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, name = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if kinds else "")
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        own = base / name.strip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(base):
                break
            try:
                most, taken = (int((folder / file).read_text(encoding="utf-8")) for file in (limit, used))
            except (OSError, ValueError):  # "max", no limit; or inside a container, which sees its own group as base
                continue
            files = "total_inactive_file" if kinds else "inactive_file"
            yield max(0, most - taken + _numbers(folder / "memory.stat", files).get(files, 0))


def _numbers(path: Path, *names: str) -> dict[str, int]:
    """Lines ``NAME NUMBER ...`` of a file of the system; nothing where there is none."""
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[0] in names}
    except (OSError, ValueError):
        return {}
