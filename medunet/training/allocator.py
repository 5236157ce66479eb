"""Memory that a step frees stays with the process: the next step needs as much."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_NEVER, _LARGEST = 2**31 - 1, 512 << 20  # bytes


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 512 MB instead of handing their pages back to the system.

    By default it returns the large ones at once and gets them again as new pages, which the system fills with zeros
    one by one: a tenth to a fifth of a training step on the CPU (docs/benchmarks.md). Values are the same. Other C
    libraries and allocators are left as they are.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)


def return_freed_memory() -> None:
    """Hand back what is kept: after something that is seldom done and needs more than a step."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library of the process, where that is glibc."""
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # Windows has no such handle
        return None
