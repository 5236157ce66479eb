"""From planes of class probabilities on the network's grid to a label map on the file's own grid.

What is interpolated is the logarithm of probabilities, not below `FLOOR`. Between two voxels that are sure of different
classes, probabilities have their border half-way whatever the network said; logarithms place it where the network was
undecided (nnU-Net interpolates logits). The floor keeps a class that is nowhere probable from winning between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from medunet.data.resampling import Box, Resampling
from medunet.data.spill import zeros
from medunet.inference.outputs import are_classes
from medunet.types import AnyArray, IntArray, Shape

FLOOR = -7.0
"""Lowest logarithm of a probability (about 1/1000); the logits of regions lie between it and its opposite."""

_ABOVE = FLOOR + 1e-4  # what a logarithm's last digit may lift off the floor still cannot win
_CHUNK = 2_000_000  # voxels of the label map that are made at a time
_LABEL_TYPES = (np.uint8, np.int16, np.int32)

Sink = Callable[[int, Box, Tensor], None]
"""Takes the probabilities (...) of a class on a box of the file's grid."""


class Restorer:
    """Interpolates evidence linearly onto the file's grid and keeps the strongest class of every voxel.

    Planes come in order along `axis` of the network's grid; of those that were used, at most one is kept. Memory holds
    the label map and a few chunks of one class. A class is only looked at where it is above the floor, which is exact:
    at the floor all around it cannot win. Ties go to the lower one. Regions (`outputs`) are logits with threshold 0.

    Args:
        resampling: from the network's grid (source) to the file's (target).
        values: stored value per class, background first.
        labels: where the label map goes, (x, y, z) on the target's grid, `blank` before; null: a new one.
        sink: takes all probabilities on the file's grid, if wanted.
    """

    def __init__(
        self,
        resampling: Resampling,
        axis: int,
        values: Sequence[int],
        labels: AnyArray | None = None,
        sink: Sink | None = None,
    ) -> None:
        self.resampling, self.axis, self.sink = resampling, axis, sink
        self.labels = blank(resampling.target.shape, values) if labels is None else labels
        self.values = np.array(values, dtype=self.labels.dtype)
        self._kept: Tensor | None = None
        self._first = self._stop = 0
        self._done = 0
        self.classes = True

    @property
    def takes_labels(self) -> bool:
        """Whether label numbers are enough: nothing is interpolated, and probabilities go nowhere."""
        return self.sink is None and self.resampling.rearranges

    def put_labels(self, winners: Tensor) -> None:
        """Take the label numbers (...) of the next complete planes; see `takes_labels`."""
        self._stop += winners.shape[self.axis]
        for start, stop in self._chunks(*self._ready()):
            self._rearrange(winners, start, stop)

    def put(self, probabilities: Tensor) -> None:
        """Take the next complete planes (outputs, ...), the volume's size along the other axes; they are changed."""
        self.classes = are_classes(len(probabilities), len(self.values))
        self._stop += probabilities.shape[1 + self.axis]
        planes = evidence(probabilities, self.classes)
        for start, stop in self._chunks(*self._ready()):
            self._label(planes, start, stop)
        self._keep(planes)

    @property
    def _column(self) -> int:
        """The axis of the file that runs along `axis`; any, where none does."""
        maps = self.resampling.maps
        return 2 if maps is None else next(c for c, m in enumerate(maps) if m.source_axis == self.axis)

    def _top(self) -> IntArray:
        """For each plane of the file, the first plane of the network's that it does not need any more."""
        size = self.resampling.target.shape[self._column]
        if self.resampling.maps is None:
            return np.full(size, self.resampling.source.shape[self.axis])
        axis = self.resampling.maps[self._column]
        top: IntArray = axis.low + (axis.weight > 0) + 1
        return top

    def _ready(self) -> tuple[int, int]:
        """The planes of the file that can be made now and could not before."""
        top = self._top()
        ready = int(np.count_nonzero(top <= self._stop))
        before, self._done = self._done, ready
        size = len(top)
        return (before, ready) if top[0] <= top[-1] else (size - ready, size - before)

    def _chunks(self, start: int, stop: int) -> list[tuple[int, int]]:
        shape = self.resampling.target.shape
        step = max(1, _CHUNK * shape[self._column] // math.prod(shape))
        return [(n, min(n + step, stop)) for n in range(start, stop, step)]

    def _box(self, start: int, stop: int) -> Box:
        return tuple((start, stop) if c == self._column else (0, n) for c, n in enumerate(self.resampling.target.shape))

    def _rearrange(self, winners: Tensor, start: int, stop: int) -> None:
        box, origin = self._box(start, stop), [0, 0, 0]
        origin[self.axis] = self._stop - winners.shape[self.axis]
        found = self.resampling(winners[None], origin, box, nearest=True)[0]
        if found.any():  # else it stays blank
            self.labels[tuple(slice(*bounds) for bounds in box)] = self.values[found.cpu().numpy()]

    def _label(self, planes: Tensor, start: int, stop: int) -> None:
        box = self._box(start, stop)
        needed = self.resampling.needs(box)
        parts = _Parts(self, planes, needed)
        if self.sink is not None:
            _pour(parts, box, self.sink)
        winners = _winners(parts, box)
        if winners is not None:
            region, classes = winners
            self.labels[tuple(slice(*bounds) for bounds in region)] = self.values[classes.cpu().numpy()]

    def _keep(self, planes: Tensor) -> None:
        """Keep the planes that planes of the file still to come need."""
        top = self._top()
        waiting = top > self._stop
        if not waiting.any():
            self._kept, self._first = None, self._stop
            return
        if self.resampling.maps is None:
            first = 0
        else:
            first = min(int(self.resampling.maps[self._column].low[waiting].min()), self._stop)
        count = self._stop - first
        new = planes.shape[1 + self.axis]
        if count <= new:
            self._kept = planes.narrow(1 + self.axis, new - count, count).clone()
        elif self._kept is not None:
            old = self._kept.narrow(1 + self.axis, first - self._first, count - new)
            self._kept = torch.cat([old, planes], dim=1 + self.axis)
        self._first = first

    def planes(self, planes: Tensor, number: int, start: int, stop: int) -> Tensor:
        """Planes `start` to `stop` of a class, of what was kept and what is new."""
        new = planes[number]
        offset = self._stop - new.shape[self.axis]
        if start >= offset:
            return new.narrow(self.axis, start - offset, stop - start)
        if self._kept is None:
            raise AssertionError("planes were dropped that are needed")
        old = self._kept[number].narrow(self.axis, start - self._first, min(stop, offset) - start)
        return old if stop <= offset else torch.cat([old, new.narrow(self.axis, 0, stop - offset)], dim=self.axis)


class _Parts:
    """The evidence that a box of the file's grid needs, class by class."""

    def __init__(self, restorer: Restorer, evidence: Tensor, needed: Box) -> None:
        self.restorer, self.evidence, self.needed = restorer, evidence, needed
        self.outputs, self.exclusive = evidence.shape[0], restorer.classes
        self._current: tuple[int, Tensor] | None = None

    def part(self, number: int) -> Tensor:
        """(...) voxels of the network's grid, those in `needed`."""
        if self._current is None or self._current[0] != number:
            axis = self.restorer.axis
            planes = self.restorer.planes(self.evidence, number, *self.needed[axis])
            inside = [slice(None) if a == axis else slice(*bounds) for a, bounds in enumerate(self.needed)]
            self._current = (number, planes[tuple(inside)])
        return self._current[1]

    def sample(self, number: int, box: Box) -> Tensor:
        """(...) evidence of a class on a box of the file's grid."""
        result = self.restorer.resampling(self.part(number)[None], [start for start, _ in self.needed], box)
        return result[0].to(self.evidence.device)

    def region(self, number: int, floor: float, box: Box) -> Box | None:
        """The part of `box` in which the class can lie above `floor`; None where it can nowhere."""
        maps = self.restorer.resampling.maps
        found = _bounds(self.part(number) > floor)
        if found is None or maps is None:
            return box if found is not None else None
        region = []
        for (start, stop), axis in zip(box, maps, strict=True):
            low, high = (bound + self.needed[axis.source_axis][0] for bound in found[axis.source_axis])
            first, last = axis.low[start:stop], axis.low[start:stop] + (axis.weight[start:stop] > 0)
            touched = np.flatnonzero((last >= low) & (first < high))
            if not len(touched):
                return None
            region.append((start + int(touched[0]), start + int(touched[-1]) + 1))
        return tuple(region)


def _winners(parts: _Parts, box: Box) -> tuple[Box, Tensor] | None:
    """The label number of every voxel of the box that this returns; background outside it."""
    first, floor = (1, _ABOVE) if parts.exclusive else (0, 0.0)
    places = {n: place for n in range(first, parts.outputs) if (place := parts.region(n, floor, box)) is not None}
    if not places:
        return None
    union = tuple((min(p[a][0] for p in places.values()), max(p[a][1] for p in places.values())) for a in range(3))
    best = parts.sample(0, union).clone() if parts.exclusive else torch.zeros(())
    winner = torch.zeros([stop - start for start, stop in union], dtype=torch.int16, device=parts.evidence.device)
    for number, place in places.items():
        inside = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(place, union, strict=True))
        candidate = parts.sample(number, place)
        if parts.exclusive:
            winner[inside].masked_fill_(candidate > best[inside], number)
            torch.maximum(best[inside], candidate, out=best[inside])
        else:
            winner[inside].masked_fill_(candidate > 0, number + 1)
    return union, winner


