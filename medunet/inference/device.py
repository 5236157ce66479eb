"""Where the network runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from medunet.errors import ResourceError


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` takes CUDA where there is one, else the CPU; any other name is taken as it is.

    Raises:
        ResourceError: the device is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.split(":")[0]
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(kind):
        there = ["auto", *(device for device, here in present.items() if here)]
        raise ResourceError(f"device '{name}' is not available on this machine; give {' or '.join(there)}")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ResourceError(f"device '{name}' is not a device; give {kind}, or {kind}:0 and so on") from error
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ResourceError(f"device '{name}' is not available on this machine, whose last is cuda:{last}; give cuda")
    return device


def mixed_type(device: torch.device) -> torch.dtype | None:
    """What a device computes in for mixed precision; None where its hardware has nothing below float32.

    CUDA: bfloat16, or float16 where the card could only emulate that. CPU: bfloat16 where an x86 processor multiplies
    it (AVX-512 BF16, AMX); on Arm nobody measured whether it pays.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type != "cpu":
        return None
    known: Any = getattr(torch.cpu, "get_capabilities", dict)  # missing in older versions, which stay in float32
    able = known()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else None


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device has done what it was given, so that seconds are those of the work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread inside the block, so that sums are made in one order.

    OpenMP's threads also wait for their next task by turning in circles, and take the cores from a network that runs on
    threads of its own (measured: 15 ms of two cores for each 256 x 256 picture).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
