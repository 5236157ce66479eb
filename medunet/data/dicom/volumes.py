"""From a stack of DICOM images to a volume, and from a label map back to the planes that the stack was made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from medunet.data.dicom.files import quiet
from medunet.data.dicom.frames import bits_of
from medunet.data.dicom.geometry import Layout
from medunet.data.dicom.pixels import PlaneReader, stored_type
from medunet.data.dicom.scan import Scan, Series, is_inverted, scan
from medunet.data.dicom.source import Source
from medunet.data.grid import Grid
from medunet.data.volume import Header, Volume
from medunet.errors import GeometryError, InputError, ResourceError
from medunet.types import AnyArray, FloatArray, IntArray, StrPath

_INT16 = np.iinfo(np.int16)


def read_series(source: StrPath) -> Volume:
    """Read the one stack that a source means (see `find_series`) as a volume on its grid.

    CT in Hounsfield units, PET in SUVbw, all with the rescaling of each slice. Integers stay integers where no slice
    scales them. Resampled volumes are float32.

    Raises:
        GeometryError: the stack is refused; the message says why.
        InputError: there is none, or several, or pixels cannot be read.
    """
    return read_stack(find_series(source))


def read_series_header(source: StrPath) -> Header:
    """The grid that `read_series` will give, without reading pixels."""
    return series_header(find_series(source))


def series_header(series: Series) -> Header:
    """The grid that `read_stack` will give.

    Raises:
        GeometryError: the stack is refused.
    """
    return Header(_grid(series), 1, provenance(series))


def image_places(series: Series) -> FloatArray | None:
    """(n,) where the images lie along the last axis of their grid, in slices; None where its slices are the images."""
    return _offsets(series.layout, _grid(series))[:, 2] if series.layout.resampled else None


def read_source(source: StrPath) -> Volume:
    """An image (`read_series`), or the label map of a SEG or RTSTRUCT source that says ``on`` which image it lies."""
    if "on" in Source.parse(source).options:
        from medunet.data.dicom.label_source import read_label_source

        return read_label_source(source)
    return read_series(source)


def provenance(series: Series) -> dict[str, Any]:
    """The verdict and the series that it was given for, as plain values: what is saved beside a result."""
    return {
        **series.verdict.as_json(), "modality": series.modality, "series": series.uid, "part": series.part,
        "frame_of_reference": series.frame_of_reference,
    }  # fmt: skip


def find_series(source: StrPath) -> Series:
    """The stack that a source names by ``series`` and ``part``, or the only one that is not refused.

    Where a refused stack shows the same place or is of the same series, what is left is not the whole: all is refused.

    Raises:
        GeometryError: it is refused.
        InputError: there is none, or more than one.
    """
    where = Source.parse(source)
    found = scan(where.path, allow_gaps="allow_gaps" in where.options)
    chosen = [s for s in found.series if is_meant(s, where)]
    if not chosen:
        raise InputError(f"{source}: {_nothing(found, bool(where.options))}")
    usable = [s for s in chosen if s.verdict.state != "refused"]
    if len(usable) > 1:
        raise InputError(f"{source}: holds {len(usable)} stacks of images; choose one: {_choices(usable)}")
    refused = [s for s in chosen if s.verdict.state == "refused" and (not usable or _belong_together(s, usable[0]))]
    if refused:
        rest = f"; to read what is left, choose {_choices(usable)}" if usable else ""
        reasons = "; ".join(refused[0].verdict.refusals)
        raise GeometryError(f"{source}: {refused[0].name} is refused: {reasons}{rest}")
    return usable[0]


def _choices(stacks: Sequence[Series]) -> str:
    return "; ".join(f"{s.name} (#series={s.uid}&part={quote(s.part, safe=' ')})" for s in stacks[:4])


def _belong_together(a: Series, b: Series) -> bool:
    return a.uid == b.uid or (bool(a.frame_of_reference) and a.frame_of_reference == b.frame_of_reference)


def is_meant(series: Series, where: Source) -> bool:
    """Whether a source's options ``series`` and ``part`` name this stack, or none in particular."""
    wanted, part = where.options.get("series"), where.options.get("part")
    return (wanted is None or series.uid == wanted) and (part is None or series.part == part)


