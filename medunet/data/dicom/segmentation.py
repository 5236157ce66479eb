"""DICOM segmentations (PS3.3 C.8.20): segments by name, each frame placed on a grid by its own plane.

The files are decoded with pydicom alone (highdicom, which refuses some real files, is an extra and only writes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medunet.data.dicom.opening import (
    LABEL_MAP_SEGMENTATION,
    LPS_TO_RAS,
    SEGMENTATION,
    distinct,
    items,
    open_dataset,
    sop_class,
    text,
)
from medunet.data.grid import Grid
from medunet.errors import GeometryError, InputError
from medunet.types import AnyArray, BoolArray, FloatArray, IntArray, StrPath

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")
_EXACT = 1e-2
"""Pixel centres this close (in voxels) to voxel centres are the same."""
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
    """

    origins: FloatArray
    columns: FloatArray
    rows: FloatArray
    step: float
    thickness: float

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
        return float(gaps[gaps > _EVEN * self.pixel].min(initial=np.inf)) if (gaps > _EVEN * self.pixel).any() else 0.0


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of a segmentation object; the pixels stay packed until `place`.

    Attributes:
        frame_of_reference: UID that the frames' planes are given in.
        referenced_series: Series Instance UIDs that the object says it was made from.
        patient_id: Patient ID, empty when there is none.
        labels: segment number by label; labels that several segments share have the number appended.
        kind: ``BINARY``, ``FRACTIONAL`` or ``LABELMAP``.
        numbers: each frame's segment number, -1 for a label map.
        planes: where each frame lies.
    """

    frame_of_reference: str
    referenced_series: tuple[str, ...]
    patient_id: str
    labels: dict[str, int]
    kind: str
    numbers: IntArray
    planes: Planes = field(repr=False)
    dataset: Dataset = field(repr=False)

    def pixels(self, indices: Sequence[int]) -> Iterator[AnyArray]:
        """The stored values (rows, columns) of the frames in `indices`, in that order.

        Raises:
            InputError: they are cut short or compressed in a way that nothing installed decodes.
        """
        from pydicom.pixels.utils import iter_pixels

        if not len(indices):
            return
        try:
            if self.dataset.BitsAllocated == 1 and not self.dataset.file_meta.TransferSyntaxUID.is_encapsulated:
                yield from (_bits(self.dataset, index) for index in indices)
            else:
                yield from iter_pixels(self.dataset, indices=list(indices))
        except (ValueError, RuntimeError, NotImplementedError, AttributeError, IndexError) as error:
            raise InputError(f"segmentation: its frames cannot be decoded ({error}); export it uncompressed") from error


@dataclass(frozen=True, eq=False)
class Layer:
    """One segment's mask (x, y, z), its frames outside the grid, and what a reader of it should know."""

    mask: BoolArray
    outside: int
    notes: tuple[str, ...]


def read_segments(path: StrPath) -> Segments:
    """Read a DICOM Segmentation or Label Map Segmentation file; overlapping segments are fine.

    Raises:
        InputError: the file is missing, unreadable, not a segmentation, or its frames do not say where they lie.
    """
    dataset = open_dataset(path)
    if sop_class(dataset) not in (SEGMENTATION, LABEL_MAP_SEGMENTATION):
        name = getattr(dataset.get("SOPClassUID"), "name", "of no class")
        raise InputError(f"{path}: is {name}, not a segmentation; give a DICOM SEG file")
    kind = text(dataset, "SegmentationType") or ("LABELMAP" if sop_class(dataset) == LABEL_MAP_SEGMENTATION else "")
    if kind not in _KINDS:
        raise InputError(f"{path}: is a segmentation of type {kind!r}; give one of {', '.join(_KINDS)}")
    shared = items(dataset, "SharedFunctionalGroupsSequence")
    frames = items(dataset, "PerFrameFunctionalGroupsSequence")
    count = int(dataset.get("NumberOfFrames") or 1)
    if len(frames) != count:
        raise InputError(f"{path}: describes {len(frames)} of its {count} frames; give a SEG of a volume with planes")
    groups = [_Groups(frame, shared[0] if shared else None, f"{path}: frame {i + 1}") for i, frame in enumerate(frames)]
    return Segments(
        frame_of_reference=text(dataset, "FrameOfReferenceUID"),
        referenced_series=distinct(text(s, "SeriesInstanceUID") for s in items(dataset, "ReferencedSeriesSequence")),
        patient_id=text(dataset, "PatientID"),
        labels=_labels(dataset, kind),
        kind=kind,
        numbers=np.array([-1 if kind == "LABELMAP" else group.segment() for group in groups], np.int64),
        planes=_planes(groups),
        dataset=dataset,
    )


