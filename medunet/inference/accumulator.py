"""Weighted sums of overlapping windows, kept only where open windows still touch them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medunet.inference.placement import Place, Windows


class Accumulator:
    """Logits of a row of windows, in columns.

    A column has room for all planes of a row while windows touch it, and between rows only for what they share. A
    single one keeps its room.

    Shapes: each of `held` is (classes + 1, ...), the weights last, from plane `start` on.

    Args:
        windows: where windows lie.
        columns: first voxel and the one after the last along `windows.across`, one after the other.
        classes: the network's outputs.
        importance: how much each voxel of a window counts.
        device: where logits are.
    """

    def __init__(
        self,
        windows: Windows,
        columns: Sequence[tuple[int, int]],
        classes: int,
        importance: Tensor,
        device: torch.device,
    ) -> None:
        self.axis, self.across, self.depth = windows.axis, windows.across, windows.depth
        self.columns, self.importance, self.start = columns, importance.to(device), 0
        self.held = []
        for first, stop in columns:
            shape = list(windows.size)
            shape[self.across], shape[self.axis] = stop - first, 0
            self.held.append(torch.zeros((classes + 1, *shape), device=device))

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
                column, weight = self._open(number)[(slice(None), *inside)], self.importance[tuple(seen)]
                column[:-1].addcmul_(logits[(slice(None), *seen)], weight)
                column[-1].add_(weight)

    def _open(self, number: int) -> Tensor:
        """A column with room for a row."""
        held = self.held[number]
        known = held.shape[1 + self.axis]
        if known < self.depth:
            shape = list(held.shape)
            shape[1 + self.axis] = self.depth
            self.held[number] = held.new_zeros(shape)
            self.held[number].narrow(1 + self.axis, 0, known).copy_(held)
        return self.held[number]

    def mean(self, number: int, planes: int) -> Tensor:
        """Logits of a column's first planes, divided in place; no window may be added to them any more."""
        column = self.held[number].narrow(1 + self.axis, 0, planes)
        return column[:-1].div_(column[-1])

    def keep(self, number: int, planes: int) -> None:
        """Forget a column's first planes."""
        column = self.held[number]
        kept = self.depth - planes
        if len(self.columns) > 1:
            self.held[number] = column.narrow(1 + self.axis, planes, kept).clone()
            return
        for volume in column:  # class by class: the copy is small
            if kept > 0:
                volume.narrow(self.axis, 0, kept).copy_(volume.narrow(self.axis, planes, kept).clone())
            volume.narrow(self.axis, kept, planes).zero_()