def _nothing(found: Scan, narrowed: bool) -> str:
    if narrowed and found.series:
        known = ", ".join(s.uid for s in found.series[:4])
        return f"has no such series; it holds {known}"
    if found.labels:
        return f"holds label objects ({found.labels[0].kind}) and no image series; give the folder of the images"
    if not found.aside:
        return "is empty; give a DICOM series"
    first = found.aside[0]
    more = f", and {len(found.aside) - 1} more files set aside" if len(found.aside) > 1 else ""
    return f"holds no DICOM image series ({first.location}: {first.reason}{more}); run medunet dicom on it"


def read_stack(series: Series) -> Volume:
    """The volume of a stack, whose verdict is not refused.

    Raises:
        GeometryError: it is refused.
        InputError: pixels cannot be read.
        ResourceError: it does not fit the memory.
    """
    grid = _grid(series)
    try:
        with quiet():
            planes = _planes(series)
        if series.layout.resampled:
            return Volume(_resample(planes, series.layout, grid)[None], grid, provenance(series))
    except MemoryError as error:
        frame = series.frames[0]
        size = f"{len(series.frames)} images of {frame.columns} x {frame.rows} pixels"
        raise ResourceError(f"{series.folder}: {series.name}: {size} do not fit the memory; read fewer") from error
    return Volume(planes.transpose(2, 1, 0)[None], grid, provenance(series))


def _grid(series: Series) -> Grid:
    if series.layout.grid is None or series.verdict.state == "refused":
        raise GeometryError(f"{series.folder}: {series.name} is refused: {'; '.join(series.verdict.refusals)}")
    return series.layout.grid


def _planes(series: Series) -> AnyArray:
    """(planes, rows, columns) of real values, in order."""
    frames = series.ordered()
    whole = all(f.slope == 1 and f.intercept == int(f.intercept) for f in frames) and series.value_factor == 1
    types = {stored_type(frame) for frame in frames}
    shape = (len(frames), frames[0].rows, frames[0].columns)
    narrow = whole and len(types) == 1 and next(iter(types)).itemsize <= 2
    reader = PlaneReader()
    first = reader.read(frames[0])  # what cannot be read is told before memory is taken
    plain = np.empty(shape, next(iter(types)) if narrow else np.int64 if whole else np.float32)
    for number, frame in enumerate(frames):
        stored = reader.read(frame) if number else first
        if is_inverted(series):
            stored = _turned(stored, frame)
        if narrow:
            plain[number] = stored
        else:
            values = stored.astype(np.float64) * (frame.slope * series.value_factor)
            plain[number] = values + frame.intercept * series.value_factor
    return _shifted(plain, [f.intercept for f in frames]) if narrow else _small(plain)


def _turned(stored: AnyArray, frame: Any) -> AnyArray:
    """MONOCHROME1: the largest stored value becomes the smallest."""
    _, bits, _ = bits_of(frame.file.header)
    total = -1 if stored.dtype.kind == "i" else (1 << bits) - 1
    result: AnyArray = (total - stored.astype(np.int64)).astype(stored.dtype)
    return result


def _shifted(planes: AnyArray, intercepts: Sequence[float]) -> AnyArray:
    """Stored 8 or 16 bit values plus whole intercepts, in the smallest signed type that holds them."""
    offsets = np.array(intercepts, dtype=np.int64)
    if not offsets.any():
        return planes
    low, high = int(planes.min()) + int(offsets.min()), int(planes.max()) + int(offsets.max())
    if planes.itemsize == 2 and _INT16.min <= low and high <= _INT16.max:
        shifted = planes.view(np.int16)  # arithmetic modulo 2^16 is exact, since the result fits
        shifted += offsets.astype(np.int16)[:, None, None]
        return shifted
    return planes.astype(np.int32) + offsets.astype(np.int32)[:, None, None]


