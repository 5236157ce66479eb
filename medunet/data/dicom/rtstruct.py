"""RT structure sets: contours in RAS mm (PS3.3 C.8.8.5 and C.8.8.6), found by name, painted on a grid by geometry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medunet.data.dicom.opening import LPS_TO_RAS, RTSTRUCT, distinct, items, open_dataset, sop_class, text
from medunet.data.grid import Grid
from medunet.errors import GeometryError, InputError
from medunet.types import BoolArray, FloatArray, IntArray, StrPath

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_PARALLEL = 0.1
"""A contour's points may stray this many slices (or mm, whichever is more) from their plane."""
_SAME_PLANE = 0.05
"""Contours this many slices apart lie in one plane."""
_ON_IMAGE = 0.5
"""A contour this many slices from an image was drawn on it."""
_NOTEWORTHY = 0.1
"""A plane further than this many slices from its slice is told."""
_ANOTHER = re.compile(
    r"l|r|lt|rt|li|re|left|right|(i?gtv|ctv|itv|ptv|prv|ring|opt|eval|exp|expanded|expansion|margin|crop|cropped|avoid)\d*"
    r"|minus|plus|without|sub|wall|[\d.]*[mc]m"
)
"""Words after the name of a structure that make it another one."""
_DECIMALS = 6
"""Voxel coordinates are rounded to this, so that a point written on a voxel centre is on it after the inverse."""


@dataclass(frozen=True)
class Structures:
    """The regions of a structure set that have area.

    Attributes:
        frame_of_reference: UID that the regions are drawn in (the first region's when they differ).
        referenced_series: Series Instance UIDs that the set says it was drawn on.
        patient_id: Patient ID, empty when there is none.
        rois: closed planar contours by name, each (n, 3) RAS mm.
        frames: each region's own frame of reference UID.
        skipped: why a region, or some of its contours, is not in `rois`.
        repeated: names that several regions with contours share; `rois` holds the first.
    """

    frame_of_reference: str
    referenced_series: tuple[str, ...]
    patient_id: str
    rois: dict[str, tuple[FloatArray, ...]]
    frames: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    repeated: frozenset[str] = frozenset()

    def contours(self, name: str) -> tuple[FloatArray, ...]:
        """The contours of one region, each (n, 3) RAS mm.

        Raises:
            InputError: the name is not there, has no area, or stands for several regions.
        """
        if name in self.repeated:
            raise InputError(f"ROI {name!r}: several ROIs with contours have this name; rename all but one")
        if name not in self.rois:
            why = self.skipped.get(name, f"there are {', '.join(self.rois) or 'none'}")
            raise InputError(f"ROI {name!r}: is not among the ROIs with area, {why}; name another")
        return self.rois[name]


@dataclass(frozen=True)
class Rasterized:
    """A mask (x, y, z), the number of contours outside the grid, and what a reader of the result should know."""

    mask: BoolArray
    outside: int
    notes: tuple[str, ...]


def read_structures(path: StrPath) -> Structures:
    """Read an RTSTRUCT file; only closed planar contours are areas, others are set aside in `skipped`.

    Raises:
        InputError: the file is missing, unreadable, not an RT Structure Set, or a contour is not n x 3 numbers.
    """
    dataset = open_dataset(path)
    if sop_class(dataset) != RTSTRUCT:
        raise InputError(f"{path}: is {_described(dataset)}, not an RT Structure Set; give an RTSTRUCT file")
    drawn = {text(roi, "ReferencedROINumber"): roi for roi in items(dataset, "ROIContourSequence")}
    rois: dict[str, tuple[FloatArray, ...]] = {}
    frames: dict[str, str] = {}
    skipped: dict[str, str] = {}
    repeated: set[str] = set()
    for roi in items(dataset, "StructureSetROISequence"):
        number = text(roi, "ROINumber")
        name = text(roi, "ROIName") or f"ROI {number}"
        areas, reason = _areas(drawn.get(number), f"{path}: ROI {name!r}")
        if areas and name in rois:
            repeated.add(name)
            continue
        if areas:
            rois[name], frames[name] = areas, text(roi, "ReferencedFrameOfReferenceUID")
            skipped.pop(name, None)
        if reason and (areas or name not in rois):
            skipped[name] = reason
    own = distinct(frames.values()) or distinct(_frames(dataset))
    return Structures(
        frame_of_reference=own[0] if own else text(dataset, "FrameOfReferenceUID"),
        referenced_series=_referenced_series(dataset),
        patient_id=text(dataset, "PatientID"),
        rois=rois,
        frames=frames,
        skipped=skipped,
        repeated=frozenset(repeated),
    )


