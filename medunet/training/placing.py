"""Where and how the trained network runs: its device, the order of its weights in memory, compiled or not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medunet.errors import ResourceError


def place(network: nn.Module, device: torch.device, channels_last: bool = False, compile: bool = False) -> nn.Module:
    """The network on `device`; it stays the same object with the same names and shapes of weights.

    So a checkpoint does not tell how it was trained, and a run may be resumed with other choices. Copies of the network
    (its average, an export) are not compiled.

    Args:
        network: any module with 2D or 3D convolutions.
        device: where it runs.
        channels_last: keep the channels of a voxel together (2D: ``torch.channels_last``, 3D: ``channels_last_3d``).
        compile: let ``torch.compile`` make the program of each pass when it first runs.

    Raises:
        ResourceError: `compile`, and a compiler is not on this machine.
    """
    network = network.to(device)
    if channels_last:
        _reorder(network)
    if compile:
        _require_compiler(device)
        _compile(network)
    return network


def compiled_like(network: nn.Module, original: nn.Module) -> nn.Module:
    """A copy of `original`, compiled where that is."""
    inner: Any = original
    if getattr(inner, "_compiled_call_impl", None) is not None:
        _compile(network)
    return network


def _compile(network: nn.Module) -> None:
    """For the one size that batches of training have: torch 2.13's programs for all sizes fail in 3D."""
    network.compile(dynamic=False)


def _reorder(network: nn.Module) -> None:
    for weight in network.parameters():
        if weight.ndim in (4, 5):
            weight.data = weight.data.contiguous(
                memory_format=torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
            )


def _require_compiler(device: torch.device, which: Callable[[str], str | None] = shutil.which) -> None:
    """Torch's programs for the CPU are C++; those for CUDA are Triton's, started by a little C."""
    cpu = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    cuda = (os.environ.get("CC", "gcc"), "gcc", "clang")
    found = which(cpu) if device.type != "cuda" else next((name for name in cuda if which(name)), None)
    if found is None:
        name = cpu if device.type != "cuda" else cuda[0]
        raise ResourceError(
            f"compile needs the compiler {name}, which is not on this machine; install it or train without compile"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ResourceError("compile on CUDA needs triton; pip install triton or train without compile")