def _small(planes: AnyArray) -> AnyArray:
    if planes.dtype != np.int64:
        return planes
    fits = planes.size and planes.min() >= -(2**31) and planes.max() < 2**31
    return planes.astype(np.int32) if fits else planes.astype(np.float32)


def _resample(planes: AnyArray, layout: Layout, grid: Grid) -> FloatArray:
    """Linear interpolation, float32, of tilted or uneven planes onto the upright uniform grid.

    Within a plane the voxels are only shifted (the grid has the planes' own orientation and pixels); between planes the
    two nearest are mixed. Outside the planes stands the smallest value of the volume.
    """
    offsets = _offsets(layout, grid)
    background = np.float32(planes.min())
    result = np.empty((grid.shape[2], grid.shape[1], grid.shape[0]), dtype=np.float32)
    shifted: dict[int, FloatArray] = {}
    depths = offsets[:, 2]
    for z in range(grid.shape[2]):
        below = int(np.clip(np.searchsorted(depths, z, side="right") - 1, 0, len(depths) - 2)) if len(depths) > 1 else 0
        above = min(below + 1, len(depths) - 1)
        for index in [i for i in shifted if i < below]:
            del shifted[index]
        for index in (below, above):
            if index not in shifted:
                shifted[index] = _shift_plane(planes[index], offsets[index], grid, background)
        step = depths[above] - depths[below]
        weight = np.float32(np.clip((z - depths[below]) / step, 0, 1) if step > 0 else 0)
        result[z] = shifted[below] * (1 - weight) + shifted[above] * weight
    return result.transpose(2, 1, 0)


def _offsets(layout: Layout, grid: Grid) -> FloatArray:
    """(n, 3) voxel coordinates, in `grid`, of the first pixel of each plane."""
    return grid.to_voxel(layout.planes[:, :3, 3])


def _shift_plane(plane: AnyArray, offset: FloatArray, grid: Grid, background: np.float32) -> FloatArray:
    """A plane placed at a fractional offset (x, y) in the grid's plane."""
    result = np.full((grid.shape[1], grid.shape[0]), background, dtype=np.float32)
    base = np.floor(offset[:2] + 1e-4).astype(int)
    part = np.clip(offset[:2] - base, 0, 1)
    part[part < 1e-3] = 0
    moved = plane.astype(np.float32)
    for axis, fraction in ((1, part[0]), (0, part[1])):
        if fraction:
            moved = _delay(moved, axis, np.float32(fraction), background)
    x, y = int(base[0]), int(base[1])
    rows, columns = moved.shape
    target = result[max(y, 0) : y + rows, max(x, 0) : x + columns]
    target[...] = moved[max(-y, 0) :, max(-x, 0) :][: target.shape[0], : target.shape[1]]
    return result


def _delay(plane: FloatArray, axis: int, fraction: np.float32, background: np.float32) -> FloatArray:
    """Shift by a fraction of a pixel towards higher indices, one pixel longer than before."""
    before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
    before[axis], after[axis] = (1, 0), (0, 1)
    behind = np.pad(plane, before, constant_values=background)
    ahead = np.pad(plane, after, constant_values=background)
    result: FloatArray = ahead * (1 - fraction) + behind * fraction
    return result


def to_planes(labels: IntArray, grid: Grid, series: Series) -> IntArray:
    """Labels (x, y, z) on the grid of `series` -> (planes, rows, columns) on its own images.

    Exact where the series was read as it is; the nearest voxel where reading had to resample it.
    """
    _grid(series).require(grid, "series", "label")
    if not series.layout.resampled:
        return np.ascontiguousarray(labels.transpose(2, 1, 0))
    frames = series.ordered()
    rows, columns = frames[0].rows, frames[0].columns
    result = np.zeros((len(frames), rows, columns), dtype=labels.dtype)
    for index, offset in enumerate(np.rint(_offsets(series.layout, grid)).astype(int)):
        x, y, z = (int(v) for v in offset)
        z = min(max(z, 0), grid.shape[2] - 1)
        result[index] = labels[x : x + columns, y : y + rows, z].T
    return result
