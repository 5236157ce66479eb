"""A voxel grid as one value: shape and affine, voxel index -> RAS millimetres.

Anything that crosses a border (reader, store, predictor, writer) carries a Grid and compares it.
World coordinates are RAS as in NIfTI (nifti1.h, "3D IMAGE ORIENTATION AND LOCATION IN SPACE").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medunet.errors import GeometryError
from medunet.types import Affine, FloatArray, Shape, Spacing

_POSITIVE = "RAS"
_NEGATIVE = "LPI"
_LABEL_TOLERANCE = 0.1  # voxels that a label map may lie beside its image
_FLAT = 1e-9  # of unit edges: three voxel axes that span less are in one plane, however small the voxels are


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape (three voxels counts) and affine (4, 4) of a volume.

    Raises:
        GeometryError: the shape is not three positive numbers, or the affine is not finite and invertible.
    """

    shape: Shape
    affine: Affine = field(repr=False)

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"grid shape {shape} is not three positive numbers")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(f"affine is not a finite 4x4 matrix: {affine.tolist()}")
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        if not edges.all() or abs(np.linalg.det(affine[:3, :3] / edges)) < _FLAT:
            raise GeometryError(f"affine is singular (a voxel axis has no length or two coincide): {affine.tolist()}")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and bool(np.array_equal(self.affine, other.affine))

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @classmethod
    def from_spacing(cls, shape: Shape, spacing: Spacing = (1.0, 1.0, 1.0)) -> Grid:
        """An axis-aligned RAS grid that starts at the world origin."""
        return cls(shape, np.diag([*spacing, 1.0]))

    @property
    def spacing(self) -> Spacing:
        """Voxel edge lengths in mm, per voxel axis."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def extent(self) -> Spacing:
        """Edge lengths of the whole grid in mm, per voxel axis."""
        return tuple(s * n for s, n in zip(self.spacing, self.shape, strict=True))

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm^3 (exact for sheared grids too)."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def axcodes(self) -> str:
        """The anatomical direction that each voxel axis points to most closely, such as ``RAS``."""
        return "".join((_POSITIVE if sign > 0 else _NEGATIVE)[axis] for axis, sign in self._closest_axes())

    def _closest_axes(self) -> list[tuple[int, int]]:
        """(world axis, sign) of each voxel axis; the assignment with the largest sum of cosines, each axis once."""
        from itertools import permutations

        cosines = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        best = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p[v], v]) for v in range(3)))
        return [(w, 1 if cosines[w, v] >= 0 else -1) for v, w in enumerate(best)]

    def to_world(self, voxels: FloatArray) -> FloatArray:
        """(n, 3) voxel indices -> (n, 3) RAS mm."""
        result: FloatArray = np.asarray(voxels) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return result

    def to_voxel(self, world: FloatArray) -> FloatArray:
        """(n, 3) RAS mm -> (n, 3) voxel indices (not rounded)."""
        inverse = np.linalg.inv(self.affine)
        result: FloatArray = np.asarray(world) @ inverse[:3, :3].T + inverse[:3, 3]
        return result

    def corners(self) -> FloatArray:
        """(8, 3) RAS mm of the centres of the corner voxels."""
        last = np.array(self.shape) - 1
        return self.to_world(np.array([[i, j, k] for i in (0, last[0]) for j in (0, last[1]) for k in (0, last[2])]))

    def part(self, box: Sequence[tuple[int, int]]) -> Grid:
        """The grid of the voxels in `box`: first and last plus one per axis."""
        affine = np.array(self.affine)
        affine[:3, 3] += affine[:3, :3] @ np.array([start for start, _ in box], dtype=np.float64)
        return Grid(tuple(stop - start for start, stop in box), affine)

    def distance(self, other: Grid) -> float:
        """Largest distance in mm between equally indexed corner voxels; infinite when the shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())

    def agrees_with(self, other: Grid, tolerance: float = 0.05) -> bool:
        """Whether every voxel of both grids lies at the same place, to `tolerance` voxels."""
        return self.distance(other) <= tolerance * min(self.spacing)

    def require(self, other: Grid, here: str, there: str) -> None:
        """Raise a GeometryError that names both grids unless they agree."""
        if not self.agrees_with(other):
            raise GeometryError(f"{there} grid {other.describe()} differs from {here} {self.describe()}")

    def overlaps(self, other: Grid) -> bool:
        """Whether the world bounding boxes of both grids share a volume."""
        a, b = self.corners(), other.corners()
        return bool(np.all(np.minimum(a.max(0), b.max(0)) - np.maximum(a.min(0), b.min(0)) > -1e-6))

    def describe(self) -> str:
        """One short phrase for a message."""
        spacing = " x ".join(f"{s:.3g}" for s in self.spacing)
        origin = ", ".join(f"{o:.4g}" for o in self.affine[:3, 3])
        return f"{self.shape} {spacing} mm {self.axcodes} at ({origin})"

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}


def label_differs(image: Grid, label: Grid) -> str:
    """How a label map's grid differs from its image's; empty where it does not."""
    if image.shape != label.shape:
        return f"label grid {label.shape} differs from image {image.shape}"
    if not image.agrees_with(label, _LABEL_TOLERANCE):
        return f"label grid {label.describe()} differs from image {image.describe()}"
    return ""
