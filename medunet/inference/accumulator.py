"""Weighted sums of overlapping windows, kept only for the planes that open windows still touch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medunet.inference.placement import Windows


class Accumulator:
    """Logits of a row of windows and of what it shares with the next.

    Shapes: `sums` (classes, ...) with the window's extent along the windows' axis and the volume's along the others.
    """

    def __init__(self, windows: Windows, classes: int, importance: Tensor, device: torch.device) -> None:
        self.axis, self.depth = windows.axis, windows.window[windows.axis]
        shape = [self.depth if axis == self.axis else n for axis, n in enumerate(windows.size)]
        self.sums = torch.zeros((classes, *shape), device=device)
        self.weights = torch.zeros(shape, device=device)
        self.importance = importance.to(device)
        self.start = 0

    def add(self, logits: Tensor, place: Sequence[int]) -> None:
        """Add the logits (classes, *window) of the window at `place`."""
        inside = [slice(p, p + n) for p, n in zip(place, logits.shape[1:], strict=True)]
        first = place[self.axis] - self.start
        inside[self.axis] = slice(first, first + logits.shape[1 + self.axis])
        self.sums[(slice(None), *inside)].addcmul_(logits, self.importance)
        self.weights[tuple(inside)].add_(self.importance)

    def mean(self, planes: int) -> Tensor:
        """Logits of the first `planes` planes, divided in place; no window may be added to them any more."""
        sums, weights = self._first(self.sums, 1, planes), self._first(self.weights, 0, planes)
        return sums.div_(weights)

    def advance(self, planes: int) -> None:
        """Forget the first `planes` planes and make room for as many new ones."""
        kept = self.depth - planes
        for volume in (*self.sums, self.weights):  # class by class: the copy is small
            if kept > 0:
                self._first(volume, 0, kept).copy_(volume.narrow(self.axis, planes, kept).clone())
            volume.narrow(self.axis, max(kept, 0), min(planes, self.depth)).zero_()
        self.start += planes

    def _first(self, volume: Tensor, dim: int, planes: int) -> Tensor:
        return volume.narrow(dim + self.axis, 0, planes)
