"""Freed memory stays with the process until it is handed back; each in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

PAGES = """
import resource, torch
from medunet.training.allocator import keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(48 << 20, dtype=torch.uint8) + 1  # glibc never keeps blocks over 32 MB by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def megabytes():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) // 1024

faults()
first = faults()
keep_freed_memory()
faults()
second, kept = faults(), megabytes()
return_freed_memory()
print(first, second, kept - megabytes())
"""


def test_a_step_gets_the_memory_of_the_one_before() -> None:
    told = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True).stdout
    first, second, returned = map(int, told.split())
    assert first > 100  # blocks of 48 MB, 4 KB at a time, or 2 MB where the system has huge pages
    assert second < first / 5
    assert returned > 60
