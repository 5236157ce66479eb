"""The dataset in a few numbers: spacings, sizes, intensities and class sizes; the only thing a plan looks at.

After nnU-Net's dataset fingerprint (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, suppl. note 2). Ours differs:
no cropping to the non-zero region, axes are counted in anatomical order (R, A, S) whatever the storage order,
and at most 1000 foreground voxels per case and channel are pooled, so that memory does not grow with the volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from medunet.data.dicom.source import Source
from medunet.data.examine import Measurement
from medunet.data.index import Index
from medunet.data.pictures import SUFFIXES
from medunet.errors import PlanError

_WORLD_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


@dataclass(frozen=True)
class ChannelIntensity:
    """Pooled over the foreground voxels of all training cases; percentiles 0.5 and 99.5."""

    name: str
    mean: float
    std: float
    low: float
    high: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Fingerprint:
    """What `plan` needs to know of a dataset. Spacings in mm and shapes in voxels, both in R, A, S order."""

    name: str
    digest: str
    cases: int
    channels: tuple[ChannelIntensity, ...]
    labels: dict[str, int]
    spacings: tuple[tuple[float, ...], ...] = field(repr=False)
    shapes: tuple[tuple[int, ...], ...] = field(repr=False)
    class_voxels: dict[str, int]
    class_cases: dict[str, int]
    pictures: bool
    """2D pictures with one slice and no anatomical orientation."""
    regions: dict[str, list[int]] = field(default_factory=dict)
    """Of labels that may overlap: the values of label maps that belong to each; empty where they exclude each other."""
    ignore: int | None = None
    """The value of voxels that nobody annotated; they count nowhere else."""
    ignored_voxels: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``fingerprint.json``."""
        return asdict(self)

    @property
    def median_spacing(self) -> tuple[float, ...]:
        """mm in R, A, S order."""
        return tuple(float(s) for s in np.median(np.array(self.spacings), axis=0))

    @property
    def spacing_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Smallest and largest spacing per axis, mm."""
        values = np.array(self.spacings)
        return tuple(map(float, values.min(0))), tuple(map(float, values.max(0)))

    def percentile_spacing(self, axis: int, percent: float) -> float:
        """A percentile of the spacings along a world axis, mm."""
        return float(np.percentile(np.array(self.spacings)[:, axis], percent))

    def median_shape_at(self, spacing: Sequence[float]) -> tuple[float, ...]:
        """Median size in voxels (not rounded) once every case has `spacing`."""
        sizes = np.array(self.shapes) * np.array(self.spacings) / np.array(spacing)
        return tuple(float(n) for n in np.median(sizes, axis=0))


def fingerprint(index: Index, measurements: Sequence[Measurement]) -> Fingerprint:
    """Reduce the measurements of the training cases to a Fingerprint.

    Raises:
        PlanError: there are no measurements.
    """
    if not measurements:
        raise PlanError(f"{index.name}: no training case was measured; index the dataset first")
    named = {name: index.regions.get(name, [value]) for name, value in index.labels.items()}
    axes = [_world_order(m.axcodes) for m in measurements]
    spacings = tuple(_pick(m.spacing, order) for m, order in zip(measurements, axes, strict=True))
    shapes = tuple(_pick(m.shape, order) for m, order in zip(measurements, axes, strict=True))
    return Fingerprint(
        name=index.name,
        digest=index.digest(),
        cases=len(measurements),
        channels=tuple(_channel(name, number, measurements) for number, name in enumerate(index.channels)),
        labels=dict(index.labels),
        spacings=tuple(significant(row) for row in spacings),
        shapes=tuple(tuple(int(n) for n in row) for row in shapes),
        class_voxels={name: sum(_voxels(m, values) for m in measurements) for name, values in named.items()},
        class_cases={name: sum(_voxels(m, values) > 0 for m in measurements) for name, values in named.items()},
        pictures=_all_pictures(index) and all(m.shape[2] == 1 for m in measurements),
        regions=dict(index.regions),
        ignore=index.ignore,
        ignored_voxels=0 if index.ignore is None else sum(_voxels(m, [index.ignore]) for m in measurements),
    )


def significant(lengths: Sequence[float]) -> tuple[float, ...]:
    """Lengths with six digits: more than scanners write, and as many for a micrometre as for a millimetre.

    >>> significant([0.800000011920929, 0.00025])
    (0.8, 0.00025)
    """
    return tuple(float(f"{length:.6g}") for length in lengths)


def _all_pictures(index: Index) -> bool:
    """Whether every image is a picture file; a single slice of NIfTI or DICOM has anatomical axes, in any direction."""
    names = [Source.parse(image).path.name.lower() for case in index.training for image in case.images]
    return all(name.endswith(SUFFIXES) for name in names)


def _voxels(measurement: Measurement, values: Sequence[int]) -> int:
    return sum(measurement.class_voxels.get(value, 0) for value in values)


def _world_order(axcodes: str) -> list[int]:
    """Voxel axis that runs along R, A and S."""
    return sorted(range(3), key=lambda voxel_axis: _WORLD_AXIS[axcodes[voxel_axis]])


def _pick(values: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[axis] for axis in order)


def _channel(name: str, number: int, measurements: Sequence[Measurement]) -> ChannelIntensity:
    channels = [m.intensities[number] for m in measurements]
    pooled = np.concatenate([np.asarray(c.foreground_sample, dtype=np.float64) for c in channels])
    if pooled.size == 0:
        pooled = np.array([c.p50 for c in channels], dtype=np.float64)
    low, high = np.percentile(pooled, [0.5, 99.5])
    values = (
        pooled.mean(),
        pooled.std(),
        low,
        high,
        min(c.minimum for c in channels),
        max(c.maximum for c in channels),
    )
    return ChannelIntensity(name, *(float(f"{v:.6g}") for v in values))
