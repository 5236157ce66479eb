"""How far a network's output looks, measured on the network itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_LONGEST = 1024  # voxels; a network that looks farther counts as unbounded
_UNKNOWN_DIVISOR = 32  # of networks that do not say: a multiple of what common ones need

Halo = tuple[tuple[int, int], ...]
"""Voxels before and after an output voxel that it depends on, per axis."""


def spatial_divisor(network: Any, dims: int) -> tuple[int, ...]:
    """What input sizes must be divisible by: the network's own ``spatial_divisor``, else 32."""
    own = getattr(network, "spatial_divisor", None)
    return (_UNKNOWN_DIVISOR,) * dims if own is None else tuple(int(n) for n in own)


def receptive_field(network: nn.Module, dims: int, channels: int = 1) -> Halo | None:
    """How many voxels before and after it an output voxel depends on, per axis; None where there is no bound.

    One plane of the input becomes NaN, and all that depends on it becomes NaN too; this is repeated for every phase of
    the network's strides. Instance, group and layer normalisation see everything: there is no bound.
    """
    divisor = spatial_divisor(network, dims)
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            return _halo(network, divisor, channels)
    finally:
        network.train(training)


def _halo(network: nn.Module, divisor: Sequence[int], channels: int) -> Halo | None:
    halo = []
    for axis, step in enumerate(divisor):
        shape = list(divisor)
        shape[axis] = 8 * step
        while (reach := _reach(network, shape, axis, channels, [0])) is None and 2 * shape[axis] <= _LONGEST:
            shape[axis] *= 2
        if reach is None:
            return None
        shape[axis] += 2 * step
        phases = _reach(network, shape, axis, channels, range(step))
        if phases is None:
            return None
        halo.append(phases)
    return tuple(halo)


def _reach(
    network: nn.Module, shape: Sequence[int], axis: int, channels: int, phases: Sequence[int]
) -> tuple[int, int] | None:
    """(before, after) over inputs of `shape` with a plane of NaN around the middle; None when it reaches an end."""
    step = max(1, shape[axis] // 8)
    before = after = 0
    for phase in phases:
        place = shape[axis] // 2 // step * step + phase
        image = torch.zeros((1, channels, *shape), device=next((p.device for p in network.parameters()), None))
        image.select(axis + 2, place).fill_(float("nan"))
        lost = torch.isnan(network(image)).amax(dim=[d for d in range(len(shape) + 2) if d != axis + 2])
        places = torch.nonzero(lost)[:, 0]
        first, last = int(places[0]), int(places[-1])
        if first == 0 or last == len(lost) - 1:
            return None
        before, after = max(before, last - place), max(after, place - first)
    return before, after
