"""Connected components of a class: which stay by a rule, and whether cross-validation proves that the rule helps.

A rule is ``{"largest": true}`` (of a class only the largest component stays; where several are equally large, they do)
or ``{"minimum_mm3": SIZE}``. What goes becomes background. Voxels that touch by a face, edge or corner are connected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medunet.types import AnyArray, BoolArray, FloatArray, IntArray

Rule: TypeAlias = Mapping[str, Any]
"""``{"largest": true}`` or ``{"minimum_mm3": SIZE}``."""

FEWEST = 10
"""Cases that a rule's proof needs."""

_CHUNK = 4_000_000  # voxels that are labelled at a time
_TOUCHING = np.ones((3, 3, 3), dtype=np.int64)
_RESAMPLES, _SEED = 5000, 20260101
_QUANTILES = (0.5, 0.75, 0.9, 1.0)  # of false components; candidates for the smallest size are just above them


class Components:
    """The components of a class in a label map (x, y, z), found a few planes at a time.

    Memory holds a chunk of planes and a few numbers per component, however large the map is.

    `sizes`: voxels of each component.
    """

    def __init__(self, labels: IntArray, value: int) -> None:
        self.labels, self.value = labels, value
        self._box = _bounds(labels, value)
        self._chunks: list[tuple[int, int, int, int]] = []  # first plane, last plus one, shared planes, first number
        self._group: IntArray = np.zeros(0, dtype=np.int64)
        self.sizes: IntArray = np.zeros(0, dtype=np.int64)
        if self._box is not None:
            self._find()

    def _find(self) -> None:
        sizes: list[IntArray] = []
        pairs: list[IntArray] = []
        last: IntArray | None = None
        count = 0
        for start, stop, shared in self._spans():
            numbers, found = self._label(start, stop)
            sizes.append(np.bincount(numbers[..., shared:].ravel(), minlength=found + 1)[1:])
            if last is not None:  # the first plane is the last of the chunk before: the same voxels, other numbers
                inside = last > 0
                both = np.stack([last[inside] - 1, numbers[..., 0][inside] - 1 + count])
                pairs.append(np.unique(both, axis=1))
            self._chunks.append((start, stop, shared, count))
            last = numbers[..., -1] + np.where(numbers[..., -1] > 0, count, 0)
            count += found
        a, b = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), np.int64)
        graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
        groups, self._group = connected_components(graph, directed=False)
        self.sizes = np.bincount(self._group, np.concatenate(sizes), minlength=groups).astype(np.int64)

    def _spans(self) -> Iterator[tuple[int, int, int]]:
        """First plane, last plus one, and how many of them the chunk before had too."""
        (x0, x1), (y0, y1), (z0, z1) = self._box or ((0, 0),) * 3
        step = max(2, _CHUNK // ((x1 - x0) * (y1 - y0)))
        first = z0
        while first < z1:
            start = max(z0, first - 1)
            stop = min(z1, first + step)
            yield start, stop, first - start
            first = stop

    def _part(self, start: int, stop: int) -> AnyArray:
        x, y, _ = (slice(*bounds) for bounds in self._box or ())
        return self.labels[x, y, start:stop]

    def _label(self, start: int, stop: int) -> tuple[IntArray, int]:
        numbers, found = ndimage.label(self._part(start, stop) == self.value, _TOUCHING)
        return numbers, int(found)

    def counts(self, mask: BoolArray) -> IntArray:
        """How many voxels of each component lie in a mask (x, y, z)."""
        total = np.zeros(len(self.sizes), dtype=np.int64)
        for start, stop, shared, before in self._chunks:
            numbers, found = self._label(start, stop)
            x, y, _ = (slice(*bounds) for bounds in self._box or ())
            inside = numbers[..., shared:][mask[x, y, start + shared : stop]]
            np.add.at(total, self._group[before : before + found], np.bincount(inside, minlength=found + 1)[1:])
        return total

    def keep(self, which: BoolArray, background: int) -> None:
        """Let the components stay that `which` says, and put `background` in the place of the others."""
        if which.all():
            return
        for start, stop, shared, before in reversed(self._chunks):  # a chunk's first plane is labelled as it was
            numbers, found = self._label(start, stop)
            goes = np.concatenate([[False], ~which[self._group[before : before + found]]])
            self._part(start, stop)[..., shared:][goes[numbers[..., shared:]]] = background


def staying(sizes: IntArray, rule: Rule, voxel_mm3: float) -> BoolArray:
    """Which components of these sizes in voxels a rule keeps."""
    if not len(sizes):
        return np.zeros(0, dtype=bool)
    least = sizes.max() if rule.get("largest") else float(rule["minimum_mm3"]) / voxel_mm3 * (1 - 1e-9)
    kept: BoolArray = sizes >= least
    return kept


def apply_rules(labels: IntArray, rules: Mapping[str, Rule], values: Mapping[str, int], voxel_mm3: float) -> None:
    """Keep to the rules of classes in a label map (x, y, z), in place; `values`: stored value per class."""
    background = next(iter(values.values()))
    for name, rule in rules.items():
        components = Components(labels, values[name])
        components.keep(staying(components.sizes, rule, voxel_mm3), background)


@dataclass(frozen=True)
class Found:
    """The components of a class in the prediction of one case: voxels, those of them in the reference; its voxels.

    `annotated`: those of the components' voxels that somebody annotated, and that can be right or wrong; null: all.
    """

    sizes: IntArray
    inside: IntArray
    reference: int
    voxel_mm3: float
    annotated: IntArray | None = None

    @classmethod
    def of(
        cls, prediction: IntArray, reference: IntArray, value: int, voxel_mm3: float, ignore: int | None = None
    ) -> Found:
        """What there is in two label maps (x, y, z); `ignore`: the reference's value of voxels nobody annotated."""
        components, mask = Components(prediction, value), reference == value
        annotated = None if ignore is None else components.counts(reference != ignore)
        return cls(components.sizes, components.counts(mask), int(np.count_nonzero(mask)), voxel_mm3, annotated)

    @property
    def scored(self) -> IntArray:
        """The voxels of each component that count in Dice."""
        return self.sizes if self.annotated is None else self.annotated

    def dice(self, rule: Rule | None) -> float:
        """Dice of the annotated voxels with or without a rule; 1 where the class is rightly not found."""
        kept = np.ones(len(self.sizes), bool) if rule is None else staying(self.sizes, rule, self.voxel_mm3)
        total = int(self.scored[kept].sum()) + self.reference
        return 2 * int(self.inside[kept].sum()) / total if total else 1.0


def prove(cases: Sequence[Found]) -> tuple[Rule | None, dict[str, Any]]:
    """The rule that helps a class most, if it is proved to help, and the numbers of the best that was tried.

    Proved: over cases that were not trained on, the paired difference in Dice has a bootstrap interval above 0 that
    holds for all candidates together (95%, Bonferroni). Other classes cannot lose: what goes becomes background, so
    that their voxels stay as they are. Of equally good rules the mildest is taken.
    """
    before = np.array([case.dice(None) for case in cases])
    best: tuple[Rule | None, dict[str, Any]] = (None, {"cases": len(cases), "tried": 0})
    if len(cases) < FEWEST:
        return best
    candidates = _candidates(cases)
    draws = np.random.default_rng(_SEED).integers(0, len(cases), (_RESAMPLES, len(cases)))
    shown = {**best[1], "tried": len(candidates)}
    best, most = (None, shown), (False, 0.0)
    for rule in candidates:
        difference = np.array([case.dice(rule) for case in cases]) - before
        mean, (low, high) = float(difference.mean()), _interval(difference, draws, len(candidates))
        if (low > 0, mean) > most:
            most = (low > 0, mean)
            numbers = {
                **shown, "rule": dict(rule), "dice_before": float(before.mean()),
                "dice_after": float(before.mean()) + mean, "difference": mean, "interval": [low, high],
            }  # fmt: skip
            best = (rule if low > 0 else None, numbers)
    return best


def _interval(difference: FloatArray, draws: IntArray, candidates: int) -> tuple[float, float]:
    means = difference[draws].mean(axis=1)
    tail = 2.5 / candidates
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _candidates(cases: Iterable[Found]) -> list[Rule]:
    """Smallest sizes just above quantiles of the components that lie outside of the reference, then ``largest``.

    A component without an annotated voxel lies neither inside nor outside.
    """
    false = np.concatenate([(case.sizes * case.voxel_mm3)[(case.inside == 0) & (case.scored > 0)] for case in cases])
    sizes = sorted({_rounded_up(float(size)) for size in np.quantile(false, _QUANTILES)}) if len(false) else []
    return [*({"minimum_mm3": size} for size in sizes), {"largest": True}]


def _rounded_up(size: float) -> float:
    """The next number of two digits above a size.

    >>> _rounded_up(1234.0), _rounded_up(0.5), _rounded_up(9.96)
    (1300.0, 0.51, 10.0)
    """
    step = 10.0 ** (np.floor(np.log10(size)) - 1)
    return float(f"{(np.floor(size / step) + 1) * step:.6g}")


def _bounds(labels: IntArray, value: int) -> tuple[tuple[int, int], ...] | None:
    """The box around a class, looked for a few planes at a time."""
    step = max(1, _CHUNK // max(1, labels.shape[0] * labels.shape[1]))
    lines = [np.zeros(n, dtype=bool) for n in labels.shape]
    for start in range(0, labels.shape[2], step):
        mask = labels[:, :, start : start + step] == value
        plane = mask.any(axis=2)
        lines[0] |= plane.any(axis=1)
        lines[1] |= plane.any(axis=0)
        lines[2][start : start + step] = mask.any(axis=(0, 1))
    places = [np.flatnonzero(line) for line in lines]
    return tuple((int(p[0]), int(p[-1]) + 1) for p in places) if len(places[0]) else None
