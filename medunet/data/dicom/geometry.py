"""Where the planes of a stack lie, and on which grid they make a volume: arithmetic only, nothing is guessed.

Slices are ordered by their position along the normal; InstanceNumber is never asked. A stack is

- accepted: parallel planes at one distance, stacked along their normal;
- repaired: tilted or unevenly spaced, resampled onto an orthogonal uniform grid; or missing slices, when allowed;
- refused: what it would take to make a volume is not in the files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from medunet.data.grid import Grid
from medunet.types import Affine, FloatArray, Shape

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_PLACE = 0.01  # of the spacing: planes closer than this are at one place
_UNEVEN = 0.05  # of the spacing: planes farther from their even place than this are unevenly spaced
_ROUNDED = 0.051  # mm: some scanners write positions with one decimal
_SIDEWAYS = 0.1  # of a pixel over the whole stack: more is a tilt
_GAP = 1.8  # times the expected distance: a slice is missing (a whole one makes it 2)
_MOST_VOXELS = 2**24  # of a resampled stack, or so many times the pixels that it was made of:
_MOST_GROWTH = 20

State = Literal["accepted", "repaired", "refused"]


@dataclass(frozen=True)
class Verdict:
    """What may be done with a stack, and why; printed, saved beside each result, shown in the report."""

    repairs: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """Accepted, repaired or refused."""
        return "refused" if self.refusals else "repaired" if self.repairs else "accepted"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was not simply accepted."""
        return self.refusals or self.repairs

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"verdict": self.state, "reasons": list(self.reasons), "notes": list(self.notes)}


@dataclass(frozen=True)
class Stack:
    """Parallel planes, their places in LPS mm, and the size of their pixels.

    `positions` (n, 3): centres of the first pixels; `orientation` (6,): along a row, along a column (PS3.3 C.7.6.2);
    `pixel`: mm between rows and between columns; `thickness` (n,): mm or NaN.
    """

    positions: FloatArray
    orientation: FloatArray
    rows: int
    columns: int
    pixel: tuple[float, float]
    thickness: FloatArray

    @property
    def normal(self) -> FloatArray:
        """Unit vector from slice to slice: row direction x column direction."""
        cross = np.cross(self.orientation[:3], self.orientation[3:])
        normal: FloatArray = cross / np.linalg.norm(cross)
        return normal

    def along(self) -> FloatArray:
        """(n,) mm along the normal."""
        result: FloatArray = self.positions @ self.normal
        return result


@dataclass(frozen=True)
class Layout:
    """The planes of a stack in order, and the grid of the volume that they make.

    `order`: indices of the planes that are used, ascending along the normal. `planes` (n, 4, 4): pixel (column, row, 0)
    -> RAS mm of each of them. Where `resampled`, the volume is interpolated between and within them.
    """

    verdict: Verdict
    order: tuple[int, ...]
    planes: FloatArray = field(repr=False)
    grid: Grid | None
    resampled: bool = False


def refused(reason: str) -> Layout:
    """The layout of images that make no stack."""
    return Layout(Verdict(refusals=(reason,)), (), np.zeros((0, 4, 4)), None)