def evidence(probabilities: Tensor, classes: bool) -> Tensor:
    """Logarithms of the probabilities of classes (outputs, ...), from `FLOOR` on, or logits of regions; in place."""
    if not classes:
        return probabilities.logit_(math.exp(FLOOR))
    return probabilities.clamp_(math.exp(FLOOR)).log_().clamp_(FLOOR)


def _pour(parts: _Parts, box: Box, sink: Sink) -> None:
    """Hand over the probabilities of all outputs on a box of the file's grid."""
    if not parts.exclusive:
        for number in range(parts.outputs):
            sink(number, box, parts.sample(number, box).sigmoid())
        return
    total = torch.zeros(())
    for number in range(parts.outputs):
        total = total + parts.sample(number, box).exp()
    for number in range(parts.outputs):
        sink(number, box, parts.sample(number, box).exp().div(total))


def _bounds(mask: Tensor) -> Box | None:
    """The box around the true voxels of (x, y, z)."""
    bounds: list[tuple[int, int]] = []
    array = mask.numpy() if mask.device.type == "cpu" else None  # many times faster there
    for axis in range(3):
        first, second = (a for a in range(3) if a != axis)
        line = mask.any(second).any(first).cpu().numpy() if array is None else array.any((first, second))
        places = np.flatnonzero(line)
        if not len(places):
            return None
        bounds.append((int(places[0]), int(places[-1]) + 1))
    return tuple(bounds)


def blank(shape: Shape, values: Sequence[int]) -> AnyArray:
    """A label map of background, in the smallest type that holds all `values`; a very large one lies in a file."""
    low, high = min(values), max(values)
    kind = next((t for t in _LABEL_TYPES if np.iinfo(t).min <= low and high <= np.iinfo(t).max), np.int64)
    labels = zeros(shape, kind, "F")
    if values[0]:
        labels[...] = values[0]
    return labels
