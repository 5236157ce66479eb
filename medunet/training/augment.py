"""Random changes of a training patch: drawn first, as plain numbers; then done, with one resample at most.

Kinds, chances and ranges after nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, supplement, and its
program); elastic deformation after Ronneberger et al. 2015 (doi:10.1007/978-3-319-24574-4_28).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medunet.errors import GeometryError, PlanError
from medunet.training.deform import Warp, free_axes, kept_axes, resample
from medunet.training.draws import Draw, Elastic, Noise
from medunet.training.intensity import change

PROBABILITIES: dict[str, float] = {
    "rotation": 0.2,
    "zoom": 0.2,
    "elastic": 0.1,
    "mirror": 0.5,
    "noise": 0.1,
    "blur": 0.2,
    "blur_channel": 0.5,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25,
    "low_resolution_channel": 0.5,
    "gamma_inverted": 0.1,
    "gamma": 0.3,
}
"""Per patch; ``mirror`` per allowed axis; ``..._channel`` per channel of a patch that is changed at all."""

RANGES: dict[str, tuple[float, float]] = {
    "zoom": (0.7, 1.4),
    "elastic": (0.0, 0.25),
    "elastic_cells": (3.0, 6.0),
    "noise": (0.0, 0.1),
    "blur": (0.5, 1.0),
    "brightness": (0.75, 1.25),
    "contrast": (0.75, 1.25),
    "low_resolution": (0.5, 1.0),
    "gamma": (0.7, 1.5),
}
"""``elastic``: deviation of the control points, in their distance; ``elastic_cells``: their distances along the longest
free axis; ``noise``: standard deviation (nnU-Net calls it variance and uses it so); ``blur``: sigma in voxels.
Brightness, contrast and gamma fall under and over 1 equally often."""

_SEEDS = 2**48


class Augmentation:
    """Draws and applies the changes of patches of `patch_size` voxels (2 or 3 axes) with `channels` channels.

    `spacing` in millimetres per axis (more entries than axes are left out; none: 1); `rotation` the largest angle about
    each axis in radians (one in 2D); `mirror_axes` the spatial axes along which anatomy may be mirrored.
    `probabilities` and `ranges` replace single entries of `PROBABILITIES` and `RANGES`.

    Raises:
        PlanError: a size, chance or range does not fit.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        channels: int = 1,
        spacing: Sequence[float] | None = None,
        mirror_axes: Sequence[int] = (),
        rotation: Sequence[float] = (),
        probabilities: Mapping[str, float] | None = None,
        ranges: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.patch = tuple(int(n) for n in patch_size)
        dims = len(self.patch)
        self.channels = int(channels)
        self.spacing = tuple(float(s) for s in (spacing or (1.0,) * dims)[:dims])
        self.mirror_axes = tuple(sorted(int(axis) for axis in mirror_axes))
        self.rotation = tuple(float(r) for r in rotation) or (0.0,) * (3 if dims == 3 else 1)
        self.chance: dict[str, float] = _merged("chance", PROBABILITIES, probabilities)
        self.range: dict[str, tuple[float, float]] = _merged("range", RANGES, ranges)
        self._check(dims)
        self.free, self.kept = free_axes(self.patch, self.spacing), kept_axes(self.patch, self.spacing)

    def _check(self, dims: int) -> None:
        if dims not in (2, 3) or min(self.patch) < 1 or self.channels < 1:
            raise PlanError(f"a patch has 2 or 3 axes and a channel at least; got {self.patch} and {self.channels}")
        if len(self.spacing) != dims or min(self.spacing) <= 0:
            raise PlanError(f"spacing {self.spacing} does not fit the patch {self.patch}; give millimetres per axis")
        if len(self.rotation) != (3 if dims == 3 else 1):
            raise PlanError(f"rotation {self.rotation} does not fit {dims} axes; give 3 angles in 3D and 1 in 2D")
        if any(axis not in range(dims) for axis in self.mirror_axes):
            raise PlanError(
                f"mirror_axes {self.mirror_axes} are not axes of the patch {self.patch}; give some of 0 to {dims - 1}"
            )
        for name, chance in self.chance.items():
            if not 0 <= chance <= 1:
                raise PlanError(f"chance of {name} is {chance}; give 0 to 1")
        for name, limits in self.range.items():
            least = 0.0 if name in ("elastic", "noise") else 1e-3
            if len(limits) != 2 or not least <= limits[0] <= limits[1]:
                raise PlanError(f"range of {name} is {limits}; give the least and the most, at least {least:g}")
        if self.range["low_resolution"][1] > 1:
            raise PlanError(f"range of low_resolution is {self.range['low_resolution']}; give at most 1")

    def draw(self, generator: np.random.Generator) -> Draw:
        """Draw the changes of one patch, and the extent of the region they need."""
        hit = {name: bool(generator.random() < chance) for name, chance in self.chance.items()}
        bends = bool(self.free)
        angles = self._angles(generator) if hit["rotation"] and bends else ()
        draw = Draw(
            patch=self.patch,
            extent=self.patch,
            rotation=angles if any(angles) else (),
            zoom=self._uniform(generator, "zoom") if hit["zoom"] and bends else 1.0,
            elastic=self._elastic(generator) if hit["elastic"] and bends else None,
            mirror=tuple(axis for axis in self.mirror_axes if generator.random() < self.chance["mirror"]),
            noise=self._noise(generator) if hit["noise"] else None,
            blur=self._blur(generator) if hit["blur"] else (),
            brightness=self._balanced(generator, "brightness") if hit["brightness"] else (),
            contrast=self._balanced(generator, "contrast") if hit["contrast"] else (),
            low_resolution=self._low_resolution(generator) if hit["low_resolution"] else (),
            full_resolution=self.kept if hit["low_resolution"] else (),
            gamma_inverted=self._balanced(generator, "gamma") if hit["gamma_inverted"] else (),
            gamma=self._balanced(generator, "gamma") if hit["gamma"] else (),
        )
        return self.fitted(draw) if draw.warped else draw

    def fitted(self, draw: Draw) -> Draw:
        """The draw with the extent that its rotation, zoom and bend need."""
        extent = list(self.patch)
        if draw.warped:
            for axis, count in zip(self.free, Warp.of(draw, self.spacing).extent(), strict=True):
                extent[axis] = count
        return replace(draw, extent=tuple(extent))

    def apply(self, draw: Draw, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Do what was drawn; the inputs stay as they are.

        Args:
            draw: of this augmentation.
            image: (C, *draw.extent) float32, on any device.
            label: (1, *draw.extent) integers, on the same device.

        Returns:
            (C, *patch) and (1, *patch): the same bits for the same draw and input on the same kind of device, whatever
            the number of threads. The label holds only classes of the region.

        Raises:
            GeometryError: image or label is not what the draw asks for.
        """
        self._accept(draw, image, label)
        with torch.no_grad():
            if draw.warped:
                outside = [a + 1 for a in draw.mirror if a not in self.free]
                image, label = resample(Warp.of(draw, self.spacing), image, label)
                image, label = (t.flip(outside) if outside else t for t in (image, label))
            else:
                dims = [axis + 1 for axis in draw.mirror]
                image, label = (
                    t.flip(dims) if dims else t.clone(memory_format=torch.contiguous_format) for t in (image, label)
                )
            change(draw, image)
        return image, label

    def _accept(self, draw: Draw, image: Tensor, label: Tensor) -> None:
        wanted = (self.channels, *draw.extent)
        if draw.patch != self.patch or tuple(image.shape) != wanted or tuple(label.shape) != (1, *draw.extent):
            raise GeometryError(
                f"a draw for patch {draw.patch} needs image {wanted} and label {(1, *draw.extent)}, got "
                f"{tuple(image.shape)} and {tuple(label.shape)}; read draw.extent voxels around the patch's centre"
            )
        if image.dtype != torch.float32 or label.is_floating_point():
            raise GeometryError(f"image must be float32 and label integer, got {image.dtype} and {label.dtype}")

    def _uniform(self, generator: np.random.Generator, name: str) -> float:
        return float(generator.uniform(*self.range[name]))

    def _angles(self, generator: np.random.Generator) -> tuple[float, ...]:
        """One angle per axis; only about the kept axis where there is one."""
        drawn = [float(generator.uniform(-most, most)) if most else 0.0 for most in self.rotation]
        if len(self.patch) == 3 and len(self.free) == 2:
            return tuple(angle if axis not in self.free else 0.0 for axis, angle in enumerate(drawn))
        return tuple(drawn)

    def _elastic(self, generator: np.random.Generator) -> Elastic:
        longest = max(self.patch[axis] * self.spacing[axis] for axis in self.free)
        distance = longest / self._uniform(generator, "elastic_cells")
        sigma = self._uniform(generator, "elastic") * distance
        return Elastic(seed=int(generator.integers(_SEEDS)), distance=distance, sigma=sigma)

    def _noise(self, generator: np.random.Generator) -> Noise:
        std = self._uniform(generator, "noise")
        return Noise(seed=int(generator.integers(_SEEDS)), std=std)

    def _blur(self, generator: np.random.Generator) -> tuple[tuple[float, ...], ...]:
        return tuple(
            tuple(self._uniform(generator, "blur") for _ in self.patch)
            if generator.random() < self.chance["blur_channel"]
            else ()
            for _ in range(self.channels)
        )

    def _low_resolution(self, generator: np.random.Generator) -> tuple[float, ...]:
        return tuple(
            self._uniform(generator, "low_resolution")
            if generator.random() < self.chance["low_resolution_channel"]
            else 1.0
            for _ in range(self.channels)
        )

    def _balanced(self, generator: np.random.Generator, name: str) -> tuple[float, ...]:
        """A factor per channel, under and over 1 equally often where the range allows both."""
        low, high = self.range[name]
        sides = [(low, min(high, 1.0)), (max(low, 1.0), high)]
        sides = [(one, two) for one, two in sides if one < two] or [(low, high)]
        return tuple(float(generator.uniform(*sides[generator.integers(len(sides))])) for _ in range(self.channels))


def _merged(what: str, defaults: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    unknown = sorted(set(given or {}) - set(defaults))
    if unknown:
        raise PlanError(f"augmentation has no {what} '{unknown[0]}'; it has {', '.join(defaults)}")
    chosen = {name: tuple(v) if isinstance(v, (list, tuple)) else v for name, v in (given or {}).items()}
    return {**defaults, **chosen}
