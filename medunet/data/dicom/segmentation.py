"""DICOM segmentations (PS3.3 C.8.20): segments by name, each frame placed on a grid by its own plane.

The files are read with pydicom alone: highdicom is an optional extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medunet.data.dicom.opening import (
    LABEL_MAP_SEGMENTATION,
    SEGMENTATION,
    distinct,
    items,
    open_dataset,
    sop_class,
    text,
)
from medunet.data.dicom.planes import FrameGroups, Planes, coincides, in_voxels, planes_of, source_grid
from medunet.data.grid import Grid
from medunet.errors import InputError
from medunet.types import AnyArray, BoolArray, IntArray, StrPath

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")


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
    try:
        return _segments(dataset, path)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a whole segmentation ({error}); export it again") from error


def _segments(dataset: Dataset, path: StrPath) -> Segments:
    kind = text(dataset, "SegmentationType") or ("LABELMAP" if sop_class(dataset) == LABEL_MAP_SEGMENTATION else "")
    if kind not in _KINDS:
        raise InputError(f"{path}: is a segmentation of type {kind!r}; give one of {', '.join(_KINDS)}")
    shared = items(dataset, "SharedFunctionalGroupsSequence")
    frames = items(dataset, "PerFrameFunctionalGroupsSequence")
    count = int(dataset.get("NumberOfFrames") or 1)
    if len(frames) != count:
        raise InputError(f"{path}: describes {len(frames)} of its {count} frames; give a SEG of a volume with planes")
    groups = [
        FrameGroups(frame, shared[0] if shared else None, f"{path}: frame {i + 1}") for i, frame in enumerate(frames)
    ]
    return Segments(
        frame_of_reference=text(dataset, "FrameOfReferenceUID"),
        referenced_series=distinct(text(s, "SeriesInstanceUID") for s in items(dataset, "ReferencedSeriesSequence")),
        patient_id=text(dataset, "PatientID"),
        labels=_labels(dataset, kind),
        kind=kind,
        numbers=np.array([-1 if kind == "LABELMAP" else group.segment() for group in groups], np.int64),
        planes=planes_of(groups, (int(dataset.Rows), int(dataset.Columns))),
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
    put = _copied if coincides(segments.planes, grid) else _sampled
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
        return inside.astype(np.uint8)

    return keep


@dataclass(frozen=True, eq=False)
class _Painted:
    """Values (x, y, z) on the grid, 0 for nothing."""

    values: IntArray
    outside: int
    notes: tuple[str, ...]


def _type(segments: Segments) -> type[np.integer[Any]]:
    return np.int32 if segments.kind == "LABELMAP" else np.uint8


def _copied(segments: Segments, indices: Sequence[int], keep: Callable[[AnyArray], IntArray], grid: Grid) -> _Painted:
    """Pixels copied to the voxels that they coincide with."""
    values = np.zeros(grid.shape, _type(segments))
    origins, columns, rows = (np.rint(part).astype(int) for part in in_voxels(segments.planes, grid))
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
    source, slots = source_grid(segments.planes)
    volume = np.zeros(source.shape, _type(segments))
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


def _nearest(volume: IntArray, source: Grid, grid: Grid) -> IntArray:
    """`volume` on `grid`, nearest neighbour; only the box around what is not 0 is computed."""
    from scipy.ndimage import affine_transform

    values = np.zeros(grid.shape, volume.dtype)
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