def _described(dataset: Dataset) -> str:
    from pydicom.uid import UID

    return str(UID(sop_class(dataset)).name)


def _frames(dataset: Dataset) -> list[str]:
    return [text(frame, "FrameOfReferenceUID") for frame in items(dataset, "ReferencedFrameOfReferenceSequence")]


def _referenced_series(dataset: Dataset) -> tuple[str, ...]:
    return distinct(
        text(series, "SeriesInstanceUID")
        for frame in items(dataset, "ReferencedFrameOfReferenceSequence")
        for study in items(frame, "RTReferencedStudySequence")
        for series in items(study, "RTReferencedSeriesSequence")
    )


def _areas(roi: Dataset | None, where: str) -> tuple[tuple[FloatArray, ...], str]:
    """The closed planar contours of an item of the ROI Contour Sequence, and why others are set aside."""
    contours = [] if roi is None else items(roi, "ContourSequence")
    if not contours:
        return (), "it has no contour"
    areas = []
    others: dict[str, int] = {}
    for index, contour in enumerate(contours):
        kind = text(contour, "ContourGeometricType") or "no type"
        if kind in _AREAS:
            points = _points(contour, f"{where}: contour {index + 1}")
            if len(points) >= 3:
                areas.append(points)
                continue
            kind = f"{kind} of fewer than 3 points"
        others[kind] = others.get(kind, 0) + 1
    reason = ", ".join(f"{count} {kind}" for kind, count in others.items())
    return tuple(areas), reason and f"contours without area are set aside ({reason})"


def _points(contour: Dataset, where: str) -> FloatArray:
    """(n, 3) RAS mm; read from the raw text where pydicom has not parsed it (several times as fast)."""
    element = contour.get_item("ContourData") if "ContourData" in contour else None
    value = getattr(element, "value", None)
    if value is None or len(value) == 0:
        return np.zeros((0, 3))
    try:
        numbers = value.rstrip(b"\0 ").split(b"\\") if isinstance(value, bytes) else list(value)
        points = np.array([float(number) for number in numbers]).reshape(-1, 3)
    except ValueError as error:
        raise InputError(f"{where}: its data is not x, y, z triplets ({error}); export the set again") from error
    if not np.isfinite(points).all():
        raise InputError(f"{where}: has points that are not finite numbers; export the set again")
    ras: FloatArray = points * LPS_TO_RAS
    return ras


def match_roi(wanted: str, names: Iterable[str], *, longer: bool = True) -> str | None:
    """The one name that is meant: the exact name, else one equal but for case, separators and a trailing number,
    else one that starts with the wanted words; None when there is none.

    A name that goes on with a side (``Lung_L`` is half of the lungs), a margin or a planning aid (``Kidney_R_PRV``,
    ``PTV_ring``, ``Cord_5mm``) or a target that was cut out (``Lungs-GTV``) is another region and never meant. Without
    `longer` no name that goes on is: names are then only spellings of one.

    >>> match_roi("gtv", ["Lung_L", "GTV_Mass"])
    'GTV_Mass'

    Raises:
        InputError: several names fit equally well.
    """
    candidates = tuple(dict.fromkeys(names))
    if wanted in candidates:
        return wanted
    stem, number = _normal(wanted)
    tests = (
        [n for n in candidates if _normal(n) == (stem, number)],
        [n for n in candidates if _normal(n)[0] == stem and (not number or {number, _normal(n)[1]} == {"1", ""})],
        [n for n in candidates if longer and _goes_on(wanted, n)],
    )
    found = next((fits for fits in tests if fits), [])
    if len(found) > 1:
        raise InputError(f"ROI {wanted!r}: could be {', '.join(map(repr, found))}; give one of these names")
    return found[0] if found else None


