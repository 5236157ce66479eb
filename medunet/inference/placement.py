"""Where windows lie, in which order they run, and how much each of their voxels counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor

from medunet.errors import NetworkError
from medunet.types import Shape


@dataclass(frozen=True)
class Span:
    """A window along one axis: it sees voxels from `start` on; those from `first` to before `stop` count."""

    start: int
    first: int
    stop: int


Place = tuple[Span, ...]
"""A window, a span per axis."""


@dataclass(frozen=True)
class Row:
    """Windows that run one after the other; all planes before `first` are complete when they begin.

    They see planes from `start` to `end` and count in those from `first` to `stop`; when they have run, planes before
    `complete` are. Along the axis that columns lie side by side on, no window begins before an earlier one.
    """

    start: int
    end: int
    first: int
    stop: int
    complete: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Windows:
    """Windows over a volume, in rows along one axis.

    Args:
        size: voxels of the volume, at least those of a window.
        window: voxels of a window.
        spans: the windows along each axis.
        axis: the axis that rows follow each other along.
        group: how many consecutive windows along that axis make one row.
        columned: whether sums are held in columns.
        joined: whether the last row, which may share much with the one before, is part of it.
    """

    size: Shape
    window: Shape
    spans: tuple[tuple[Span, ...], ...]
    axis: int
    group: int = 1
    columned: bool = False
    joined: bool = False

    @property
    def count(self) -> int:
        """How many there are."""
        return math.prod(len(s) for s in self.spans)

    @property
    def depth(self) -> int:
        """The most planes that are open at a time."""
        return max(row.stop - row.first for row in self.rows())

    @property
    def shared(self) -> int:
        """The most planes that windows of a row and of the next count in."""
        return max(row.stop - row.complete for row in self.rows())

    @property
    def across(self) -> int:
        """The axis that columns lie side by side on: the one that is most windows long, not counting `axis`."""
        return _least([axis for axis in range(len(self.size)) if axis != self.axis], self.size, self.window)

    @property
    def columns(self) -> tuple[tuple[int, int], ...]:
        """Bounds along `across` of the parts in which no window begins or ends to count."""
        bounds = {0, self.size[self.across]}
        if self.columned:
            bounds |= {bound for span in self.spans[self.across] for bound in (span.first, span.stop)}
        return tuple(pairwise(sorted(bounds)))

    @property
    def held(self) -> int:
        """Voxels that an accumulator has room for when it is given windows one by one."""
        area = math.prod(n for axis, n in enumerate(self.size) if axis not in (self.axis, self.across))
        length = self.size[self.across]
        if not self.columned:
            return area * self.depth * length
        return area * (self.shared * length + self.depth * max(s.stop - s.first for s in self.spans[self.across]))

    def in_one_row(self) -> Windows:
        """The same windows as one row: all planes are open until the end."""
        return replace(self, group=len(self.spans[self.axis]))

    def in_columns(self) -> Windows:
        """The same windows in columns, where that holds less."""
        columned = replace(self, columned=True)
        return min(self, columned, replace(columned, joined=True), key=lambda windows: windows.held)

    def rows(self) -> Iterator[Row]:
        """The rows in their order."""
        along = self.spans[self.axis]
        bounds = [*range(0, len(along), self.group), len(along)]
        if self.joined and len(bounds) > 2:
            del bounds[-2]
        for n, after in pairwise(bounds):
            chosen = along[n:after]
            spans = [chosen if axis == self.axis else s for axis, s in enumerate(self.spans)]
            spans.insert(0, spans.pop(self.across))
            places = []
            for first, *others in product(*spans):
                others.insert(self.across, first)
                places.append(tuple(others))
            end, stop = chosen[-1].start + self.window[self.axis], max(s.stop for s in chosen)
            complete = along[after].first if after < len(along) else self.size[self.axis]
            yield Row(chosen[0].start, end, chosen[0].first, stop, complete, tuple(places))


def overlapping(size: Sequence[int], window: Sequence[int], overlap: float, group: int = 1) -> Windows:
    """Windows that share a fraction `overlap` with the next, placed as MONAI's sliding window places them.

    `group` slices make a row where a window is one slice thick.
    """
    spans = tuple(
        tuple(Span(start, start, start + w) for start in axis_starts(n, w, overlap))
        for n, w in zip(size, window, strict=True)
    )
    axis = slow_axis(size, window)
    return Windows(tuple(size), tuple(window), spans, axis, group if window[axis] == 1 else 1)


def axis_starts(size: int, window: int, overlap: float) -> tuple[int, ...]:
    """First voxels of windows along an axis; the last one ends with the axis.

    >>> axis_starts(100, 40, 0.5)
    (0, 20, 40, 60)
    """
    step = max(1, int(window * (1.0 - overlap)))
    count = max(1, math.ceil((size - window) / step) + 1)
    return tuple(min(n * step, size - window) for n in range(count))


def tiles(
    size: Sequence[int], window: Sequence[int], halo: Sequence[tuple[int, int]], divisor: Sequence[int]
) -> Windows:
    """Windows whose counted voxels do not overlap and see all that their result depends on (overlap-tile).

    Source: Ronneberger, Fischer, Brox 2015 (doi:10.1007/978-3-319-24574-4_28), section 2 and figure 2.

    Args:
        size: a multiple of `divisor` per axis, at least `window`.
        halo: how many voxels before and after a voxel its result depends on.
        divisor: windows begin at multiples of it, so that pooling meets the same voxels as in the whole volume.

    Raises:
        NetworkError: a window has no voxel whose surroundings it sees whole.
    """
    spans = tuple(_axis_tiles(*axis) for axis in zip(size, window, halo, divisor, strict=True))
    return Windows(tuple(size), tuple(window), spans, slow_axis(size, window))


def _axis_tiles(size: int, window: int, halo: tuple[int, int], divisor: int) -> tuple[Span, ...]:
    spans = [Span(0, 0, size if window == size else window - halo[1])]
    while spans[-1].stop < size:
        first = spans[-1].stop
        start = min((first - halo[0]) // divisor * divisor, size - window)
        stop = size if start + window == size else start + window - halo[1]
        if stop <= first:
            raise NetworkError(
                f"a window of {window} voxels is too small for exact tiles: a result depends on {halo[0]} voxels "
                f"before and {halo[1]} after it; take windows of at least {sum(halo) + 2 * divisor}"
            )
        spans.append(Span(start, first, stop))
    return tuple(spans)


def slow_axis(size: Sequence[int], window: Sequence[int]) -> int:
    """The last axis if it is at least two windows long, so that memory does not grow with the number of slices.

    Otherwise the axis along which a row of windows holds the fewest voxels; of equal ones the later, the slower one
    in files.
    """
    last = len(size) - 1
    if size[last] >= 2 * window[last]:
        return last
    return _least(range(last, -1, -1), size, window)


def _least(axes: Sequence[int], size: Sequence[int], window: Sequence[int]) -> int:
    """The axis along which a window is the smallest part of the volume; of equal ones the first given."""
    return min(axes, key=lambda axis: window[axis] / size[axis])


def importance(window: Sequence[int], mode: str) -> Tensor:
    """How much each voxel of a window counts: ``gaussian`` (sigma: an eighth of it, as MONAI) or ``constant``."""
    return torch.as_tensor(compute_importance_map(tuple(window), mode=mode, sigma_scale=0.125))
