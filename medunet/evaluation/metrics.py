"""Segmentation metrics on two boolean masks, spacing-aware, with stated rules for empty masks.

Definitions after Metrics Reloaded (Maier-Hein et al. 2024, doi:10.1038/s41592-023-02151-z):
surface voxels are mask voxels with a face neighbour outside the mask; distances are between voxel centres in mm.

Empty masks: absent in reference and prediction -> every overlap and distance is None (not counted).
Reference empty, prediction not: Dice, IoU, precision and NSD 0, sensitivity and distances None.
Prediction empty, reference not ("missed"): Dice, IoU, sensitivity and NSD 0, precision and distances None.

Voxels nobody annotated belong to neither mask: overlaps, volumes and lesions are of the others alone, so that a lesion
counts by its annotated part. Where a mask ends at such voxels nobody knows whether it ends: that is no surface, and
distances are between the surfaces that are known. Without any in one of two masks they and NSD are None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import ndimage

from medunet.data.labelling import Values, mask_of
from medunet.types import AnyArray, BoolArray, FloatArray, IntArray

Value: TypeAlias = float | None
DISTANCES = ("hausdorff_mm", "hd95_mm", "assd_mm")
_TOUCHING = np.ones((3, 3, 3), dtype=np.int64)
_ROUNDING = 1e-5  # of distances in float32: ten steps of 0.1 mm may come out as 1.0000001


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from each surface voxel of one mask to the nearest surface voxel of the other."""

    prediction_to_reference: FloatArray
    reference_to_prediction: FloatArray

    @property
    def hausdorff(self) -> float:
        """The largest distance (Huttenlocher et al. 1993)."""
        return float(max(self.prediction_to_reference.max(), self.reference_to_prediction.max()))

    @property
    def hd95(self) -> float:
        """The larger of the two directed 95th percentiles."""
        return float(
            max(np.percentile(self.prediction_to_reference, 95), np.percentile(self.reference_to_prediction, 95))
        )

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: the mean over the surface voxels of both masks."""
        both = np.concatenate((self.prediction_to_reference, self.reference_to_prediction))
        return float(both.mean())

    def nsd(self, tolerance: float) -> float:
        """Normalised surface Dice (Nikolov et al. 2021, doi:10.2196/26151): surface within `tolerance` mm."""
        reach = tolerance * (1 + _ROUNDING)
        within = np.count_nonzero(self.prediction_to_reference <= reach)
        within += np.count_nonzero(self.reference_to_prediction <= reach)
        return float(within / (self.prediction_to_reference.size + self.reference_to_prediction.size))


def masks(
    prediction: IntArray, reference: IntArray, labels: Mapping[str, Values], ignore: int | None = None
) -> Iterator[tuple[str, tuple[BoolArray, BoolArray]]]:
    """Each class or region with its masks in prediction and reference, where the reference is annotated."""
    annotated = None if ignore is None else reference != ignore
    for name, values in labels.items():
        pair = mask_of(prediction, values), mask_of(reference, values)
        yield name, pair if annotated is None else (pair[0] & annotated, pair[1] & annotated)


def dice(prediction: BoolArray, reference: BoolArray) -> Value:
    """2 |P and R| / (|P| + |R|); None when both are empty."""
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return None if total == 0 else float(2 * np.count_nonzero(prediction & reference) / total)


def overlaps(prediction: BoolArray, reference: BoolArray) -> dict[str, Value]:
    """Dice, IoU, sensitivity and precision from one count."""
    both = int(np.count_nonzero(prediction & reference))
    predicted, true = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    union = predicted + true - both
    return {
        "dice": _ratio(2 * both, predicted + true),
        "iou": _ratio(both, union),
        "sensitivity": _ratio(both, true),
        "precision": _ratio(both, predicted),
    }


def surface_distances(
    prediction: BoolArray, reference: BoolArray, spacing: Sequence[float], ignored: BoolArray | None = None
) -> SurfaceDistances | None:
    """Distances between the surfaces of two masks (x, y, z) with `spacing` mm; None when one has none.

    An axis with one voxel is left out: a picture's surface is its outline. Where a mask ends at `ignored` voxels, of
    which it has none itself, it has no surface.
    """
    if not prediction.any() or not reference.any():
        return None
    axes = [axis for axis, size in enumerate(prediction.shape) if size > 1]
    if not axes:
        return SurfaceDistances(np.zeros(1), np.zeros(1))
    box = _bounding_box(prediction | reference)
    if ignored is not None:
        box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)  # what lies beside a mask matters
    flat = tuple(0 if size == 1 else slice(None) for size in prediction.shape)
    unknown = None if ignored is None else ignored[box][flat]
    surfaces = [_surface(mask[box][flat], unknown) for mask in (prediction, reference)]
    if not all(surface.any() for surface in surfaces):
        return None
    scale = [float(spacing[axis]) for axis in axes]
    to_reference, to_prediction = (_distance_to(surface, scale) for surface in reversed(surfaces))
    return SurfaceDistances(to_reference[surfaces[0]], to_prediction[surfaces[1]])


def lesions(prediction: BoolArray, reference: BoolArray) -> dict[str, Value]:
    """Lesion-wise sensitivity and false positives: components that touch by face, edge or corner are one lesion.

    A reference lesion is found when a predicted voxel overlaps it; a predicted lesion is false when it overlaps none.
    """
    true, true_count = ndimage.label(reference, _TOUCHING)
    predicted, predicted_count = ndimage.label(prediction, _TOUCHING)
    found = np.unique(true[prediction & reference]).size
    right = np.unique(predicted[prediction & reference]).size
    return {
        "lesions": float(true_count),
        "lesion_sensitivity": _ratio(found, true_count),
        "false_positive_lesions": float(predicted_count - right),
    }


def volumes(prediction: BoolArray, reference: BoolArray, voxel_volume: float) -> dict[str, Value]:
    """Volumes in ml (`voxel_volume` in mm^3), their difference, and the difference relative to the reference."""
    predicted = np.count_nonzero(prediction) * voxel_volume / 1000
    true = np.count_nonzero(reference) * voxel_volume / 1000
    return {
        "volume_ml": float(predicted),
        "reference_volume_ml": float(true),
        "volume_error_ml": float(predicted - true),
        "relative_volume_error": None if true == 0 else float((predicted - true) / true),
    }


def pixel_accuracy(
    prediction: IntArray, reference: IntArray, labels: Mapping[str, Values] | None = None, ignore: int | None = None
) -> Value:
    """The fraction of annotated voxels, background included, that have the right label; None when there are none.

    A voxel whose label is one of regions is right when it lies in the same ones.
    """
    annotated = np.ones(reference.shape, bool) if ignore is None else reference != ignore
    right = prediction == reference
    if any(not isinstance(values, int) for values in (labels or {}).values()):
        right = np.ones(reference.shape, bool)
        for _, (predicted, true) in masks(prediction, reference, labels or {}):
            right &= predicted == true
    return _ratio(int(np.count_nonzero(right & annotated)), int(np.count_nonzero(annotated)))


def measure_mask(
    prediction: BoolArray,
    reference: BoolArray,
    spacing: Sequence[float],
    voxel_volume: float,
    nsd_tolerance: float,
    ignored: BoolArray | None = None,
) -> dict[str, Value]:
    """Every metric of one class, of masks without `ignored` voxels."""
    values = overlaps(prediction, reference)
    distances = surface_distances(prediction, reference, spacing, ignored)
    if distances is None:
        one_is_empty = bool(prediction.any()) != bool(reference.any())
        values.update(dict.fromkeys(DISTANCES), nsd=0.0 if one_is_empty else None)
    else:
        values.update(
            zip(DISTANCES, (distances.hausdorff, distances.hd95, distances.assd), strict=True),
            nsd=distances.nsd(nsd_tolerance),
        )
    return {**values, **volumes(prediction, reference, voxel_volume), **lesions(prediction, reference)}


def measure(
    prediction: IntArray,
    reference: IntArray,
    labels: Mapping[str, Values],
    spacing: Sequence[float],
    nsd_tolerance: float = 1.0,
    voxel_volume: float | None = None,
    ignore: int | None = None,
) -> dict[str, dict[str, Value]]:
    """Every metric of every class or region of two label maps (x, y, z); the background (0) is not scored.

    `nsd_tolerance` in mm; `voxel_volume` in mm^3, the product of `spacing` when not given; `ignore` is the reference's
    value of voxels nobody annotated.
    """
    volume = float(np.prod(spacing)) if voxel_volume is None else voxel_volume
    ignored = None if ignore is None else reference == ignore
    scored = {name: values for name, values in labels.items() if values != 0}
    return {
        name: measure_mask(*pair, spacing, volume, nsd_tolerance, ignored)
        for name, pair in masks(prediction, reference, scored, ignore)
    }


def _ratio(part: int, whole: int) -> Value:
    return None if whole == 0 else float(part / whole)


def _bounding_box(mask: BoolArray) -> tuple[slice, ...]:
    """The box of all true voxels; surfaces inside it are the same as in the whole volume, outside counts as empty."""
    found = ndimage.find_objects(mask.view(np.uint8))
    box: tuple[slice, ...] = found[0]
    return box


def _surface(mask: BoolArray, unknown: BoolArray | None = None) -> BoolArray:
    filled = mask if unknown is None else mask | unknown
    inner: BoolArray = ndimage.binary_erosion(filled, ndimage.generate_binary_structure(mask.ndim, 1))
    return mask & ~inner


def _distance_to(surface: BoolArray, spacing: Sequence[float]) -> AnyArray:
    import edt

    scale = tuple(spacing) if len(spacing) > 1 else spacing[0]  # a row of voxels takes one number
    distances: AnyArray = edt.edt(np.ascontiguousarray(~surface), anisotropy=scale, black_border=False)
    return distances