def is_longer(wanted: str, found: str) -> bool:
    """Whether a name that `match_roi` found has words that the wanted one has not."""
    return _normal(wanted)[0] != _normal(found)[0]


def _goes_on(wanted: str, name: str) -> bool:
    start, words = _words(wanted), _words(name)
    more = words[len(start) :]
    return bool(start) and words[: len(start)] == start and not any(map(_ANOTHER.fullmatch, more))


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_\-]+", name.casefold()) if word]


def _normal(name: str) -> tuple[str, str]:
    """A name without case and separators, and its trailing number without leading zeros."""
    joined = "".join(_words(name))
    stem = joined.rstrip("0123456789") or joined
    return stem, joined[len(stem) :].lstrip("0")


def rasterize(
    contours: Sequence[FloatArray], grid: Grid, name: str = "ROI", images: FloatArray | None = None
) -> Rasterized:
    """Paint closed planar contours, each (n, 3) RAS mm, on a grid by the even-odd rule over each plane.

    A voxel is inside when its centre is; a centre on an edge counts as inside where the region lies towards higher
    voxel indices (so that areas that share an edge neither overlap nor leave a gap). Each plane is painted on the
    nearest slice; where several planes share one slice the nearest plane is painted.

    A grid that uneven `images` were resampled onto has other slices than they: `images` (n,) says where they lie along
    its last axis, in slices. A slice without a contour of its own then shows what the image nearest to it shows.

    Raises:
        GeometryError: a contour is not in a plane parallel to the grid's slices.
    """
    mask = np.zeros(grid.shape, bool)
    if not contours:
        return Rasterized(mask, 0, (f"{name}: has no contour",))
    voxels = [grid.to_voxel(np.asarray(contour, np.float64)) for contour in contours]
    axis = _slice_axis(voxels)
    plane_of = _planes(voxels, axis, grid, name)
    flat = [np.round(np.delete(points, axis, 1), _DECIMALS) for points in voxels]
    slices = np.moveaxis(mask, axis, 2)
    chosen, notes = _by_slice(plane_of, flat, slices.shape, name, images if axis == 2 else None)
    doubled = {}
    for index, members in chosen.items():
        unique = {flat[m].tobytes(): flat[m] for m in members}
        doubled[members[0]] = len(members) - len(unique)
        slices[:, :, index] = _even_odd(list(unique.values()), slices.shape[:2])
    outside = sum(_is_outside(w, points, slices.shape) for w, points in zip(plane_of, flat, strict=True))
    if outside:
        notes.append(f"{name}: {outside} of {len(contours)} contours lie outside the volume and are left out")
    twice = sum(doubled.values())
    if twice:
        notes.append(f"{name}: {twice} contours are stored twice and are painted once")
    return Rasterized(mask, outside, tuple(notes))


def _slice_axis(voxels: list[FloatArray]) -> int:
    """The voxel axis that is normal to most of the contours' area (Newell's normal, in voxels)."""
    areas = np.zeros(3)
    for points in voxels:
        centred = points - points.mean(0)
        areas += np.abs(np.cross(centred, np.roll(centred, -1, 0)).sum(0))
    if areas.max() > 0:
        return int(areas.argmax())
    spread: FloatArray = np.sum([np.ptp(points, axis=0) for points in voxels], axis=0)
    return int(spread.argmin())


def _planes(voxels: list[FloatArray], axis: int, grid: Grid, name: str) -> FloatArray:
    """The slice coordinate of each contour's plane, in slices; refuses contours that leave their plane."""
    spacing = grid.spacing[axis]
    limit = max(_PARALLEL * spacing, _PARALLEL)
    planes = np.array([(points[:, axis].min() + points[:, axis].max()) / 2 for points in voxels])
    strays = np.array([np.ptp(points[:, axis]) / 2 for points in voxels]) * spacing
    if strays.max() > limit:
        raise GeometryError(
            f"{name}: contour {int(strays.argmax()) + 1} strays {strays.max():.3g} mm from a plane parallel to the "
            f"slices of grid {grid.describe()}, {limit:.3g} mm are allowed; give the series it was drawn on"
        )
    return planes


