"""What every backend is, and what they share."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Backend(Protocol):
    """Logits of windows.

    `name` is what is shown and stored; `device` is where windows are wanted and logits come out.

    Shapes: (n, channels, *window) float32 on `device` -> (n, classes, *window) float32 on `device`; n varies. Logits
    may be changed in place, and are those of the next call after it. `streams`: how many windows run side by side.
    """

    name: str
    device: torch.device
    streams: int

    def __call__(self, windows: Tensor) -> Tensor:
        """The logits of a batch of windows."""
        ...


class Conversion(Backend, Protocol):
    """A backend that converts the network; `converted`: now, and not in an earlier call or somewhere else."""

    converted: bool


def full_output(result: Any) -> Tensor:
    """The full-resolution output of a network that may return several, highest resolution first."""
    first: Tensor = result[0] if isinstance(result, (list, tuple)) else result
    return first


def example_window(window: Sequence[int], channels: int, seed: int = 0) -> Tensor:
    """The same noise every time: (1, channels, *window) float32 on the CPU; networks are converted with seed 0."""
    return torch.randn((1, channels, *window), generator=torch.Generator().manual_seed(seed))


def copy_for_export(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode on the CPU with a single output; the original keeps its mode."""
    return _SingleOutput(copy.deepcopy(network).cpu()).eval()


class _SingleOutput(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows: Tensor) -> Tensor:
        return full_output(self.network(windows))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks of tracing and exporting, on sizes taken as constant and on the exporter's own future."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
