"""Which images of a series make one volume: stacks of parallel planes with one image at each place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from medunet.data.dicom.frames import Frame
from medunet.data.dicom.geometry import Layout, Stack, is_even, lay_out, refused, same_place
from medunet.data.dicom.header import text
from medunet.data.dicom.pixels import PlaneReader, pixel_digest
from medunet.errors import InputError
from medunet.types import FloatArray

MOST_STACKS = 256
"""Stacks of one series; more planes that differ are no volumes."""
_SAME_DIRECTION = 2e-3  # of a cosine: scanners round them differently from slice to slice
_KEYS = (
    "temporal position", "echo", "b-value", "inversion time", "image type", "stack", "trigger time", "acquisition",
    "kernel",
)  # fmt: skip
_TIMES = ("acquisition time", "series time")  # each slice may have its own; two of them tell two stacks apart
_GAP_FREE = 0.9  # of the distance of slices: their thickness leaves no gap


def by_plane(frames: Iterable[Frame]) -> list[tuple[str, list[Frame]]]:
    """Split by frame of reference, size, pixel spacing and direction; the name says which it is."""
    groups: list[tuple[Frame, list[Frame]]] = []
    for frame in frames:
        own = next((members for first, members in groups if _same_plane(first, frame)), None)
        if own is None:
            groups.append((frame, [frame]))
        else:
            own.append(frame)
        if len(groups) > MOST_STACKS:
            break
    if len(groups) == 1:
        return [("", groups[0][1])]
    names = [f"{_direction(first)} {first.columns} x {first.rows}" for first, _ in groups]
    return [
        (name if names.count(name) == 1 else f"{name}, stack {number + 1}", members)
        for number, (name, (_, members)) in enumerate(zip(names, groups, strict=True))
    ]


def _same_plane(a: Frame, b: Frame) -> bool:
    return (
        (a.rows, a.columns) == (b.rows, b.columns)
        and all(abs(x - y) <= 1e-3 * y for x, y in zip(a.spacing or (), b.spacing or (), strict=True))
        and all(abs(x - y) <= _SAME_DIRECTION for x, y in zip(a.orientation or (), b.orientation or (), strict=True))
        and text(a.file.header, "FrameOfReferenceUID") == text(b.file.header, "FrameOfReferenceUID")
    )


def _direction(frame: Frame) -> str:
    """Axial, coronal or sagittal, oblique when no axis is within 20 degrees of the normal."""
    o = np.array(frame.orientation)
    normal = np.abs(np.cross(o[:3], o[3:]))
    return ("sagittal", "coronal", "axial")[int(np.argmax(normal))] if normal.max() > 0.94 else "oblique"


def by_key(part: str, frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """Split a stack in which images lie at one place by what tells them apart, so that each place has one image.

    So are stacks that lie within each other: without even distances, or where each of them alone leaves no gap.
    """
    whole = [(part, frames)]
    along = _stack_of(frames).along()
    places = same_place(along)
    if len(places) == 1:
        return whole
    tries: list[tuple[str, ...]] = [*((key,) for key in _KEYS), *combinations(_KEYS, 2)]
    accept: Callable[[list[list[Frame]]], bool] = _each_place_once
    if len(places) == len(frames):
        if len(frames) < 4:
            return whole
        accept = _interleaved
        if is_even(along):
            tries, accept = [(key,) for key in (*_KEYS, *_TIMES)], _meshed
    for keys in tries:
        groups: dict[tuple[Any, ...], list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[tuple(frame.keys.get(key) for key in keys)].append(frame)
        if len(groups) > 1 and accept(list(groups.values())):
            lead = f"{part}, " if part else ""
            return [(lead + _key_name(keys, values), groups[values]) for values in sorted(groups, key=_natural)]
    return whole


def _key_name(keys: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))


def _natural(values: Sequence[Any]) -> list[tuple[float, str]]:
    """Numbers in their order, then texts."""
    return [
        (float(v) if isinstance(v, str) and v.replace(".", "", 1).isdigit() else float("inf"), str(v)) for v in values
    ]


def _each_place_once(groups: Sequence[Sequence[Frame]]) -> bool:
    return all(len(group) > 1 and len(same_place(_stack_of(group).along())) == len(group) for group in groups)


def _interleaved(groups: Sequence[Sequence[Frame]]) -> bool:
    """Even stacks that lie within each other: two acquisitions of one region."""
    spans = [np.sort(_stack_of(group).along()) for group in groups]
    if not all(len(span) > 2 and is_even(span) for span in spans):
        return False
    return all(a[0] < b[-1] and b[0] < a[-1] for a, b in combinations(spans, 2))


def _meshed(groups: Sequence[Sequence[Frame]]) -> bool:
    """Stacks within each other that leave no gap alone: two phases or reconstructions, half a slice apart.

    The passes of one stack (odd slices, then even ones) have slices that are thinner than each pass is spaced.
    """
    for group in groups:
        stack = _stack_of(group)
        spacing = float(np.ptp(stack.along())) / max(1, len(group) - 1)
        if not (stack.thickness >= _GAP_FREE * spacing).all():
            return False
    return _interleaved(groups)


def _stack_of(frames: Sequence[Frame]) -> Stack:
    first = frames[0]
    return Stack(
        positions=np.array([frame.position for frame in frames], dtype=np.float64),
        orientation=_orthonormal(np.array(first.orientation, dtype=np.float64)),
        rows=first.rows,
        columns=first.columns,
        pixel=first.spacing or (1.0, 1.0),
        thickness=np.array([np.nan if f.thickness is None else f.thickness for f in frames]),
    )


def _orthonormal(orientation: FloatArray) -> FloatArray:
    """Cosines that a scanner rounded, made unit vectors and orthogonal; nothing changes beyond their last digits."""
    row = orientation[:3] / np.linalg.norm(orientation[:3])
    column = orientation[3:] - row * float(orientation[3:] @ row)
    return np.concatenate([row, column / np.linalg.norm(column)])


def layout_of(frames: list[Frame], allow_gaps: bool) -> Layout:
    """Where the planes of one stack lie, and the verdict."""
    try:
        twins = _twins(frames)
    except InputError as error:
        return refused(str(error))
    layout = lay_out(_stack_of(frames), allow_gaps=allow_gaps, twins=twins)
    types = {text(f.file.header, "PhotometricInterpretation") or "MONOCHROME2" for f in frames}
    if len(types) > 1:
        return refused(f"its images mix {' and '.join(sorted(types))}")
    return layout


def _twins(frames: Sequence[Frame]) -> list[int]:
    """Images that repeat another one at their place, pixel by pixel."""
    twins = []
    for group in same_place(_stack_of(frames).along()):
        if len(group) == len(frames) and len(group) > 2:
            continue  # not a volume, and said so
        seen: set[bytes] = set()
        reader = PlaneReader()
        for index in group if len(group) > 1 else ():
            digest = pixel_digest(frames[index], reader)
            if digest in seen:
                twins.append(index)
            seen.add(digest)
    return twins
