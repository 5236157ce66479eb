"""The planes of source images in DICOM's terms (PS3.3 C.7.6.2), checked against what was read, and volumes on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from medunet.data.dicom.objects import LPS, SegmentMap, SourceImages
from medunet.errors import GeometryError
from medunet.types import FloatArray

_POSITION_TOLERANCE = 0.02
"""Millimetres by which a header may differ from the plane that the reader made of it (DS values are rounded)."""

_COSINE_TOLERANCE = 0.01
"""By which a header's cosines may be off unit vectors at right angles, as in reading."""


@dataclass(frozen=True, eq=False)
class PlaneGeometry:
    """Geometry that all planes share, in DICOM's words: LPS mm, (n, 3) positions, 6 cosines, (row, column) spacing."""

    positions: FloatArray
    orientation: FloatArray
    spacing: FloatArray

    @property
    def normal(self) -> FloatArray:
        """Unit vector across the planes."""
        normal: FloatArray = np.cross(self.orientation[:3], self.orientation[3:])
        return normal / np.linalg.norm(normal)

    def shares(self, thickness: float | None) -> FloatArray:
        """(n,) mm: how much of the patient, along the normal, each plane stands for.

        Half of the way to each neighbour; the outermost planes reach out as far as they reach in. A single plane stands
        for its slice `thickness`.

        Raises:
            GeometryError: planes are not in order along the normal, or a single plane has no thickness.
        """
        depths = self.positions @ self.normal
        if len(depths) == 1:
            if not thickness:
                raise GeometryError("a single plane has no slice thickness, so no volume can be stated")
            return np.array([float(thickness)])
        steps = np.diff(depths)
        if not ((steps > 1e-6).all() or (steps < -1e-6).all()):
            raise GeometryError("source planes are not in order along their normal; sort them by position")
        edges = np.abs(np.concatenate([steps[:1], steps, steps[-1:]]))
        shares: FloatArray = (edges[:-1] + edges[1:]) / 2
        return shares


def volumes(mapped: SegmentMap, geometry: PlaneGeometry, thickness: float | None) -> FloatArray:
    """(segments,) mm^3: voxels times pixel area times the share of the patient that each plane stands for.

    Raises:
        GeometryError: planes are not in order, or a single plane has no thickness.
    """
    sides = np.stack([geometry.orientation[:3] * geometry.spacing[1], geometry.orientation[3:] * geometry.spacing[0]])
    area = float(np.linalg.norm(np.cross(sides[0], sides[1])))
    result: FloatArray = geometry.shares(thickness) @ mapped.voxels * area
    return result


def plane_geometry(source: SourceImages) -> PlaneGeometry:
    """The planes in DICOM's terms, with the headers' own numbers where they all put the planes where they were read.

    Where they do not, since a scanner rounded its cosines (from slice to slice in its own way), the planes as read.

    Raises:
        GeometryError: planes are not parallel with equal pixels, or a header contradicts its plane.
    """
    made = [_from_plane(plane) for plane in source.planes]
    stated = [_stated(*source.header(plane)) or made[plane] for plane in range(len(source.planes))]
    result = _of_all(stated)
    errors = _errors(result, source)
    if errors.max() <= _POSITION_TOLERANCE:
        return result
    own = _of_all(made)
    errors_of_own = _errors(own, source)
    for index, (header, plane) in enumerate(zip(stated, made, strict=True)):
        if not _alike(header, plane) or errors_of_own[index] > _POSITION_TOLERANCE:
            raise GeometryError(
                f"plane {index} of the source lies {errors[index]:.3g} mm from where its header and the first plane "
                "put it; planes have to be parallel, equally sized and as read"
            )
    return own


_Stated = tuple[FloatArray, FloatArray, FloatArray]


def _of_all(planes: list[_Stated]) -> PlaneGeometry:
    return PlaneGeometry(np.stack([position for position, *_ in planes]), planes[0][1], planes[0][2])


def _errors(geometry: PlaneGeometry, source: SourceImages) -> FloatArray:
    """(n,) mm: the largest distance of a corner of each plane from where `geometry` puts it."""
    _, rows, columns = source.shape
    corners = np.array([[0, 0], [columns - 1, 0], [0, rows - 1], [columns - 1, rows - 1]], dtype=np.float64)
    spacing, orientation = geometry.spacing, geometry.orientation
    steps = np.stack([orientation[:3] * spacing[1], orientation[3:] * spacing[0]])
    lps = LPS @ source.planes
    here = geometry.positions[:, None] + corners @ steps
    there = lps[:, None, :3, 3] + corners @ lps[:, :3, :2].transpose(0, 2, 1)
    result: FloatArray = np.linalg.norm(here - there, axis=2).max(axis=1)
    return result


def _alike(header: _Stated, plane: _Stated) -> bool:
    """Whether a header says what was read, but for the last digits of its cosines and pixel spacing."""
    (position, orientation, spacing), (there, cosines, pixel) = header, plane
    return bool(
        np.linalg.norm(position - there) <= _POSITION_TOLERANCE
        and np.abs(orientation - cosines).max() <= _COSINE_TOLERANCE
        and (np.abs(spacing - pixel) <= 1e-3 * pixel).all()
    )


def _from_plane(plane: FloatArray) -> _Stated:
    lps = LPS @ plane
    lengths = np.linalg.norm(lps[:3, :2], axis=0)
    return lps[:3, 3], (lps[:3, :2] / lengths).T.ravel(), lengths[::-1]


def _stated(dataset: Dataset, frame: int | None) -> _Stated | None:
    """Position, orientation and spacing as a header states them; None where it does not."""
    if frame is None:
        groups = [(dataset, "ImagePositionPatient"), (dataset, "ImageOrientationPatient"), (dataset, "PixelSpacing")]
    else:
        names = ("PlanePosition", "PlaneOrientation", "PixelMeasures")
        words = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        groups = [(functional_group(dataset, frame, f"{n}Sequence"), w) for n, w in zip(names, words, strict=True)]
    found = [(item.get(word) if item is not None else None) or () for item, word in groups]
    if [len(numbers) for numbers in found] != [3, 6, 2]:
        return None
    position, orientation, spacing = (np.array([float(v) for v in numbers]) for numbers in found)
    return position, orientation, spacing


def functional_group(dataset: Dataset, frame: int, keyword: str) -> Dataset | None:
    """The first item of a functional group of a frame (from 1), its own or the shared one (PS3.3 C.7.6.16)."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for item in [*per_frame[frame - 1 : frame], *shared[:1]]:
        group = item.get(keyword)
        if group:
            return group[0]
    return None


def slice_thickness(source: SourceImages) -> float | None:
    """Slice Thickness in mm as the first plane states it."""
    dataset, frame = source.header(0)
    item = dataset if frame is None else functional_group(dataset, frame, "PixelMeasuresSequence")
    value = item.get("SliceThickness") if item is not None else None
    return float(value) if value else None
