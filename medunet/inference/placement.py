"""Where windows lie, in which order they run, and how much each of their voxels counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor

from medunet.types import Shape


@dataclass(frozen=True)
class Windows:
    """Windows over a volume, a row after the other along one axis: what lies below a row is complete when it begins.

    Args:
        size: voxels of the volume, at least those of a window.
        window: voxels of a window.
        axis: the axis that rows follow each other along.
        starts: first voxels of the windows, per axis.
    """

    size: Shape
    window: Shape
    axis: int
    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def place(cls, size: Sequence[int], window: Sequence[int], overlap: float) -> Windows:
        """Windows as MONAI's sliding window places them, in rows along the axis that needs the least memory."""
        starts = tuple(axis_starts(n, w, overlap) for n, w in zip(size, window, strict=True))
        return cls(tuple(size), tuple(window), slow_axis(size, window), starts)

    @property
    def count(self) -> int:
        """How many there are."""
        return math.prod(len(s) for s in self.starts)

    def rows(self) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
        """(first plane, windows' first voxels) of each row."""
        for start in self.starts[self.axis]:
            places = [(start,) if axis == self.axis else self.starts[axis] for axis in range(len(self.size))]
            yield start, list(product(*places))


def axis_starts(size: int, window: int, overlap: float) -> tuple[int, ...]:
    """First voxels of windows along an axis; the last one ends with the axis.

    >>> axis_starts(100, 40, 0.5)
    (0, 20, 40, 60)
    """
    step = max(1, int(window * (1.0 - overlap)))
    count = max(1, math.ceil((size - window) / step) + 1)
    return tuple(min(n * step, size - window) for n in range(count))


def slow_axis(size: Sequence[int], window: Sequence[int]) -> int:
    """The last axis if it is at least two windows long, so that memory does not grow with the number of slices.

    Otherwise the axis along which a row of windows holds the fewest voxels.
    """
    last = len(size) - 1
    if size[last] >= 2 * window[last]:
        return last
    return min(range(len(size)), key=lambda axis: (window[axis] / size[axis], axis != last))


def importance(window: Sequence[int], mode: str) -> Tensor:
    """How much each voxel of a window counts (``gaussian``: sigma an eighth of the window, as MONAI; or ``constant``)."""
    weights: Tensor = compute_importance_map(tuple(window), mode=mode, sigma_scale=0.125)
    return weights
