"""Weighted sums of overlapping windows, kept only where open windows still touch them."""

from __future__ import annotations

import torch
from torch import Tensor

from medunet.inference.placement import Place, Row, Windows
from medunet.types import Shape


class Accumulator:
    """Logits of a row of windows, in columns.

    A column has room for all planes of a row while windows touch it, and between rows only for what they share. A
    single one keeps its room. Room is made once and used again, so that memory stays in one piece.

    Shapes: a column is (classes + 1, ...), the weights last, from plane `start` on.

    Args:
        windows: where windows lie, and in which columns.
        classes: the network's outputs.
        importance: how much each voxel of a window counts.
        device: where logits are.
    """

    def __init__(self, windows: Windows, classes: int, importance: Tensor, device: torch.device) -> None:
        self.windows, self.columns, self.classes = windows, windows.columns, classes
        self.axis, self.across = windows.axis, windows.across
        self.importance, self.start = importance.to(device), 0
        self._depth, self._shared = windows.depth, windows.shared
        self._open: dict[int, Tensor] = {}
        self._kept: dict[int, Tensor] = {}
        self._room: list[Tensor] = []

    def add(self, logits: Tensor, place: Place) -> None:
        """Add the voxels that count of a window's logits (classes, *window)."""
        seen = [slice(s.first - s.start, s.stop - s.start) for s in place]
        inside = [slice(s.first, s.stop) for s in place]
        inside[self.axis] = slice(place[self.axis].first - self.start, place[self.axis].stop - self.start)
        across = place[self.across]
        for number, (first, stop) in enumerate(self.columns):
            low, high = max(first, across.first), min(stop, across.stop)
            if low < high:
                seen[self.across] = slice(low - across.start, high - across.start)
                inside[self.across] = slice(low - first, high - first)
                column, weight = self._column(number)[(slice(None), *inside)], self.importance[tuple(seen)]
                column[:-1].addcmul_(logits[(slice(None), *seen)], weight)
                column[-1].add_(weight)

    def _column(self, number: int) -> Tensor:
        """A column with room for a row; what the row before left is in it."""
        if number not in self._open:
            self._open[number] = room = self._new(self._shape(number, self._depth))
            kept = self._kept.get(number)
            known = 0 if kept is None else self._shared
            if kept is not None:
                room.narrow(1 + self.axis, 0, known).copy_(kept)
            room.narrow(1 + self.axis, known, self._depth - known).zero_()
        return self._open[number]

    def _shape(self, number: int, planes: int) -> Shape:
        first, stop = self.columns[number]
        sizes = {self.across: stop - first, self.axis: planes}
        return (self.classes + 1, *(sizes.get(axis, n) for axis, n in enumerate(self.windows.size)))

    def _new(self, shape: Shape) -> Tensor:
        """Room of a shape: what another column does not need any more, or new in its place."""
        for number, room in enumerate(self._room):
            if room.shape == shape:
                return self._room.pop(number)
        del self._room[:1]
        return torch.empty(shape, device=self.importance.device)

    def mean(self, number: int, row: Row) -> Tensor:
        """Logits of a column's complete planes, divided in place; no window may be added to them any more."""
        column = self._open[number].narrow(1 + self.axis, 0, row.complete - row.first)
        return column[:-1].div_(column[-1])

    def keep(self, number: int, row: Row) -> None:
        """Forget a column's complete planes."""
        planes = row.complete - row.first
        if len(self.columns) == 1:
            self._shift(planes)
            return
        column = self._open.pop(number)
        self._room.append(column)
        shared = min(self._shared, self._depth - planes)
        if number not in self._kept:
            self._kept[number] = column.new_empty(self._shape(number, self._shared))
        kept = self._kept[number]
        kept.narrow(1 + self.axis, 0, shared).copy_(column.narrow(1 + self.axis, planes, shared))
        kept.narrow(1 + self.axis, shared, self._shared - shared).zero_()

    def _shift(self, planes: int) -> None:
        kept = self._depth - planes
        for volume in self._open[0]:  # class by class: the copy is small
            if kept > 0:
                volume.narrow(self.axis, 0, kept).copy_(volume.narrow(self.axis, planes, kept).clone())
            volume.narrow(self.axis, kept, planes).zero_()