def _bits(dataset: Dataset, index: int) -> AnyArray:
    """A frame of packed bits, which need not begin on a byte (PS3.5 8.1.1; pydicom 3.0 only reads it if it does)."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    first = index * rows * columns
    last = first + rows * columns
    packed = np.frombuffer(dataset.PixelData, np.uint8)[first // 8 : -(-last // 8)]
    if len(packed) * 8 < last - first // 8 * 8:
        raise ValueError(f"frame {index + 1} is cut short")
    return np.unpackbits(packed, bitorder="little")[first % 8 :][: rows * columns].reshape(rows, columns)


def _labels(dataset: Dataset, kind: str) -> dict[str, int]:
    """Segment numbers by label; the background of a label map (number 0 or the padding value) is no segment."""
    background = int(dataset.get("PixelPaddingValue") or 0) if kind == "LABELMAP" else None
    named = [
        (int(segment.SegmentNumber), text(segment, "SegmentLabel") or "segment")
        for segment in items(dataset, "SegmentSequence")
        if int(segment.SegmentNumber) != background
    ]
    labels = [label for _, label in named]
    return {label if labels.count(label) == 1 else f"{label} {number}": number for number, label in named}


class _Groups:
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
        return int(self.value("SegmentIdentificationSequence", "ReferencedSegmentNumber"))

    def length(self, keyword: str) -> float:
        return abs(float(self.value("PixelMeasuresSequence", keyword, needed=False) or 0))

    def plane(self) -> FloatArray:
        """(3, 3): origin, column step, row step in RAS mm (PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1)."""
        position = self.value("PlanePositionSequence", "ImagePositionPatient")
        orientation = self.value("PlaneOrientationSequence", "ImageOrientationPatient")
        between_rows, between_columns = (float(s) for s in self.value("PixelMeasuresSequence", "PixelSpacing"))
        cosines = np.array(orientation, np.float64).reshape(2, 3)
        origin = np.array(position, np.float64)
        plane: FloatArray = np.stack([origin, cosines[0] * between_columns, cosines[1] * between_rows]) * LPS_TO_RAS
        if not np.isfinite(plane).all() or np.linalg.norm(np.cross(plane[1], plane[2])) < 1e-9:
            raise GeometryError(f"{self._where}: its plane has no area {plane.tolist()}; export the SEG again")
        return plane


def _planes(groups: Sequence[_Groups]) -> Planes:
    planes = np.array([group.plane() for group in groups])
    lengths = (groups[0].length(keyword) for keyword in ("SpacingBetweenSlices", "SliceThickness"))
    return Planes(planes[:, 0], planes[:, 1], planes[:, 2], *lengths)


def place(segments: Segments, numbers: Iterable[int], grid: Grid, threshold: float = 0.5) -> dict[int, Layer]:
    """Masks of the segments with these numbers on `grid`, in a dictionary by number; see `layers`."""
    return dict(layers(segments, numbers, grid, threshold))


def layers(
    segments: Segments, numbers: Iterable[int], grid: Grid, threshold: float = 0.5
) -> Iterator[tuple[int, Layer]]:
    """Each segment's mask on `grid`, one at a time, in the order asked for.

    Pixels whose centres coincide with voxel centres (to 0.01 voxel, in any row, column and frame order) are copied;
    else voxels take the nearest pixel and a note says so. What the file has no frame for is outside the segment.

    Args:
        threshold: a FRACTIONAL pixel counts from this share of the Maximum Fractional Value on.

    Raises:
        InputError: a number is not a segment's, or the pixels cannot be decoded.
        GeometryError: frames that do not coincide with the grid do not form evenly spaced parallel planes either.
    """
    numbers = list(numbers)
    unknown = sorted(set(numbers) - set(segments.labels.values()))
    if unknown:
        raise InputError(f"segments {unknown}: are not there; give some of {segments.labels}")
    put = _copied if _coincides(segments, grid) else _sampled
    if segments.kind == "LABELMAP":
        every = put(segments, range(len(segments.numbers)), _chosen(numbers), grid)
        for number in numbers:
            yield number, Layer(every.values == number + 1, every.outside, every.notes)
        return
    keep = _foreground(segments, threshold)
    for number in numbers:
        done = put(segments, np.flatnonzero(segments.numbers == number).tolist(), keep, grid)
        yield number, Layer(done.values > 0, done.outside, done.notes)


def present(segments: Segments, threshold: float = 0.5) -> tuple[str, ...]:
    """The labels of the segments that have a pixel."""
    found: set[int] = set()
    if segments.kind == "LABELMAP":
        for pixels in segments.pixels(range(len(segments.numbers))):
            found.update(np.unique(pixels).tolist())
    else:
        keep = _foreground(segments, threshold)
        for number in set(segments.labels.values()):
            frames = np.flatnonzero(segments.numbers == number).tolist()
            if any(keep(pixels).any() for pixels in segments.pixels(frames)):
                found.add(number)
    return tuple(label for label, number in segments.labels.items() if number in found)


def _chosen(numbers: list[int]) -> Callable[[AnyArray], IntArray]:
    """Number + 1 where a label map's frame has one of the numbers, else 0."""
    return lambda pixels: np.where(np.isin(pixels, numbers), pixels.astype(np.int32) + 1, 0)


