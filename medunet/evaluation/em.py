"""Measures of membrane segmentation in electron microscopy: those of the U-Net paper's challenge, and what came after.

The challenge of ISBI 2012 scored warping error, Rand error and pixel error of thresholded maps; its successor scores
V_Rand and V_Info. Cells are foreground, membranes are background (0). Images are (y, x) or stacks (slice, y, x);
slices are scored one by one and averaged, as the challenge is one of 2D segmentation. Cells are 4-connected, so that
a membrane one pixel wide, which is 8-connected, keeps two of them apart.

Sources:
    Jain et al. 2010, Boundary learning by optimization with topological constraints (doi:10.1109/CVPR.2010.5539950):
    warping error.
    Arganda-Carreras et al. 2015 (doi:10.3389/fnana.2015.00142): V_Rand, V_Info, foreground restriction, thinning.
    The challenge's page of evaluation (brainiac2.mit.edu/isbi_challenge/evaluation): Rand error and pixel error are
    1 - the largest F-score over thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import cc3d
import numpy as np
from scipy import ndimage

from medunet.errors import InputError
from medunet.types import AnyArray, BoolArray, FloatArray, IntArray

THRESHOLDS = tuple(level / 10 for level in range(10))
"""Ten levels, as in the U-Net paper: 0.0, 0.1, ... 0.9."""

_AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))  # bit k of a neighbourhood's number
_FOUR = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
_EIGHT = np.ones((3, 3), dtype=np.int64)


@dataclass(frozen=True)
class SplitMerge:
    """Two scores from 0 to 1 (best): `split` falls where cells were split, `merge` where cells were merged.

    `f_score` is their harmonic mean.
    """

    split: float
    merge: float

    @property
    def f_score(self) -> float:
        """The harmonic mean; 0 when both are 0."""
        total = self.split + self.merge
        return 2 * self.split * self.merge / total if total else 0.0


@dataclass(frozen=True)
class ThresholdCurve:
    """What a measure says at each threshold of a map of cell probabilities; lower is better."""

    thresholds: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def best(self) -> tuple[float, float]:
        """The threshold with the lowest error, the first of equals, and that error.

        The challenge reports it on the test images themselves. An honest figure takes the threshold of the curve of
        training images and reads the test images' error with ``at``.
        """
        place = int(np.argmin(self.errors))
        return self.thresholds[place], self.errors[place]

    def at(self, threshold: float) -> float:
        """The error at one of the thresholds."""
        if threshold not in self.thresholds:
            raise InputError(f"threshold {threshold:g} is not on the curve; it has {list(self.thresholds)}")
        return self.errors[self.thresholds.index(threshold)]


def threshold_curve(
    measure: Callable[[BoolArray, AnyArray], float],
    probability: FloatArray,
    reference: AnyArray,
    thresholds: Sequence[float] = THRESHOLDS,
) -> ThresholdCurve:
    """``measure(probability > threshold, reference)`` at each threshold, for any of the errors below.

    Shapes: probability of being cell (y, x) or (slice, y, x), from 0 to 1; reference alike.

    Raises:
        InputError: shapes differ or there is no threshold.
    """
    _require_alike(probability, reference)
    if not len(thresholds):
        raise InputError("no threshold is given; give at least one, such as 0.5")
    levels = tuple(float(t) for t in thresholds)
    return ThresholdCurve(levels, tuple(measure(probability > t, reference) for t in levels))


def segments(cells: BoolArray) -> IntArray:
    """Number the 4-connected cells of a mask slice by slice, from 1 in each slice; membranes are 0.

    Shapes: (y, x) or (slice, y, x) -> the same.
    """
    planes = _planes(cells)
    labels = [cc3d.connected_components(np.ascontiguousarray(p > 0), connectivity=4) for p in planes]
    return np.stack(labels).astype(np.int64).reshape(cells.shape)


def thin_borders(labels: IntArray) -> IntArray:
    """Give every border pixel (0) to the segment nearest to it in its slice: borders of no width.

    After it, how wide a candidate draws membranes no longer counts (Arganda-Carreras et al. 2015). A slice without any
    segment stays as it is.
    """
    thinned = []
    for plane in _planes(labels):
        if (plane == 0).any() and (plane != 0).any():
            nearest = ndimage.distance_transform_edt(plane == 0, return_distances=False, return_indices=True)
            plane = plane[tuple(nearest)]
        thinned.append(plane)
    return np.stack(thinned).reshape(labels.shape)


def pixel_error(candidate: BoolArray, reference: AnyArray) -> float:
    """1 - F-score of cell pixels; at its best threshold this is the challenge's pixel error.

    Neither mask having a cell counts as agreement: 0.
    """
    scores = []
    for mine, true in _pairs(candidate > 0, reference > 0):
        total = np.count_nonzero(mine) + np.count_nonzero(true)
        scores.append(2 * np.count_nonzero(mine & true) / total if total else 1.0)
    return 1.0 - float(np.mean(scores))


def pixel_disagreement(candidate: BoolArray, reference: AnyArray) -> float:
    """The fraction of pixels that differ: the squared Euclidean distance of two masks, per pixel."""
    _require_alike(candidate, reference)
    return float(np.mean((candidate > 0) != (reference > 0)))


def rand_error(candidate: AnyArray, reference: AnyArray) -> float:
    """1 - F-score of the foreground-restricted Rand index: the challenge's Rand error at its best threshold.

    A positive is a pair of pixels in one segment. Pixels that the reference calls membrane are excluded; a pixel that
    only the candidate calls membrane is in no pair of the candidate. A mask (bool) is numbered by ``segments`` first.

    Raises:
        InputError: shapes differ, or a slice of the reference has no cell.
    """
    scores = []
    for mine, true in _pairs(_numbered(candidate), _numbered(reference)):
        counts = _overlaps(mine, true)
        both = _couples(counts.joint[~counts.on_border])
        together = _couples(counts.mine) + _couples(counts.true)
        scores.append(2 * both / together if together else 1.0)
    return 1.0 - float(np.mean(scores))


def v_rand(candidate: AnyArray, reference: AnyArray) -> SplitMerge:
    """Rand scores restricted to the reference's foreground (Arganda-Carreras et al. 2015).

    With p_ij the fraction of pixels in segment i of the candidate and j of the reference, s_i and t_j its sums:
    split = sum p_ij^2 / sum t_j^2, merge = sum p_ij^2 / sum s_i^2. Border pixels of the candidate count as one more
    segment; ``thin_borders`` first leaves none, as the challenge does. A mask (bool) is numbered and thinned here.

    Raises:
        InputError: shapes differ, or a slice of the reference has no cell.
    """
    splits, merges = [], []
    for joint, rows, columns in _tables(candidate, reference):
        both = float(np.square(joint).sum())
        splits.append(both / float(np.square(columns).sum()))
        merges.append(both / float(np.square(rows).sum()))
    return SplitMerge(float(np.mean(splits)), float(np.mean(merges)))


def v_info(candidate: AnyArray, reference: AnyArray) -> SplitMerge:
    """Information scores restricted to the reference's foreground (Arganda-Carreras et al. 2015).

    With I the mutual information and H the entropy: split = I / H(candidate), merge = I / H(reference). Where an
    entropy is 0 (one segment), nothing can be split or merged: that score is 1. Masks and borders as in ``v_rand``.

    Raises:
        InputError: shapes differ, or a slice of the reference has no cell.
    """
    splits, merges = [], []
    for joint, rows, columns in _tables(candidate, reference):
        mine, true = _entropy(rows), _entropy(columns)
        shared = max(0.0, mine + true - _entropy(joint))
        splits.append(shared / mine if mine > 0 else 1.0)
        merges.append(shared / true if true > 0 else 1.0)
    return SplitMerge(float(np.mean(splits)), float(np.mean(merges)))


def warping_error(candidate: BoolArray, reference: AnyArray) -> float:
    """The fraction of pixels in which the candidate differs from the reference warped onto it (Jain et al. 2010).

    A border that is only moved costs nothing; a split, a merger, a hole or a lost cell does. Like the published
    algorithm, warping is greedy: the result is the minimum over the warps that it finds. The challenge's leader board
    counted splits and mergers only.

    Raises:
        InputError: shapes differ.
    """
    return float(np.mean(warp(reference, candidate) != (candidate > 0)))


def warp(reference: AnyArray, candidate: BoolArray, allowed: BoolArray | None = None) -> BoolArray:
    """Move the reference towards the candidate by flips of simple points, which keep its topology, until none is left.

    A pixel is flipped when reference and candidate differ there and it is simple (``simple_points``). Pixels of equal
    parity of row and column are no neighbours of each other: their flips do not interact, so that each of the four
    kinds is flipped at once, which equals one after the other. Beyond the image lies membrane. `allowed` restricts
    where pixels may flip (the mask of Jain et al.); everywhere when not given.

    Shapes: (y, x) or (slice, y, x) each -> bool, the same.

    Raises:
        InputError: shapes differ.
    """
    _require_alike(candidate, reference)
    target = _framed(candidate > 0).ravel()
    framed = _framed(reference > 0)
    state, width = framed.ravel(), framed.shape[-1]
    differs = state != target
    if allowed is not None:
        _require_alike(allowed, reference)
        differs &= _framed(allowed > 0).ravel()
    places = np.flatnonzero(differs)
    row, column = (places // width) % framed.shape[-2], places % width
    kinds = [places[(row % 2 == r) & (column % 2 == c)] for r in (0, 1) for c in (0, 1)]
    steps = [dy * width + dx for dy, dx in _AROUND]
    changed = True
    while changed:
        changed = False
        for number, kind in enumerate(kinds):
            code = np.zeros(len(kind), dtype=np.uint8)
            for bit, step in enumerate(steps):
                code |= state[kind + step].astype(np.uint8) << bit
            simple = simple_points()[code]
            state[kind[simple]] ^= True
            kinds[number] = kind[~simple]
            changed = changed or bool(simple.any())
    inner: BoolArray = state.reshape(framed.shape)[:, 1:-1, 1:-1].reshape(reference.shape)
    return inner


@cache
def simple_points() -> BoolArray:
    """Which of the 256 neighbourhoods make a pixel simple: flipping it changes no topology (Kong and Rosenfeld 1989).

    Foreground is 4-connected, background 8-connected. A pixel is simple when the foreground among its 8 neighbours has
    exactly one 4-connected part that touches its side, and the background among them exactly one 8-connected part.
    Bit k of a neighbourhood's number is the neighbour k, from top left clockwise.
    """
    table = np.zeros(256, dtype=bool)
    sides = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=bool)
    for number in range(256):
        inside = np.zeros((3, 3), dtype=bool)
        for bit, (dy, dx) in enumerate(_AROUND):
            inside[1 + dy, 1 + dx] = number >> bit & 1
        outside = ~inside
        outside[1, 1] = False
        parts, _ = ndimage.label(inside, _FOUR)
        _, holes = ndimage.label(outside, _EIGHT)
        table[number] = holes == 1 and len(set(parts[sides & inside].tolist())) == 1
    table.setflags(write=False)
    return table


def _planes(image: AnyArray) -> AnyArray:
    """(slice, y, x) of an image with two or three axes."""
    if image.ndim not in (2, 3):
        raise InputError(f"an image has {image.ndim} axes; give (y, x) or (slice, y, x)")
    return image.reshape(-1, *image.shape[-2:])


def _framed(mask: BoolArray) -> BoolArray:
    """(slice, y + 2, x + 2): a pixel of membrane around every slice."""
    return np.pad(_planes(mask), ((0, 0), (1, 1), (1, 1)))


def _require_alike(candidate: AnyArray, reference: AnyArray) -> None:
    if candidate.shape != reference.shape:
        raise InputError(
            f"candidate has shape {list(candidate.shape)}, reference {list(reference.shape)}; compare equal images"
        )


def _pairs(candidate: AnyArray, reference: AnyArray) -> list[tuple[AnyArray, AnyArray]]:
    """The slices of two images that must be alike."""
    _require_alike(candidate, reference)
    return list(zip(_planes(candidate), _planes(reference), strict=True))


def _numbered(image: AnyArray) -> IntArray:
    """Segments of a mask; a map of segments as it is."""
    return segments(image) if image.dtype == np.bool_ else image


def _tables(candidate: AnyArray, reference: AnyArray) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
    """Per slice: fractions of the foreground per pair of segments, per candidate's, per reference's segment."""
    if candidate.dtype == np.bool_:
        candidate = thin_borders(segments(candidate))
    tables = []
    for mine, true in _pairs(candidate, _numbered(reference)):
        counts = _overlaps(mine, true)
        pixels = counts.true.sum()
        rows = np.append(counts.mine, counts.borders) if counts.borders else counts.mine
        tables.append((counts.joint / pixels, rows / pixels, counts.true / pixels))
    return tables


@dataclass(frozen=True)
class _Overlaps:
    """Pixel counts over the reference's foreground: where segments meet, and per segment of either.

    `on_border` says which of `joint` are the candidate's border; `borders` counts its pixels, `mine` leaves them out.
    """

    joint: IntArray
    on_border: BoolArray
    mine: IntArray
    true: IntArray
    borders: int


def _overlaps(candidate: IntArray, reference: IntArray) -> _Overlaps:
    inside = reference != 0
    if not inside.any():
        raise InputError("a slice of the reference has no cell; leave it out")
    names, rows = np.unique(candidate[inside], return_inverse=True)
    sizes = np.bincount(rows)
    _, columns = np.unique(reference[inside], return_inverse=True)
    width = int(columns.max()) + 1
    meeting, joint = np.unique(rows.astype(np.int64) * width + columns, return_counts=True)
    border = names == 0
    return _Overlaps(joint, border[meeting // width], sizes[~border], np.bincount(columns), int(sizes[border].sum()))


def _couples(counts: IntArray) -> int:
    """How many pairs can be formed within groups of these sizes."""
    return int((counts.astype(np.int64) * (counts.astype(np.int64) - 1) // 2).sum())


def _entropy(fractions: FloatArray) -> float:
    """In nats, of fractions above 0."""
    return float(-(fractions * np.log(fractions)).sum())
