"""Where the network runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from medunet.errors import ResourceError

_PAYS = 0.8  # of float32's time: where bfloat16 pays it takes about 0.5, elsewhere 1.4 to 2
_ROUNDS = 10


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
    it (AVX-512 BF16, AMX) and is faster so, which is measured; on Arm nobody did.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and multiplies_bfloat16() and bfloat16_pays() else None


def multiplies_bfloat16() -> bool:
    """Whether this x86 processor has instructions for it, and need not emulate it."""
    known: Any = getattr(torch.cpu, "get_capabilities", dict)  # missing in older versions, which stay in float32
    able = known()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@lru_cache(maxsize=1)
def bfloat16_pays() -> bool:
    """Whether this processor computes a convolution clearly faster in bfloat16 than in float32 (30 ms, once).

    AMD's multiply it twice as fast; Intel's do with AMX, without which (some virtual machines hide it) AVX-512 BF16 is
    no faster than float32 and rounding comes on top. The answer is the same beside other programs: both kinds take
    turns of a millisecond on one thread, and the fastest counts.
    """
    image, kernels = torch.ones((2, 64, 32, 32)), torch.ones((64, 64, 3, 3))
    given = [(image, kernels), (image.bfloat16(), kernels.bfloat16())]
    best = [float("inf")] * len(given)
    with torch.inference_mode(), one_thread():
        for _ in range(_ROUNDS):
            for number, (values, weights) in enumerate(given):
                start = time.perf_counter()
                torch.nn.functional.conv2d(values, weights, padding=1)
                best[number] = min(best[number], time.perf_counter() - start)
    plain, mixed = best
    return mixed <= _PAYS * plain


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