def _foreground(segments: Segments, threshold: float) -> Callable[[AnyArray], IntArray]:
    """What counts as inside in a frame of a BINARY or FRACTIONAL segmentation."""
    cut = threshold * float(segments.dataset.get("MaximumFractionalValue") or 255)
    fractional = segments.kind == "FRACTIONAL"

    def keep(pixels: AnyArray) -> IntArray:
        inside: BoolArray = (pixels > 0) & (pixels >= cut) if fractional else pixels > 0
        return inside.astype(np.int32)

    return keep


@dataclass(frozen=True, eq=False)
class _Painted:
    """Values (x, y, z) on the grid, 0 for nothing."""

    values: IntArray
    outside: int
    notes: tuple[str, ...]


def _in_voxels(planes: Planes, grid: Grid) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Origins, column steps and row steps in the grid's voxels, each (n, 3)."""
    origin = grid.to_voxel(np.zeros((1, 3)))
    return (
        grid.to_voxel(planes.origins),
        grid.to_voxel(planes.columns) - origin,
        grid.to_voxel(planes.rows) - origin,
    )


def _size(segments: Segments) -> tuple[int, int]:
    return int(segments.dataset.Rows), int(segments.dataset.Columns)


def _coincides(segments: Segments, grid: Grid) -> bool:
    """Whether every pixel's centre is a voxel's centre and no grid slice lies between two of the file's."""
    origins, columns, rows = _in_voxels(segments.planes, grid)
    for steps in (columns, rows):
        if not np.array_equal(np.abs(np.rint(steps)).sum(1), np.ones(len(steps))):
            return False
    last_row, last_column = (n - 1 for n in _size(segments))
    corners = np.stack([origins + c * columns + r * rows for c in (0, last_column) for r in (0, last_row)])
    if np.abs(corners - np.rint(corners)).max() > _EXACT:
        return False
    drift = np.abs(columns - np.rint(columns)).max() * last_column + np.abs(rows - np.rint(rows)).max() * last_row
    return bool(drift <= 4 * _EXACT and not _sparser(segments.planes, grid))


def _sparser(planes: Planes, grid: Grid) -> bool:
    """Whether the file's slices lie further apart than the grid's, so that the ones between have no frame."""
    slices = 1 / np.abs(np.linalg.inv(grid.affine)[:3, :3] @ planes.normal).max()
    said = planes.step or planes.thickness
    apart = planes.apart() or said
    return bool(min(apart, said or apart) > 1.5 * slices)