def lay_out(stack: Stack, *, allow_gaps: bool = False, twins: Sequence[int] = ()) -> Layout:
    """The grid of a stack, or why there is none. `twins` are planes that repeat another one, pixel by pixel."""
    along = stack.along()
    order = [int(i) for i in np.argsort(along, kind="stable") if int(i) not in set(twins)]
    repairs = [f"{_count(len(twins), 'duplicate image')} left out"] if twins else []
    notes: list[str] = []
    planes = np.stack([_LPS_TO_RAS @ plane_affine(stack, i) for i in order])
    refusal = _misplaced(stack, along[order])
    if refusal:
        return Layout(Verdict(tuple(repairs), (refusal,)), tuple(order), planes, None)
    if len(order) == 1:
        return _single(stack, order, planes, repairs)
    gaps = np.diff(along[order])
    missing = missing_slices(gaps, stack.thickness[order])
    if missing.any() and not allow_gaps:
        refusal = f"{_gap_words(along[order], gaps, missing)}; add the missing slices or allow gaps (--allow-gaps)"
        return Layout(Verdict(tuple(repairs), (refusal,)), tuple(order), planes, None)
    if missing.any():
        repairs.append(f"{_gap_words(along[order], gaps, missing)}: interpolated")
    spacing, uneven = _distance(along[order], missing)
    if uneven and not missing.any():
        repairs.append(
            f"slice distances vary from {gaps.min():.4g} to {gaps.max():.4g} mm: resampled to {spacing:.4g} mm"
        )
    tilt = _tilt(stack, order)
    if tilt:
        repairs.append(
            f"slices are tilted against their stacking by {tilt:.1f} degrees: resampled onto an upright grid"
        )
    if uneven or tilt:
        grid = _upright_grid(stack, order, spacing)
        most = max(_MOST_VOXELS, _MOST_GROWTH * stack.rows * stack.columns * len(order))
        if math.prod(grid.shape) > most:
            span = np.ptp(stack.positions, axis=0).max()
            refusal = f"its slices lie up to {span:.4g} mm apart, which would take {grid.shape} voxels"
            return Layout(Verdict(tuple(repairs), (refusal,)), tuple(order), planes, None)
    else:
        grid = _plain_grid(stack, order, spacing)
        off = _unevenness(along[order])
        if off > 1e-3 * spacing:
            notes.append(f"slice positions are up to {off:.3g} mm off an even spacing of {spacing:.4g} mm")
    return Layout(Verdict(tuple(repairs), (), tuple(notes)), tuple(order), planes, grid, bool(uneven or tilt))


def plane_affine(stack: Stack, index: int) -> Affine:
    """Pixel (column, row, 0) -> LPS mm of one plane (PS3.3 equation C.7.6.2.1-1)."""
    row, column = stack.orientation[:3], stack.orientation[3:]
    affine = np.eye(4)
    affine[:3, 0] = row * stack.pixel[1]
    affine[:3, 1] = column * stack.pixel[0]
    affine[:3, 2] = stack.normal
    affine[:3, 3] = stack.positions[index]
    return affine


def same_place(along: FloatArray) -> list[list[int]]:
    """Groups of planes that lie at one place along the normal; every plane is in one group, in ascending order."""
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    large = steps[steps > 1e-3]
    limit = max(1e-3, _SAME_PLACE * float(np.median(large)) if large.size else 1e-3)
    groups: list[list[int]] = [[int(order[0])]]
    for index, step in zip(order[1:], steps, strict=True):
        if step <= limit:
            groups[-1].append(int(index))
        else:
            groups.append([int(index)])
    return groups


def is_even(along: FloatArray) -> bool:
    """Whether planes follow each other at one distance."""
    ordered = np.sort(along)
    if len(ordered) < 3:
        return len(ordered) == 2
    spacing = float(np.ptp(ordered) / (len(ordered) - 1))
    return bool(spacing > 0 and _unevenness(ordered) <= _tolerance(spacing))


def missing_slices(gaps: FloatArray, thickness: FloatArray) -> Any:
    """(n-1,) whether a slice is missing in each gap.

    Where the slices' thickness changes within the stack, the distance is expected to follow it. Otherwise the smallest
    distance that occurs again and again is what the scan was made with; where none does, the smallest.
    """
    if len(gaps) == 1:
        known = np.isfinite(thickness).all()
        return gaps > 2.5 * thickness.mean() if known else np.zeros(1, dtype=bool)
    if np.isfinite(thickness).all() and np.ptp(thickness) > 0.01 * thickness.max():
        between = (thickness[1:] + thickness[:-1]) / 2
        return gaps > _GAP * between * max(1.0, float(np.median(gaps / between)))
    return gaps > _GAP * _usual(gaps, float(gaps.min()))


def _usual(gaps: FloatArray, otherwise: float) -> float:
    """The smallest distance that a fifth of the slices, and at least two, have; `otherwise` where there is none."""
    step = 0.02 * float(np.median(gaps))
    counts = Counter(np.round(gaps / step).astype(int).tolist())
    needed = max(2, len(gaps) / 5)
    frequent = [value for value in counts if counts[value - 1] + counts[value] + counts[value + 1] >= needed]
    if not frequent:
        return otherwise
    return float(np.median(gaps[np.abs(gaps - min(frequent) * step) <= 2 * step]))


