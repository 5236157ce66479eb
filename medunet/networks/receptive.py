"""How far a network's output looks, measured on the network itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


def output_margin(network: Any, dims: int) -> tuple[int, ...]:
    """By how many voxels the output ends before the input, on either side: the network's own ``margin``, else 0."""
    own = getattr(network, "margin", None)
    return (0,) * dims if own is None else tuple(int(n) for n in own)


def fitting_size(network: Any, size: Sequence[int]) -> tuple[int, ...]:
    """The smallest input of at least `size` that passes: the network's own ``fitting_size``, else by its divisor."""
    own = getattr(network, "fitting_size", None)
    if own is not None:
        return tuple(int(n) for n in own(size))
    divisor = spatial_divisor(network, len(size))
    return tuple(math.ceil(n / d) * d for n, d in zip(size, divisor, strict=True))


def tile_halo(network: nn.Module, dims: int, channels: int = 1) -> Halo | None:
    """How many voxels around its results a tile must see; None where there is no bound.

    A network without padding gives out only what has seen all that it depends on: its margin. Of any other network the
    receptive field is measured, unless it says that it is ``unbounded``.
    """
    if getattr(network, "unbounded", False):
        return None
    margin = output_margin(network, dims)
    if not any(margin):
        return receptive_field(network, dims, channels)
    return tuple((m, m) for m in margin) if _is_bounded(network, dims, channels) else None


def receptive_field(network: nn.Module, dims: int, channels: int = 1) -> Halo | None:
    """How many voxels before and after it an output voxel depends on, per axis; None where there is no bound.

    One plane of the input becomes NaN, and all that depends on it becomes NaN too; this is repeated for every phase of
    the network's strides. Instance, group and layer normalisation see everything: there is no bound.
    """
    with _evaluating(network):
        halo = []
        for axis, step in enumerate(spatial_divisor(network, dims)):
            shape = _bounding_shape(network, dims, axis, channels)
            if shape is None:
                return None
            size = [*shape[:axis], shape[axis] + 2 * step, *shape[axis + 1 :]]
            reach = _reach(network, fitting_size(network, size), axis, channels, range(step))
            if reach is None:
                return None
            halo.append(reach)
        return tuple(halo)


def _is_bounded(network: nn.Module, dims: int, channels: int) -> bool:
    with _evaluating(network):
        return all(_bounding_shape(network, dims, axis, channels) is not None for axis in range(dims))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(training)


def _bounding_shape(network: nn.Module, dims: int, axis: int, channels: int) -> tuple[int, ...] | None:
    """An input in which the middle plane along `axis` does not reach the output's ends; None when none is found."""
    step, margin = spatial_divisor(network, dims)[axis], output_margin(network, dims)[axis]
    length = 8 * step
    while length <= _LONGEST:
        shape = fitting_size(network, [length + 2 * margin if a == axis else 1 for a in range(dims)])
        if _reach(network, shape, axis, channels, [0]) is not None:
            return shape
        length *= 2
    return None


def _reach(
    network: nn.Module, shape: Sequence[int], axis: int, channels: int, phases: Sequence[int]
) -> tuple[int, int] | None:
    """(before, after) over inputs of `shape` with a plane of NaN around the middle; None when it reaches an end."""
    step, margin = spatial_divisor(network, len(shape))[axis], output_margin(network, len(shape))[axis]
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
        before, after = max(before, last + margin - place), max(after, place - first - margin)
    return before, after