def _copied(segments: Segments, indices: Sequence[int], keep: Callable[[AnyArray], IntArray], grid: Grid) -> _Painted:
    """Pixels copied to the voxels that they coincide with."""
    values = np.zeros(grid.shape, np.int32)
    origins, columns, rows = (np.rint(part).astype(int) for part in _in_voxels(segments.planes, grid))
    outside, cut = 0, 0
    for index, pixels in zip(indices, segments.pixels(indices), strict=True):
        frame = keep(pixels)
        across, down = int(np.abs(columns[index]).argmax()), int(np.abs(rows[index]).argmax())
        through = 3 - across - down
        total = int(np.count_nonzero(frame))
        landed = 0
        if 0 <= origins[index, through] < grid.shape[through]:
            target = np.moveaxis(values, (through, down, across), (0, 1, 2))[origins[index, through]]
            r = origins[index, down] + rows[index, down] * np.arange(frame.shape[0])
            c = origins[index, across] + columns[index, across] * np.arange(frame.shape[1])
            inside_r, inside_c = (r >= 0) & (r < target.shape[0]), (c >= 0) & (c < target.shape[1])
            part = frame[np.ix_(inside_r, inside_c)]
            where = np.ix_(r[inside_r], c[inside_c])
            target[where] = np.where(part, part, target[where])
            landed = int(np.count_nonzero(part))
        outside += bool(total and not landed)
        cut += bool(landed and landed < total)
    return _Painted(values, outside, _beyond(outside, cut))


def _beyond(outside: int, cut: int) -> tuple[str, ...]:
    notes = []
    if outside:
        notes.append(f"{outside} frames lie outside the volume and are left out")
    if cut:
        notes.append(f"{cut} frames reach beyond the volume's edges and are cut there")
    return tuple(notes)


def _sampled(segments: Segments, indices: Sequence[int], keep: Callable[[AnyArray], IntArray], grid: Grid) -> _Painted:
    """Each voxel takes the pixel nearest to it, half a pixel and half a slice step around the frames at most."""
    source, slots = _source(segments)
    volume = np.zeros(source.shape, np.int32)
    outside = 0
    for index, pixels in zip(indices, segments.pixels(indices), strict=True):
        frame = keep(pixels).T
        at = volume[:, :, slots[index]]
        np.copyto(at, frame, where=frame > 0)
        outside += bool(frame.any() and _misses(grid, source, frame, slots[index]))
    note = f"the segmentation's grid {source.describe()} is another; voxels take the nearest pixel's value"
    return _Painted(_nearest(volume, source, grid), outside, (note, *_beyond(outside, 0)))


def _misses(grid: Grid, source: Grid, frame: IntArray, slot: int) -> bool:
    """Whether no inside pixel of a frame (columns, rows) lies in the grid's box."""
    pixels = np.argwhere(frame)
    voxels = grid.to_voxel(source.to_world(np.column_stack([pixels, np.full(len(pixels), slot)])))
    return not ((voxels >= -0.5) & (voxels < np.array(grid.shape) - 0.5)).all(1).any()


def _source(segments: Segments) -> tuple[Grid, IntArray]:
    """The grid that the frames form, missing ones included, and each frame's slice on it."""
    planes = segments.planes
    rows, columns = _size(segments)
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
        slots = np.rint((depth - depth.min()) / apart).astype(np.int64)
        step = reach / slots.max() if slots.max() else normal * apart
        if np.abs(planes.origins - start - slots[:, None] * step).max() <= tolerance:
            affine = np.eye(4)
            affine[:3] = np.column_stack([planes.columns[0], planes.rows[0], step, start])
            return Grid((columns, rows, int(slots.max()) + 1), affine), slots
    raise GeometryError(
        "segmentation: its planes are not parallel and evenly spaced and do not coincide with the "
        "volume's slices; give the series it was drawn on"
    )


def _nearest(volume: IntArray, source: Grid, grid: Grid) -> IntArray:
    """`volume` on `grid`, nearest neighbour; only the box around what is not 0 is computed."""
    from scipy.ndimage import affine_transform

    values = np.zeros(grid.shape, np.int32)
    used = np.argwhere(volume)
    if not len(used):
        return values
    low, high = used.min(0) - 0.5, used.max(0) + 0.5
    corners = np.array([[(low, high)[b][axis] for axis, b in enumerate((i, j, k))] for i, j, k in np.ndindex(2, 2, 2)])
    voxels = grid.to_voxel(source.to_world(corners))
    start = np.clip(np.floor(voxels.min(0)), 0, grid.shape).astype(int)
    stop = np.clip(np.ceil(voxels.max(0)) + 1, 0, grid.shape).astype(int)
    if (stop <= start).any():
        return values
    matrix = np.linalg.inv(source.affine) @ grid.affine
    offset = matrix[:3, :3] @ start + matrix[:3, 3]
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    values[box] = affine_transform(
        volume, matrix[:3, :3], offset, tuple(stop - start), order=0, mode="grid-constant", cval=0
    )
    return values
