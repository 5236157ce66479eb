"""Weighted sums of overlapping windows, kept only for the planes that open windows still touch."""

from __future__ import annotations

import torch
from torch import Tensor

from medunet.inference.placement import Place, Windows


class Accumulator:
    """Logits of a row of windows and of what it shares with the next.

    Shapes: `sums` (classes, ...) with the row's depth along the windows' axis and the volume's size along the others.
    """

    def __init__(self, windows: Windows, classes: int, importance: Tensor, device: torch.device) -> None:
        self.axis, self.depth = windows.axis, windows.depth
        shape = [self.depth if axis == self.axis else n for axis, n in enumerate(windows.size)]
        self.sums = torch.zeros((classes, *shape), device=device)
        self.weights = torch.zeros(shape, device=device)
        self.importance = importance.to(device)
        self.start = 0

    def add(self, logits: Tensor, place: Place) -> None:
        """Add the voxels that count of a window's logits (classes, *window)."""
        seen = tuple(slice(s.first - s.start, s.stop - s.start) for s in place)
        inside = [slice(s.first, s.stop) for s in place]
        along = place[self.axis]
        inside[self.axis] = slice(along.first - self.start, along.stop - self.start)
        self.sums[(slice(None), *inside)].addcmul_(logits[(slice(None), *seen)], self.importance[seen])
        self.weights[tuple(inside)].add_(self.importance[seen])

    def mean(self, planes: int) -> Tensor:
        """Logits of the first `planes` planes, divided in place; no window may be added to them any more."""
        sums = self.sums.narrow(1 + self.axis, 0, planes)
        return sums.div_(self.weights.narrow(self.axis, 0, planes))

    def advance(self, planes: int) -> None:
        """Forget the first `planes` planes and make room for as many new ones."""
        kept = self.depth - planes
        for volume in (*self.sums, self.weights):  # class by class: the copy is small
            if kept > 0:
                volume.narrow(self.axis, 0, kept).copy_(volume.narrow(self.axis, planes, kept).clone())
            volume.narrow(self.axis, kept, planes).zero_()
        self.start += planes