def _misplaced(stack: Stack, along: FloatArray) -> str:
    """Different images at one place are no volume."""
    groups = same_place(along)
    if len(groups) == 1 and len(along) > 1:
        return f"all {len(along)} images lie at one place, {along[0]:.4g} mm along their normal: not a volume"
    doubled = [group for group in groups if len(group) > 1]
    if doubled:
        return (
            f"{_count(len(doubled), 'place')} with several images that differ and that no header tells apart "
            f"(first at {along[doubled[0][0]]:.4g} mm)"
        )
    return ""


def _single(stack: Stack, order: list[int], planes: FloatArray, repairs: list[str]) -> Layout:
    """One plane is a volume of one slice when its thickness is known."""
    thickness = float(stack.thickness[order[0]])
    if not np.isfinite(thickness):
        return Layout(
            Verdict(tuple(repairs), ("a single image without SliceThickness: not a volume",)),
            tuple(order), planes, None,
        )  # fmt: skip
    note = f"a single image; its thickness of {thickness:g} mm is taken as the slice distance"
    return Layout(Verdict(tuple(repairs), (), (note,)), tuple(order), planes, _plain_grid(stack, order, thickness))


def _distance(along: FloatArray, missing: Any) -> tuple[float, bool]:
    """mm between slices of the volume, and whether the slices lie unevenly."""
    mean = float(np.ptp(along) / (len(along) - 1))
    if not missing.any() and _unevenness(along) <= _tolerance(mean):
        return mean, False
    gaps = np.diff(along)
    regular = gaps[~missing]
    usual = _usual(regular, float(np.median(regular))) if len(regular) else mean
    return float(np.ptp(along) / max(1, round(float(np.ptp(along)) / usual))), True


def _unevenness(along: FloatArray) -> float:
    """Largest distance in mm of a plane from its place in an even stack with the same ends."""
    return float(np.abs(along - np.linspace(along[0], along[-1], len(along))).max())


def _tolerance(spacing: float) -> float:
    return min(max(_UNEVEN * spacing, _ROUNDED), 0.1 * spacing)


def _tilt(stack: Stack, order: list[int]) -> float:
    """Degrees between the stacking direction and the normal; 0 where the slices do not drift sideways."""
    offsets = stack.positions[order] - stack.positions[order[0]]
    depth = offsets @ stack.normal
    sideways = offsets - np.outer(depth, stack.normal)
    distance = np.linalg.norm(sideways, axis=1)
    if distance.max() <= _SIDEWAYS * min(stack.pixel):
        return 0.0
    worst = int(np.argmax(distance))
    return float(np.degrees(np.arctan2(distance[worst], abs(depth[worst]))))


def _plain_grid(stack: Stack, order: list[int], spacing: float) -> Grid:
    affine = plane_affine(stack, order[0])
    affine[:3, 2] *= spacing
    return Grid((stack.columns, stack.rows, len(order)), _LPS_TO_RAS @ affine)


def _upright_grid(stack: Stack, order: list[int], spacing: float) -> Grid:
    """The orthogonal uniform grid in the planes' own orientation that covers all of them."""
    affine = plane_affine(stack, order[0])
    affine[:3, 2] *= spacing
    offsets = np.linalg.inv(affine)[:3] @ np.c_[stack.positions[order], np.ones(len(order))].T
    low = np.floor(offsets[:2].min(axis=1) + 1e-3)
    high = np.ceil(offsets[:2].max(axis=1) - 1e-3)
    affine[:3, 3] += affine[:3, :2] @ low
    depth = round(float(offsets[2].max())) + 1
    shape: Shape = (int(stack.columns + high[0] - low[0]), int(stack.rows + high[1] - low[1]), depth)
    return Grid(shape, _LPS_TO_RAS @ affine)


def _gap_words(along: FloatArray, gaps: FloatArray, missing: Any) -> str:
    first = int(np.argmax(missing))
    usual = float(np.median(gaps[~missing])) if (~missing).any() else float("nan")
    number = int(sum(max(1, round(g / usual) - 1) for g in gaps[missing])) if usual == usual else int(missing.sum())
    return (
        f"{_count(number, 'slice')} missing in {_count(int(missing.sum()), 'gap')} "
        f"(first: {gaps[first]:.4g} mm from {along[first]:.4g} to {along[first + 1]:.4g}, elsewhere {usual:.4g} mm)"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
