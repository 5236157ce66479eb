"""Where the frames of a multi-frame object lie, and whether they fall on the voxels of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medunet.data.dicom.opening import LPS_TO_RAS, items
from medunet.data.grid import Grid
from medunet.errors import GeometryError, InputError
from medunet.types import FloatArray, IntArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_EXACT = 1e-2
"""Pixel centres this close (in voxels) to voxel centres are the same."""
_MOST_SLICES = 4096
"""Slices that the frames of a file may span: a distance that makes more of them is a slip."""
_EVEN = 0.1
"""Planes may stray this many of the smallest voxel edges from even steps."""


@dataclass(frozen=True, eq=False)
class Planes:
    """Where the n frames lie, in RAS mm.

    Attributes:
        origins: (n, 3) centres of each frame's first pixel.
        columns: (n, 3) steps from one column to the next.
        rows: (n, 3) steps from one row to the next.
        step: Spacing Between Slices in mm, 0 when the file does not say.
        thickness: Slice Thickness in mm, 0 when the file does not say.
        size: rows and columns of every frame.
    """

    origins: FloatArray
    columns: FloatArray
    rows: FloatArray
    step: float
    thickness: float
    size: tuple[int, int]

    @property
    def normal(self) -> FloatArray:
        """Unit normal (3,) of the first frame."""
        normal: FloatArray = np.cross(self.columns[0], self.rows[0])
        unit: FloatArray = normal / np.linalg.norm(normal)
        return unit

    @property
    def pixel(self) -> float:
        """The shorter edge of a pixel in mm."""
        return float(min(np.linalg.norm(self.columns[0]), np.linalg.norm(self.rows[0])))

    def apart(self) -> float:
        """Smallest distance in mm between two planes, 0 when there is one plane."""
        gaps = np.diff(np.sort(self.origins @ self.normal))
        gaps = gaps[gaps > _EVEN * self.pixel]
        return float(gaps.min()) if len(gaps) else 0.0


class FrameGroups:
    """The functional groups of one frame: its own, else the shared ones (PS3.3 C.7.6.16)."""

    def __init__(self, own: Dataset, shared: Dataset | None, where: str) -> None:
        self._datasets = [own] if shared is None else [own, shared]
        self._where = where

    def value(self, group: str, keyword: str, needed: bool = True) -> Any:
        """One attribute of a functional group; None when it is absent and not needed."""
        for dataset in self._datasets:
            for item in items(dataset, group):
                if item.get(keyword) is not None:
                    return item.get(keyword)
        if needed:
            raise InputError(f"{self._where}: has no {keyword}; give a SEG whose frames say where they lie")
        return None

    def segment(self) -> int:
        """The segment number of the frame."""
        return int(self.value("SegmentIdentificationSequence", "ReferencedSegmentNumber"))

    def length(self, keyword: str) -> float:
        """A length in mm of the Pixel Measures, 0 when it is absent."""
        return abs(float(self.value("PixelMeasuresSequence", keyword, needed=False) or 0))

    def plane(self) -> FloatArray:
        """(3, 3): origin, column step, row step in RAS mm (PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1).

        Raises:
            InputError: position, orientation or pixel spacing is absent.
            GeometryError: they span no plane.
        """
        position = self.value("PlanePositionSequence", "ImagePositionPatient")
        orientation = self.value("PlaneOrientationSequence", "ImageOrientationPatient")
        between_rows, between_columns = (float(s) for s in self.value("PixelMeasuresSequence", "PixelSpacing"))
        cosines = np.array(orientation, np.float64).reshape(2, 3)
        origin = np.array(position, np.float64)
        plane: FloatArray = np.stack([origin, cosines[0] * between_columns, cosines[1] * between_rows]) * LPS_TO_RAS
        if not np.isfinite(plane).all() or np.linalg.norm(np.cross(plane[1], plane[2])) < 1e-9:
            raise GeometryError(f"{self._where}: its plane has no area {plane.tolist()}; export the SEG again")
        return plane


def planes_of(groups: Sequence[FrameGroups], size: tuple[int, int]) -> Planes:
    """Where all frames of `size` (rows, columns) lie; raises as `FrameGroups.plane`."""
    planes = np.array([group.plane() for group in groups])
    step, thickness = (groups[0].length(keyword) for keyword in ("SpacingBetweenSlices", "SliceThickness"))
    return Planes(planes[:, 0], planes[:, 1], planes[:, 2], step, thickness, size)


def in_voxels(planes: Planes, grid: Grid) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Origins, column steps and row steps in the grid's voxels, each (n, 3)."""
    origin = grid.to_voxel(np.zeros((1, 3)))
    return (
        grid.to_voxel(planes.origins),
        grid.to_voxel(planes.columns) - origin,
        grid.to_voxel(planes.rows) - origin,
    )


def coincides(planes: Planes, grid: Grid) -> bool:
    """Whether every pixel's centre is a voxel's centre and no grid slice lies between two of the file's."""
    origins, columns, rows = in_voxels(planes, grid)
    for steps in (columns, rows):
        if not np.array_equal(np.abs(np.rint(steps)).sum(1), np.ones(len(steps))):
            return False
    last_row, last_column = (n - 1 for n in planes.size)
    corners = np.stack([origins + c * columns + r * rows for c in (0, last_column) for r in (0, last_row)])
    if np.abs(corners - np.rint(corners)).max() > _EXACT:
        return False
    drift = np.abs(columns - np.rint(columns)).max() * last_column + np.abs(rows - np.rint(rows)).max() * last_row
    return bool(drift <= 4 * _EXACT and not _sparser(planes, grid))


def _sparser(planes: Planes, grid: Grid) -> bool:
    """Whether the file's slices lie further apart than the grid's, so that the ones between have no frame.

    Only a stated distance says so: slices may overlap, and a file need not have frames that are empty.
    """
    slices = 1 / np.abs(np.linalg.inv(grid.affine)[:3, :3] @ planes.normal).max()
    return bool(min(planes.apart() or planes.step, planes.step) > 1.5 * slices)


def source_grid(planes: Planes) -> tuple[Grid, IntArray]:
    """The grid that the frames form, missing ones included, and each frame's slice on it.

    Raises:
        GeometryError: the frames are not parallel and evenly spaced, or a single plane has no thickness.
    """
    rows, columns = planes.size
    normal = planes.normal
    depth = planes.origins @ normal
    start = planes.origins[depth.argmin()]
    reach = planes.origins[depth.argmax()] - start
    tolerance = _EVEN * planes.pixel
    turned = max(np.abs(planes.columns - planes.columns[0]).max(), np.abs(planes.rows - planes.rows[0]).max())
    parallel = turned * max(rows, columns) <= tolerance
    for apart in (planes.step, planes.apart(), planes.thickness):
        if apart <= 0 or not parallel:
            continue
        if np.ptp(depth) / apart > _MOST_SLICES:
            continue
        slots = np.rint((depth - depth.min()) / apart).astype(np.int64)
        step = reach / slots.max() if slots.max() else normal * apart
        if np.abs(planes.origins - start - slots[:, None] * step).max() <= tolerance:
            affine = np.eye(4)
            affine[:3] = np.column_stack([planes.columns[0], planes.rows[0], step, start])
            return Grid((columns, rows, int(slots.max()) + 1), affine), slots
    raise GeometryError(
        "segmentation: its planes are not parallel and evenly spaced and do not coincide with the volume's slices; "
        "give the series it was drawn on, or, where that is uneven and so resampled, an RTSTRUCT or a label map"
    )
