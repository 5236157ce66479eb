"""Label maps on a volume's grid from RT structure sets and DICOM segmentations alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medunet.data.dicom.opening import LABEL_MAP_SEGMENTATION, RTSTRUCT, SEGMENTATION, open_dataset, sop_class
from medunet.data.dicom.rtstruct import Structures, match_roi, rasterize, read_structures
from medunet.data.dicom.segmentation import Segments, layers, present, read_segments
from medunet.data.grid import Grid
from medunet.errors import GeometryError, InputError
from medunet.types import BoolArray, FloatArray, IntArray, StrPath

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_LARGEST = 65535
_Painted = tuple[BoolArray, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Whole numbers (x, y, z), 0 where no region is, and what a reader of them should know."""

    array: IntArray
    notes: tuple[str, ...]


def is_label_object(dataset: Dataset) -> bool:
    """Whether a DICOM data set is an RT Structure Set or a segmentation."""
    return sop_class(dataset) in (RTSTRUCT, SEGMENTATION, LABEL_MAP_SEGMENTATION)


def names_in(path: StrPath) -> tuple[str, ...]:
    """The names of the regions with area in an RTSTRUCT or SEG file.

    Raises:
        InputError: the file is unreadable or of another kind.
    """
    source = _read(path)
    return tuple(source.rois) if isinstance(source, Structures) else present(source)


def label_map(
    path: StrPath,
    on: Grid,
    frame_of_reference: str,
    classes: Mapping[str, int],
    threshold: float = 0.5,
    images: FloatArray | None = None,
) -> LabelMap:
    """The regions of an RTSTRUCT or SEG file as one label map on a grid, placed by geometry.

    Args:
        on: the grid of the image series.
        frame_of_reference: the image series' Frame of Reference UID; the regions must be drawn in it.
        classes: value to store, 1 to 65535, by ROI name or segment label (names match as in `match_roi`);
            where regions overlap the later entry counts.
        threshold: a FRACTIONAL segment's pixel counts from this share of the Maximum Fractional Value on.
        images: where the series' images lie along the grid's last axis, in slices, if they are not its slices.

    Raises:
        InputError: the file is unreadable, a region is not there or could be several, or a value cannot be stored.
        GeometryError: the frame of reference differs or is not known, the planes do not fit, or all is outside.
    """
    if not classes or not all(1 <= value <= _LARGEST for value in classes.values()):
        raise InputError(f"{path}: classes {dict(classes)} do not each have a value of 1 to {_LARGEST}; give them one")
    if not 0 < threshold <= 1:
        raise InputError(f"{path}: threshold {threshold} is not a share above 0 up to 1; give one such as 0.5")
    source = _read(path)
    chosen, notes = _choose(path, source, tuple(classes))
    for name in chosen:
        _same_frame(path, name, _frame_of(source, name), frame_of_reference)
    painted = _painted(path, source, chosen, on, threshold, images)
    array = np.zeros(on.shape, np.uint8 if max(classes.values()) < 256 else np.uint16)
    for (wanted, value), (mask, words) in zip(classes.items(), painted, strict=True):
        notes += words
        overlap = int(np.count_nonzero(array[mask]))
        if overlap:
            notes.append(f"{wanted} overwrites {overlap} voxels of earlier classes")
        if not mask.any():
            notes.append(f"{wanted} has no voxel on the grid")
        array[mask] = value
    if not array.any():
        raise GeometryError(
            f"{path}: no voxel of {', '.join(classes)} lies on the grid {on.describe()}; give the series it belongs to"
        )
    return LabelMap(array, tuple(dict.fromkeys(f"{path}: {note}" for note in notes)))


def _read(path: StrPath) -> Structures | Segments:
    dataset = open_dataset(path, pixels=False)
    if not is_label_object(dataset):
        name = getattr(dataset.get("SOPClassUID"), "name", "of no class")
        raise InputError(f"{path}: is {name}, it has no regions; give an RTSTRUCT or SEG file")
    return read_structures(path) if sop_class(dataset) == RTSTRUCT else read_segments(path)


def _choose(path: StrPath, source: Structures | Segments, wanted: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The name in the file of each wanted class, and a note where it is spelt otherwise."""
    there = tuple(source.rois if isinstance(source, Structures) else source.labels)
    chosen: list[str] = []
    notes = []
    for name in wanted:
        try:
            found = match_roi(name, there)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if found is None:
            why = source.skipped.get(name) if isinstance(source, Structures) else None
            aside = f" ({why})" if why else ""
            raise InputError(f"{path}: has no region {name!r}{aside}, it has {', '.join(there) or 'none'}; name one")
        if found in chosen:
            raise InputError(
                f"{path}: {wanted[chosen.index(found)]!r} and {name!r} both mean {found!r}; name one of it"
            )
        if found != name:
            notes.append(f"{name} is {found}")
        chosen.append(found)
    return chosen, notes


def _frame_of(source: Structures | Segments, name: str) -> str:
    own = source.frames.get(name) if isinstance(source, Structures) else None
    return own or source.frame_of_reference


def _same_frame(path: StrPath, name: str, theirs: str, ours: str) -> None:
    if not theirs or theirs != ours:
        raise GeometryError(
            f"{path}: {name} is drawn in frame of reference {theirs or '(none)'}, the series is in {ours or '(none)'}; "
            f"give the series it was drawn on, or register the two"
        )


def _painted(
    path: StrPath,
    source: Structures | Segments,
    chosen: list[str],
    on: Grid,
    threshold: float,
    images: FloatArray | None,
) -> Iterator[_Painted]:
    """Each region's mask and notes, one at a time."""
    try:
        if isinstance(source, Structures):
            for name in chosen:
                done = rasterize(source.contours(name), on, name, images)
                aside = (f"{name}: {source.skipped[name]}",) if name in source.skipped else ()
                yield done.mask, aside + done.notes
            return
        numbers = [source.labels[name] for name in chosen]
        for name, (_, layer) in zip(chosen, layers(source, numbers, on, threshold), strict=True):
            yield layer.mask, tuple(f"{name}: {note}" for note in layer.notes)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error


@dataclass(frozen=True)
class Contents:
    """What a label object says of itself: its regions with area, and what they were drawn on."""

    names: tuple[str, ...]
    referenced_series: tuple[str, ...]
    frame_of_reference: str
    patient: str


def contents(path: StrPath, threshold: float = 0.5) -> Contents:
    """The regions of an RTSTRUCT or SEG file and the series that it references; `threshold` as in `label_map`.

    Raises:
        InputError: the file is unreadable or of another kind.
    """
    source = _read(path)
    names = tuple(source.rois) if isinstance(source, Structures) else present(source, threshold)
    frames = {_frame_of(source, name) for name in names} if isinstance(source, Structures) else set()
    frame = frames.pop() if len(frames) == 1 else source.frame_of_reference
    return Contents(names, source.referenced_series, frame, source.patient_id)
