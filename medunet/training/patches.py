"""Where a patch is cut: half at random, half around a labelled voxel. Drawing is apart from cutting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medunet.data.resampling import Box
from medunet.training.entry import Entry
from medunet.types import Shape


@dataclass(frozen=True)
class Cut:
    """First voxel of a patch, per axis; negative where the patch begins before the volume. And the patch's size."""

    start: Shape
    size: Shape

    def box(self, extent: Sequence[int]) -> Box:
        """The voxels of a region of `extent` that has the patch in its middle."""
        starts = [s - (e - p) // 2 for s, p, e in zip(self.start, self.size, extent, strict=True)]
        return tuple((s, s + e) for s, e in zip(starts, extent, strict=True))


class CutPatch:
    """Draw where a patch of `patch_size` lies: inside the volume, or around it where the volume is smaller.

    With probability `foreground` the patch is centred on a voxel of a class drawn uniformly from those present, as far
    as the volume's ends allow. Of a case that is annotated in part, the others are centred on an annotated voxel. A
    smaller volume lies in the middle of the patch, as it does in an inference window. A 2D `patch_size` is one slice
    along z.

    Args:
        margin: voxels that a network without padding leaves out at either end of a patch; patches reach so far beyond
            the volume, so that every voxel can be in an output.
    """

    def __init__(self, patch_size: Sequence[int], foreground: float = 0.5, margin: Sequence[int] = (0, 0, 0)) -> None:
        self.margin = tuple(int(n) for n in margin)
        self.flat = len(patch_size) == 2
        self.size: Shape = (*(int(n) for n in patch_size), 1) if self.flat else tuple(int(n) for n in patch_size)
        self.foreground = float(foreground)

    def draw(self, generator: np.random.Generator, case: Entry) -> Cut:
        """Draw a cut for a stored case."""
        wide = [n + 2 * m for n, m in zip(case.shape, self.margin, strict=True)]
        before = [max(0, p - n) // 2 + m for n, p, m in zip(wide, self.size, self.margin, strict=True)]
        room = [max(0, n - p) for n, p in zip(wide, self.size, strict=True)]
        value = self._value(generator, case.header.classes)
        if value is not None:
            centre = case.voxel(value, int(generator.integers(case.header.classes[value])))
            places = [c + b - p // 2 for c, b, p in zip(centre, before, self.size, strict=True)]
            start = [min(max(s, 0), r) - b for s, r, b in zip(places, room, before, strict=True)]
        else:
            start = [int(generator.integers(r + 1)) - b for r, b in zip(room, before, strict=True)]
        return Cut(tuple(start), self.size)

    def _value(self, generator: np.random.Generator, noted: Mapping[int, int]) -> int | None:
        """The class to centre on; 0: any annotated voxel, where not all are; None: anywhere."""
        classes = [value for value in noted if value]
        if classes and generator.random() < self.foreground:
            return classes[generator.integers(len(classes))]
        return 0 if noted.get(0) else None


class Draw(Protocol):
    """What an augmentation drew; `extent` is the size of the region, per axis, that it makes a patch of."""

    @property
    def extent(self) -> Shape:
        """Voxels per axis; at least the patch."""


class Augment(Protocol):
    """Draws its parameters, then applies them to image and label."""

    def draw(self, generator: np.random.Generator) -> Any:
        """A `Draw`; the generator is all the chance there is."""

    def apply(self, draw: Any, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """(channels, *extent) and (1, *extent) -> (channels, *patch) and (1, *patch)."""


def to_tensors(image: Any, label: Any, flat: bool) -> tuple[Tensor, Tensor]:
    """A region as it was read, without the axis of its one slice when `flat`."""
    first, second = torch.from_numpy(image), torch.from_numpy(label)
    return (first[..., 0], second[..., 0]) if flat else (first, second)
