"""Where a patch is cut: half at random, half around a labelled voxel. Drawing is apart from cutting."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from torch import Tensor

_MOST_LOCATIONS = 5_000  # per class and case


class ClassLocations(Transform):
    """Note up to 5000 voxels of each foreground class as ``locations``: {class: (n, 3) int32}; drop the meta data.

    The last deterministic step: what it leaves is plain tensors that a cache holds cheaply.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        label = _plain(data["label"])
        found = torch.nonzero(label[0])
        classes = label[0][tuple(found.T)]
        locations = {}
        for value in torch.unique(classes).tolist():
            places = found[classes == value]
            step = -(-len(places) // _MOST_LOCATIONS)
            locations[int(value)] = places[::step].to(torch.int32).numpy()
        return {"image": _plain(data["image"]), "label": label, "locations": locations}


@dataclass(frozen=True)
class Cut:
    """First voxel of a patch, per axis."""

    start: tuple[int, ...]


class CutPatch(MapTransform, Randomizable):
    """Cut a patch of `patch_size` from `image` and `label` (channels, x, y, z), padded before to at least that size.

    With probability `foreground` the patch is centred on a voxel of a class drawn uniformly from those present.
    A 2D `patch_size` cuts one slice along z and drops that axis.
    """

    def __init__(self, patch_size: Sequence[int], foreground: float = 0.5) -> None:
        MapTransform.__init__(self, ("image", "label"))
        self.flat = len(patch_size) == 2
        self.size = (*(int(n) for n in patch_size), 1) if self.flat else tuple(int(n) for n in patch_size)
        self.foreground = float(foreground)

    def draw(self, shape: Sequence[int], locations: Mapping[int, Any]) -> Cut:
        """Draw a cut for a volume of `shape`."""
        room = [n - p for n, p in zip(shape, self.size, strict=True)]
        if locations and self.R.random() < self.foreground:
            places = locations[list(locations)[self.R.randint(len(locations))]]
            centre = places[self.R.randint(len(places))]
            start = [int(np.clip(c - p // 2, 0, r)) for c, p, r in zip(centre, self.size, room, strict=True)]
        else:
            start = [int(self.R.randint(r + 1)) for r in room]
        return Cut(tuple(start))

    def apply(self, volume: Tensor, cut: Cut) -> Tensor:
        """Cut one tensor."""
        box = tuple(slice(s, s + p) for s, p in zip(cut.start, self.size, strict=True))
        patch = volume[(slice(None), *box)]
        return patch[..., 0] if self.flat else patch

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        cut = self.draw(data["image"].shape[1:], data["locations"])
        return {key: self.apply(data[key], cut) for key in self.keys}


class RandMirrord(MapTransform, Randomizable):
    """Mirror `image` and `label` along each of `axes` with probability one half."""

    def __init__(self, axes: Sequence[int]) -> None:
        MapTransform.__init__(self, ("image", "label"))
        self.axes = tuple(axes)

    def draw(self) -> list[int]:
        """Draw the tensor dimensions to flip."""
        return [axis + 1 for axis in self.axes if self.R.random() < 0.5]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        dims = self.draw()
        item = dict(data)
        return {**item, **{key: item[key].flip(dims) for key in self.keys}} if dims else item


def _plain(value: Tensor) -> Tensor:
    return value.as_tensor() if isinstance(value, MetaTensor) else value
