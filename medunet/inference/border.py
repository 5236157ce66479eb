"""What lies beyond a volume that is smaller than a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from medunet.data.resampling import Box
from medunet.errors import InputError
from medunet.types import IntArray, Shape

MODES = ("constant", "edge", "mirror")


class Bordered:
    """Reads boxes of a volume that was made larger to at least `least` voxels per axis, half of it on either side.

    Args:
        read: gives (channels, ...) of a box inside `size`.
        mode: ``constant`` (zero: the mean of a normalised image), ``edge`` or ``mirror`` (without repeating the edge).
    """

    def __init__(self, read: Callable[[Box], Tensor], size: Sequence[int], least: Sequence[int], mode: str) -> None:
        if mode not in MODES:
            raise InputError(f"border '{mode}' is not known; give {', '.join(MODES)}")
        self._read, self.inner, self.mode = read, tuple(size), mode
        self.before = tuple(max(0, m - n) // 2 for n, m in zip(size, least, strict=True))
        self.size: Shape = tuple(max(n, m) for n, m in zip(size, least, strict=True))

    def read(self, box: Box) -> Tensor:
        """(channels, ...) of a box of the enlarged volume."""
        if self.size == self.inner:
            return self._read(box)
        places = [np.arange(a - b, z - b) for (a, z), b in zip(box, self.before, strict=True)]
        folded = [fold(p, n, self.mode) for p, n in zip(places, self.inner, strict=True)]
        needed = tuple((int(f.min()), int(f.max()) + 1) for f in folded)
        result = self._read(needed)
        for dim, (place, inside, (first, _), size) in enumerate(zip(places, folded, needed, self.inner, strict=True)):
            result = result.index_select(dim + 1, torch.from_numpy(inside - first))
            outside = (place < 0) | (place >= size)
            if self.mode == "constant" and outside.any():
                result.index_fill_(dim + 1, torch.from_numpy(np.flatnonzero(outside)), 0.0)
        return result


def fold(places: IntArray, size: int, mode: str) -> IntArray:
    """The voxels inside 0 to `size` that stand for `places`, as (n,) indices; `mode` as of `Bordered`."""
    if mode != "mirror" or size == 1:
        return np.clip(places, 0, size - 1)
    period = 2 * (size - 1)
    turned = np.abs(places) % period
    inside: IntArray = np.minimum(turned, period - turned)
    return inside
