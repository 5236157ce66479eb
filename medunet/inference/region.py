"""Where in an image windows are worth running: outside of that box everything is background."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medunet.data.grid import Grid
from medunet.data.resampling import Box
from medunet.data.transforms import Frame, NetworkImage
from medunet.errors import BundleError
from medunet.types import AnyArray, Shape

AIR = -500.0
"""HU; what is denser belongs to a body (or to the couch it lies on)."""

_AROUND_A_BODY = 10.0  # mm
_STEP = 4.0  # mm between the voxels that are looked at for a body

Rule = str | Mapping[str, Any]
"""``all``; ``body``; or ``{"bundle": PATH, "margin": MM}``: around all that a coarser bundle finds."""


class Region:
    """Crops an image to the box that a plan's rule names; an image in which nothing is found stays whole.

    Args:
        rule: see `Rule`; ``body`` needs a channel of calibrated units (CT).
        frame: tells which channel has Hounsfield units.
        bundle_root: what the coarser bundle's path is relative to.
        channels: the image's, which the coarser bundle must have too; null: they are not compared.

    Raises:
        BundleError: the rule is not known, there is no CT channel, or the coarser bundle cannot be used.
    """

    def __init__(
        self, rule: Rule, frame: Frame, bundle_root: str | None = None, channels: Sequence[str] | None = None
    ) -> None:
        self.frame = frame
        self._find: Callable[[NetworkImage, torch.device], AnyArray | None] | None = None
        self.margin = _AROUND_A_BODY
        if rule == "body":
            self._channel = _ct_channel(frame)
            self._find = self._body
        elif isinstance(rule, Mapping) and set(rule) == {"bundle", "margin"}:
            self._finder = _Finder(Path(bundle_root or ".") / str(rule["bundle"]), channels)
            self._find, self.margin = self._finder, float(rule["margin"])
        elif rule != "all":
            raise BundleError(f"region {rule!r} is not known; give all, body, or {{bundle: PATH, margin: MM}}")

    def crop(self, image: NetworkImage, device: torch.device, least: Shape) -> NetworkImage:
        """The image, or the part of it that is worth a look.

        Args:
            image: what the network sees of all of a file.
            device: computes where a network has to.
            least: voxels of the network's grid that the part has at least where the image has them, a window: what
                lies around a small find is then that of the image and no border.
        """
        found = self._find(image, device) if self._find is not None else None
        if found is None:
            return image
        box = as_large(wider(found, image.native, self.margin), image.native.shape, _voxels_of(image, least))
        return image if box == image.box else self.frame.part(image, box)

    def _body(self, image: NetworkImage, _: torch.device) -> AnyArray | None:
        values = image.values[self._channel].numpy()
        steps = [max(1, int(_STEP / s)) for s in image.native.spacing]
        dense = values[tuple(slice(None, None, step) for step in steps)] > AIR
        bounds = bounds_of(dense)
        return None if bounds is None else _between_steps(bounds, steps, values.shape)


class _Finder:
    """Segments with another bundle and gives the bounds of all its classes."""

    def __init__(self, folder: Path, channels: Sequence[str] | None) -> None:
        self.folder, self.channels = folder, channels

    def __call__(self, image: NetworkImage, device: torch.device) -> AnyArray | None:
        from medunet.inference.neighbour import seen_by

        network, inferer = self._loaded
        (made,) = inferer.segment([seen_by(inferer, image, network.to(device))], network)
        return bounds_of(made.labels != inferer.values[0])

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Any]:
        from medunet.inference.neighbour import Neighbour

        if not (self.folder / "configs" / "metadata.json").is_file():
            raise BundleError(
                f"{self.folder}: the plan looks for its region with this bundle, and it is missing; put it there, or "
                f"write region: all under inferer in configs/inference.yaml"
            )
        other = Neighbour(self.folder, "tells a region")
        other.require_same("channels", self.channels)
        return other.network(), other.inferer()


def wider(bounds: AnyArray, grid: Grid, margin: float) -> Box:
    """A box (3, 2) with `margin` mm more on all sides, inside `grid`."""
    return tuple(
        (max(0, int(low - np.ceil(margin / s))), min(n, int(high + np.ceil(margin / s))))
        for (low, high), s, n in zip(bounds, grid.spacing, grid.shape, strict=True)
    )


def as_large(box: Box, shape: Shape, least: Sequence[int]) -> Box:
    """A box of at least `least` voxels per axis around the same middle, inside `shape`.

    >>> as_large(((4, 6), (0, 2), (5, 9)), (20, 20, 6), (6, 6, 9))
    ((2, 8), (0, 6), (0, 6))
    """
    sizes = [min(n, max(high - low, m)) for (low, high), n, m in zip(box, shape, least, strict=True)]
    starts = [
        min(max(0, low - (size - (high - low)) // 2), n - size)
        for (low, high), n, size in zip(box, shape, sizes, strict=True)
    ]
    return tuple((start, start + size) for start, size in zip(starts, sizes, strict=True))


def _voxels_of(image: NetworkImage, least: Shape) -> list[int]:
    """As many voxels per axis of an image's file as give `least` voxels of the network's grid."""
    along = [_line(code) for code in image.grid.axcodes]
    axes = [along.index(_line(code)) for code in image.native.axcodes]
    lengths = [(least[axis] - 1) * image.grid.spacing[axis] for axis in axes]
    return [math.ceil(length / s - 1e-6) + 1 for length, s in zip(lengths, image.native.spacing, strict=True)]


def _line(code: str) -> int:
    """Which axis of the world a direction lies on."""
    return "RLAPSI".index(code) // 2


def bounds_of(mask: AnyArray) -> AnyArray | None:
    """(3, 2): first and last plus one true voxel per axis of (x, y, z); None where there is none."""
    lines = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return None if not len(lines[0]) else np.array([(line[0], line[-1] + 1) for line in lines])


def _between_steps(bounds: AnyArray, steps: list[int], shape: tuple[int, ...]) -> AnyArray:
    """Bounds found on every n-th voxel as bounds of all voxels: up to the next ones that were found empty."""
    low, high = bounds.T
    return np.stack([np.maximum((low - 1) * steps + 1, 0), np.minimum(high * steps, shape)], axis=1)


def _ct_channel(frame: Frame) -> int:
    for number, scheme in enumerate(frame.normalization):
        if scheme["scheme"] == "ct":
            return number
    raise BundleError("region body needs a CT channel (normalization scheme ct), and the plan has none; give all")
