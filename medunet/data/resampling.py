"""Linear and nearest resampling between grids, a box at a time: what training, inference and restoring share.

Every voxel of a result depends only on the two grids and the source, never on how the work was cut into boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medunet.data.grid import Grid
from medunet.errors import GeometryError
from medunet.types import FloatArray, IntArray

_SAME_SPACING = 1e-3  # relative; closer than what scanners write, farther than float32 affines
_ON_A_VOXEL = 1e-3  # voxels; positions this close to a source voxel take its value
_SKEW = 1e-4  # of a voxel per voxel; more is not aligned with the source's axes
_STRAIGHT = 0.5  # voxels; a shear that moves no corner further is none

Box = tuple[tuple[int, int], ...]
"""First and last-plus-one voxel per axis."""


def network_grid(native: Grid, orientation: str, spacing: Sequence[float]) -> Grid:
    """The grid that a network sees: `native` with its axes ordered as `orientation` and `spacing` mm per axis.

    The first voxel stays at its place; sizes are rounded as MONAI's Spacing does ("option 1" of
    `compute_shape_offset`). An axis whose spacing differs by less than 0.1% keeps its voxels. Where axes are not at
    right angles (gantry tilt, a sheared sform), the result's are, and it encloses all of `native`.

    Raises:
        GeometryError: an affine whose axes cannot be told apart.
    """
    order, signs = _to_orientation(native, orientation)
    affine = np.array(native.affine)
    columns = affine[:3, :3][:, order] * signs
    last = np.array(native.shape)[order] - 1
    origin = affine[:3, 3] + sum(native.affine[:3, a] * n for a, n, s in zip(order, last, signs, strict=True) if s < 0)
    own = np.linalg.norm(columns, axis=0)
    wanted = np.array([float(s) for s in spacing])
    upright = _upright(columns)
    if _leans(columns, upright * own, last):
        return _enclosing(native, upright, wanted)
    wanted = np.where(np.abs(own - wanted) <= _SAME_SPACING * wanted, own, wanted)
    if not np.array_equal(own, wanted):
        columns = upright * wanted
    shape = [int(np.round(n * o / w)) + 1 for n, o, w in zip(last, own, wanted, strict=True)]
    return _grid(shape, columns, origin)


def _leans(columns: FloatArray, upright: FloatArray, last: IntArray) -> bool:
    """Whether axes at right angles would bring a corner to another voxel."""
    off = np.linalg.solve(upright, (columns - upright) * last)
    return bool(np.maximum(off.clip(0).sum(axis=1), -off.clip(max=0).sum(axis=1)).max() > _STRAIGHT)


def _enclosing(native: Grid, upright: FloatArray, spacing: FloatArray) -> Grid:
    """The grid along the unit vectors `upright` that holds every voxel of `native`."""
    places = native.corners() @ upright
    low = places.min(axis=0)
    return _grid(np.round((places.max(axis=0) - low) / spacing).astype(int) + 1, upright * spacing, upright @ low)


def _grid(shape: Sequence[int] | IntArray, columns: FloatArray, origin: FloatArray) -> Grid:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, origin
    return Grid(tuple(int(n) for n in shape), affine)


def _to_orientation(native: Grid, orientation: str) -> tuple[list[int], FloatArray]:
    """For each axis of `orientation` the native axis that runs along it, and whether the same way."""
    codes = native.axcodes
    places = ["RLAPSI".index(code) // 2 for code in codes]
    order = [places.index("RLAPSI".index(code) // 2) for code in orientation]
    signs = np.array([1.0 if codes[a] == code else -1.0 for a, code in zip(order, orientation, strict=True)])
    return order, signs


def _upright(columns: FloatArray) -> FloatArray:
    """Unit vectors along `columns`, the first kept and the others made orthogonal to those before (Gram-Schmidt)."""
    unit, upper = np.linalg.qr(columns)
    result: FloatArray = unit * np.sign(np.diag(upper))
    if not np.isfinite(result).all():
        raise GeometryError(f"the axes {columns.tolist()} of an affine cannot be told apart; correct its header")
    return result


@dataclass(frozen=True)
class AxisMap:
    """Where the voxels of a target axis lie along a source axis, in source voxels."""

    source_axis: int
    low: IntArray
    """Source voxel at or before each target voxel, inside the source."""
    weight: FloatArray
    """Of the next source voxel; 0 where a target voxel falls on a source voxel."""

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """The source voxels (first, last plus one) that target voxels `start` to `stop` depend on."""
        low, above = self.low[start:stop], self.low[start:stop] + (self.weight[start:stop] > 0)
        return int(low.min()), int(above.max()) + 1


class Resampling:
    """A source grid seen on the voxels of a target grid.

    Where both grids have the same axes (up to order and direction), one linear interpolation per axis is exact and
    needs no coordinates; voxels that fall on a source voxel are copied. Otherwise trilinear sampling. Beyond the
    source, its border's values.
    """

    def __init__(self, source: Grid, target: Grid) -> None:
        self.source, self.target = source, target
        self.matrix, self.maps = _relation(source, target)

    @property
    def aligned(self) -> bool:
        """Whether the axes of both grids run along each other."""
        return self.maps is not None

    @property
    def rearranges(self) -> bool:
        """Whether every target voxel takes the value of one source voxel: nothing is interpolated."""
        return self.maps is not None and not any(axis.weight.any() for axis in self.maps)

    def needs(self, box: Box) -> Box:
        """The box of source voxels that a box of target voxels depends on."""
        if self.maps is None:
            return self._needs_oblique(box)
        found = {m.source_axis: m.needs(*bounds) for m, bounds in zip(self.maps, box, strict=True)}
        return tuple(found[axis] for axis in range(3))

    def _needs_oblique(self, box: Box) -> Box:
        corners = np.array([[x, y, z, 1] for x in _ends(box[0]) for y in _ends(box[1]) for z in _ends(box[2])])
        places = corners @ self.matrix[:3].T
        size = np.array(self.source.shape)
        first = np.clip(np.floor(places.min(0) - _ON_A_VOXEL), 0, size - 1).astype(int)
        last = np.clip(np.ceil(places.max(0) + _ON_A_VOXEL), 0, size - 1).astype(int)
        return tuple((int(a), int(b) + 1) for a, b in zip(first, last, strict=True))

    def __call__(self, part: Tensor, origin: Sequence[int], box: Box, *, nearest: bool = False) -> Tensor:
        """The voxels of a target box.

        Args:
            part: (channels, ...) source voxels, at least those that `needs` names.
            origin: source voxel at the beginning of `part`.
            nearest: take the nearest voxel (labels) instead of interpolating; keeps the type.

        Returns:
            (channels, ...) of the box's size; float32 unless `nearest`, or where voxels are only rearranged.
        """
        if self.maps is None:
            return self._oblique(part, origin, box, nearest)
        result = part.permute(0, *(1 + m.source_axis for m in self.maps))
        for dim in sorted(range(3), key=self._growth):  # what shrinks most comes first; the same order for every box
            axis = self.maps[dim]
            result = _along(result, dim + 1, axis, box[dim], int(origin[axis.source_axis]), nearest)
        return result

    def _growth(self, dim: int) -> float:
        size = self.source.shape[int(np.abs(self.matrix[:3, dim]).argmax())]
        return self.target.shape[dim] / size

    def _oblique(self, part: Tensor, origin: Sequence[int], box: Box, nearest: bool) -> Tensor:
        """Trilinear sampling of the target box, a plane along its last axis at a time."""
        (x0, x1), (y0, y1), (z0, z1) = box
        size = np.array(part.shape[1:])
        values = part[None].float().cpu()
        result = torch.empty((part.shape[0], x1 - x0, y1 - y0, z1 - z0), dtype=values.dtype)
        plane = np.stack(np.meshgrid(np.arange(x0, x1), np.arange(y0, y1), indexing="ij"), axis=-1)
        for z in range(z0, z1):
            points = plane @ self.matrix[:3, :2].T + self.matrix[:3, 2] * z + self.matrix[:3, 3] - np.array(origin)
            scaled = np.where(size > 1, 2 * points / np.maximum(size - 1, 1) - 1, 0.0)[..., ::-1]
            field = torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float32))[None, :, :, None]
            sampled = torch.nn.functional.grid_sample(
                values, field, mode="nearest" if nearest else "bilinear", padding_mode="border", align_corners=True
            )
            result[..., z - z0] = sampled[0, ..., 0]
        return result.to(part.dtype) if nearest else result

    def whole(self, volume: Tensor, *, nearest: bool = False) -> Tensor:
        """The whole target from the whole source (channels, *source.shape)."""
        return self(volume, (0, 0, 0), tuple((0, n) for n in self.target.shape), nearest=nearest)


@lru_cache(maxsize=16)
def _relation(source: Grid, target: Grid) -> tuple[FloatArray, tuple[AxisMap, AxisMap, AxisMap] | None]:
    """Kept for the next image: of many small ones most have the same grid."""
    matrix = np.linalg.inv(source.affine) @ target.affine
    return matrix, _axis_maps(matrix, source.shape, target.shape)


def _axis_maps(matrix: Any, source: Sequence[int], target: Sequence[int]) -> tuple[AxisMap, AxisMap, AxisMap] | None:
    steps = np.abs(matrix[:3, :3])
    axes = steps.argmax(axis=0)
    off = steps.copy()
    off[axes, range(3)] = 0
    if sorted(axes) != [0, 1, 2] or off.max() > _SKEW * max(1.0, steps.max()):
        return None
    first, second, third = (
        _axis_map(int(a), matrix[a, c], matrix[a, 3], source[a], target[c]) for c, a in enumerate(axes)
    )
    return first, second, third


def _axis_map(axis: int, step: float, start: float, source: int, target: int) -> AxisMap:
    positions = step * np.arange(target) + start
    rounded = np.round(positions)
    if np.abs(positions - rounded).max() <= _ON_A_VOXEL:
        positions = rounded
    clipped = np.clip(positions, 0, source - 1)
    low = np.floor(clipped).astype(np.int64)
    return AxisMap(axis, low, (clipped - low).astype(np.float32))


def _along(part: Tensor, dim: int, axis: AxisMap, bounds: tuple[int, int], origin: int, nearest: bool) -> Tensor:
    """One axis of a separable resampling."""
    low, weight = axis.low[bounds[0] : bounds[1]] - origin, axis.weight[bounds[0] : bounds[1]]
    if nearest:
        low, weight = low + (weight > 0.5), np.zeros_like(weight)
    if not weight.any():
        return _pick(part, dim, low)
    last = part.shape[dim] - 1
    below = part.index_select(dim, torch.from_numpy(low).to(part.device)).float()
    above = part.index_select(dim, torch.from_numpy(np.minimum(low + 1, last)).to(part.device)).float()
    shape = [1] * part.ndim
    shape[dim] = -1
    return torch.lerp(below, above, torch.from_numpy(weight).to(part.device).reshape(shape))


def _pick(part: Tensor, dim: int, places: IntArray) -> Tensor:
    """Voxels in another order; a view where they are consecutive."""
    count = len(places)
    if np.array_equal(places, np.arange(places[0], places[0] + count)):
        return part.narrow(dim, int(places[0]), count)
    return part.index_select(dim, torch.from_numpy(np.ascontiguousarray(places)).to(part.device))


def _ends(bounds: tuple[int, int]) -> tuple[int, int]:
    return bounds[0], bounds[1] - 1