def _is_outside(plane: float, points: FloatArray, shape: tuple[int, ...]) -> bool:
    """Whether a contour lies wholly outside the volume's box, whose faces are half a voxel beyond the centres."""
    beside = (points.max(0) < -0.5) | (points.min(0) > np.array(shape[:2]) - 0.5)
    return bool(beside.any() or not 0 <= np.floor(plane + 0.5) < shape[2])


def _by_slice(
    planes: FloatArray, flat: list[FloatArray], shape: tuple[int, ...], name: str, images: FloatArray | None = None
) -> tuple[dict[int, list[int]], list[str]]:
    """The contours of each slice's nearest plane, and notes on planes that do not lie on slices one to one."""
    nearest: IntArray = np.floor(planes + 0.5).astype(np.int64)
    off = np.abs(planes - nearest)
    chosen: dict[int, list[int]] = {}
    dropped = 0
    for index in np.unique(nearest[(nearest >= 0) & (nearest < shape[2])]):
        members = np.flatnonzero(nearest == index)
        best = planes[members[off[members].argmin()]]
        kept = members[np.abs(planes[members] - best) <= _SAME_PLANE]
        chosen[int(index)] = kept.tolist()
        dropped += len(members) - len(kept)
    if images is not None:
        chosen |= _between(chosen, planes, images, shape[2])
    notes = []
    if dropped:
        notes.append(f"{name}: {dropped} contours are left out, another plane is nearer to their slice")
    used = [m for members in chosen.values() for m in members]
    if used and off[used].max() > _NOTEWORTHY:
        notes.append(f"{name}: contours lie up to {off[used].max():.2f} slices from the slice they are painted on")
    gaps = max(chosen) - min(chosen) + 1 - len(chosen) if chosen else 0
    if gaps:
        notes.append(f"{name}: {gaps} slices between its first and last contour have none and stay empty")
    cut = sum(bool((flat[m].min(0) < -0.5).any() or (flat[m].max(0) > np.array(shape[:2]) - 0.5).any()) for m in used)
    if cut:
        notes.append(f"{name}: {cut} contours reach beyond the slices' edges and are cut there")
    return chosen, notes


def _between(chosen: dict[int, list[int]], planes: FloatArray, images: FloatArray, depth: int) -> dict[int, list[int]]:
    """For slices without contours of their own, those on the image nearest to them."""
    filled = {}
    for index in set(range(depth)) - set(chosen):
        off = np.abs(planes - images[np.abs(images - index).argmin()])
        if off.min() <= _ON_IMAGE:
            filled[index] = np.flatnonzero(np.abs(planes - planes[off.argmin()]) <= _SAME_PLANE).tolist()
    return filled


def _even_odd(polygons: list[FloatArray], shape: tuple[int, ...]) -> BoolArray:
    """(columns, rows) whose centres are inside an odd number of polygons (n, 2) in voxels: scan lines, edge parity.

    Every edge owns the rows [low, high) that it spans and flips all centres at or beyond its crossing.
    """
    start = np.concatenate(polygons)
    end = np.concatenate([np.roll(points, -1, 0) for points in polygons])
    swap = start[:, 1] > end[:, 1]
    low, high = np.where(swap[:, None], end, start), np.where(swap[:, None], start, end)
    first = np.clip(np.ceil(low[:, 1]), 0, shape[1]).astype(np.int64)
    count = np.clip(np.ceil(high[:, 1]), 0, shape[1]).astype(np.int64) - first
    edge = np.repeat(np.arange(len(low)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    rise = (row - low[edge, 1]) / (high[edge, 1] - low[edge, 1])
    crossing = np.round(low[edge, 0] + rise * (high[edge, 0] - low[edge, 0]), _DECIMALS)
    column = np.clip(np.ceil(crossing), 0, shape[0]).astype(np.int64)
    flips = np.zeros((shape[0] + 1, shape[1]), bool)
    np.logical_xor.at(flips, (column, row), True)
    inside: BoolArray = np.logical_xor.accumulate(flips, axis=0)[:-1]
    return inside
