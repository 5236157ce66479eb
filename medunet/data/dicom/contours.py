"""Outlines of a mask along its pixel edges, holes joined in by keyholes: exact both for even-odd and for union readers.

A corner (column, row) counts pixel corners: pixel (c, r) covers [c, c + 1] x [r, r + 1], so its centre is (c, r) + 0.5.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medunet.types import BoolArray

Points: TypeAlias = npt.NDArray[np.int64]
"""(n, 2) corners (column, row)."""


class _Runs(NamedTuple):
    """Straight boundary runs: corners they go from and to, and the inside pixel beside each of these ends."""

    start: Points
    end: Points
    start_pixel: Points
    end_pixel: Points


def outlines(mask: BoolArray) -> list[Points]:
    """Closed polygons around a (rows, columns) mask, one for each 4-connected part, without collinear corners.

    Pixels that touch at a corner only are parts of their own. Each hole is joined to what lies left of it by a channel
    of no width along a row of pixel corners (PS3.3 C.8.8.6.3), so no pixel centre lies on a polygon.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    padded = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    loops = _loops(padded)
    signs = [_area(loop) > 0 for loop in loops]
    outer = [loop for loop, is_outer in zip(loops, signs, strict=True) if is_outer]
    holes = [loop for loop, is_outer in zip(loops, signs, strict=True) if not is_outer]
    if holes:
        outer = _join(padded, outer, holes)
    corner = np.array([left - 1, top - 1])
    return [loop + corner for loop in outer]


def _loops(mask: BoolArray) -> list[Points]:
    """Boundaries of a mask with an empty rim, walked with the inside on the right as seen on a screen."""
    runs = _Runs(*(np.concatenate(pair) for pair in zip(_across(mask), _down(mask), strict=True)))
    leaving = np.argsort(_keys(mask, runs.start, runs.start_pixel))
    arriving = np.argsort(_keys(mask, runs.end, runs.end_pixel))
    following = np.empty(len(leaving), dtype=np.int64)
    following[arriving] = leaving
    return _walk(runs.start, following.tolist())


def _across(mask: BoolArray) -> _Runs:
    """Horizontal runs: to the right above the inside, to the left below it."""
    way = mask[1:].astype(np.int8) - mask[:-1]
    ends = np.pad(way, ((0, 0), (1, 1)))
    lines, cuts = np.nonzero(ends[:, 1:] != ends[:, :-1])
    same = lines[1:] == lines[:-1]
    line, begin, stop = lines[:-1][same], cuts[:-1][same], cuts[1:][same]
    sign = way[line, begin]
    line, begin, stop, right = line[sign != 0], begin[sign != 0], stop[sign != 0], sign[sign != 0] > 0
    inside = np.where(right, line + 1, line)
    return _Runs(
        np.stack([np.where(right, begin, stop), line + 1], axis=1),
        np.stack([np.where(right, stop, begin), line + 1], axis=1),
        np.stack([np.where(right, begin, stop - 1), inside], axis=1),
        np.stack([np.where(right, stop - 1, begin), inside], axis=1),
    )


def _down(mask: BoolArray) -> _Runs:
    """Vertical runs: those of the transposed mask, mirrored and so walked the other way."""
    runs = _across(np.ascontiguousarray(mask.T))
    return _Runs(runs.end[:, ::-1], runs.start[:, ::-1], runs.end_pixel[:, ::-1], runs.start_pixel[:, ::-1])


def _keys(mask: BoolArray, corners: Points, pixels: Points) -> npt.NDArray[np.int64]:
    """A number for each corner; where inside pixels touch at a corner only, one for each: a walk keeps to one pixel."""
    column, row = corners[:, 0], corners[:, 1]
    a, b, c, d = mask[row - 1, column - 1], mask[row - 1, column], mask[row, column - 1], mask[row, column]
    touching = (a == d) & (b == c) & (a != b)
    keys: npt.NDArray[np.int64] = (row * mask.shape[1] + column) * 2 + (touching & (pixels[:, 0] == column))
    return keys


def _walk(starts: Points, following: list[int]) -> list[Points]:
    """The cycles of `following`, as the corners where its runs start."""
    seen = [False] * len(following)
    loops = []
    for first in range(len(following)):
        loop, at = [], first
        while not seen[at]:
            seen[at] = True
            loop.append(at)
            at = following[at]
        if loop:
            loops.append(starts[loop])
    return loops


def _area(loop: Points) -> int:
    """Twice the signed area: positive around inside, negative around a hole."""
    column, row = loop[:, 0], loop[:, 1]
    return int(column @ np.roll(row, -1) - np.roll(column, -1) @ row)


def _join(mask: BoolArray, outer: list[Points], holes: list[Points]) -> list[Points]:
    """Outer loops with their holes spliced in, leftmost hole first, so that each channel ends on what is joined.

    Left of the topmost leftmost corner of a hole there is inside above and below, or the hole would go on there; the
    channel follows that row of corners to the first that is not surrounded, on the outer loop or an earlier hole.
    """
    parts: npt.NDArray[Any] = ndimage.label(mask)[0]
    by_part = {_part(parts, loop): loop for loop in outer}
    for hole in sorted((_from_leftmost(h) for h in holes), key=lambda h: int(h[0, 0])):
        column, row = (int(v) for v in hole[0])
        within = mask[row - 1, :column] & mask[row, :column]
        end = int(np.flatnonzero(~within)[-1]) + 1
        part = int(parts[row, column - 1])
        by_part[part] = _splice(by_part[part], hole, (end, row))
    return list(by_part.values())


def _part(parts: npt.NDArray[Any], loop: Points) -> int:
    """The part inside an outer loop: below right of the leftmost of its topmost corners."""
    column, row = loop[np.lexsort((loop[:, 0], loop[:, 1]))[0]]
    return int(parts[row, column])


def _from_leftmost(hole: Points) -> Points:
    """The same loop, started at the topmost of its leftmost corners."""
    return np.roll(hole, -int(np.lexsort((hole[:, 1], hole[:, 0]))[0]), axis=0)


def _splice(loop: Points, hole: Points, end: tuple[int, int]) -> Points:
    """`loop` with a way from its boundary at `end` to `hole`, around it and back."""
    column, row = end
    following = np.roll(loop, -1, axis=0)
    low, high = np.minimum(loop[:, 1], following[:, 1]), np.maximum(loop[:, 1], following[:, 1])
    upright = (loop[:, 0] == column) & (following[:, 0] == column) & (low <= row) & (row <= high)
    at = int(np.flatnonzero(upright)[0])
    arrive = [] if tuple(loop[at]) == end else [end]
    depart = [] if tuple(following[at]) == end else [end]
    way = np.array([*arrive, *hole.tolist(), hole[0].tolist(), *depart], dtype=np.int64)
    return np.concatenate([loop[: at + 1], way, loop[at + 1 :]])
