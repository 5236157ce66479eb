"""Metrics against implementations that are written differently: brute force and SimpleITK, on random and real masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import shift
from scipy.spatial.distance import cdist

from medunet.data.volume import read_label
from medunet.evaluation import metrics

masks = hnp.arrays(np.bool_, (5, 4, 3))
spacings = st.tuples(*[st.floats(0.3, 6)] * 3)


def surface_points(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Voxels with a face neighbour outside, voxel by voxel."""
    padded = np.pad(mask, 1)
    points = [
        p for p in np.argwhere(mask)
        if not all(padded[tuple(p + 1 + s * np.eye(3, dtype=int)[a])] for a in range(3) for s in (-1, 1))
    ]  # fmt: skip
    return np.array(points) * np.array(spacing)


def brute_force(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> dict[str, float]:
    pa, pb = surface_points(a, spacing), surface_points(b, spacing)
    table = cdist(pa, pb)
    forth, back = table.min(1), table.min(0)
    return {
        "hausdorff_mm": max(forth.max(), back.max()),
        "hd95_mm": max(np.percentile(forth, 95), np.percentile(back, 95)),
        "assd_mm": (forth.sum() + back.sum()) / (len(forth) + len(back)),
        "nsd": ((forth <= tolerance).sum() + (back <= tolerance).sum()) / (len(forth) + len(back)),
    }


@settings(max_examples=80)
@given(masks, masks, spacings)
def test_surface_metrics_against_brute_force(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> None:
    if not a.any() or not b.any():
        assert metrics.surface_distances(a, b, spacing) is None
        return
    tolerance = 1.00037
    ours = metrics.measure_mask(a, b, spacing, 1.0, tolerance)
    for name, value in brute_force(a, b, spacing, tolerance).items():
        assert ours[name] == pytest.approx(value, abs=1e-3 if name != "nsd" else 1e-9), name


@pytest.mark.parametrize("axis", range(3))
def test_a_surface_just_within_the_tolerance_counts(axis: int) -> None:
    shape = [3, 3, 3]
    shape[axis] = 11
    first, last = np.zeros(shape, bool), np.zeros(shape, bool)
    np.moveaxis(first, axis, 0)[0] = np.moveaxis(last, axis, 0)[10] = True
    assert metrics.measure_mask(first, last, (0.1, 0.1, 0.1), 1.0, 1.0)["nsd"] == 1.0
    assert metrics.measure_mask(first, last, (0.1, 0.1, 0.1), 1.0, 0.999)["nsd"] == 0.0


def test_a_row_of_voxels_has_distances() -> None:
    row = np.array([True, False, False])[:, None, None]
    assert metrics.measure_mask(row, row[::-1], (0.5, 1, 1), 1.0, 1.0)["hausdorff_mm"] == 1.0


@settings(max_examples=60)
@given(masks, masks)
def test_overlaps_against_counting(a: np.ndarray, b: np.ndarray) -> None:
    ours = metrics.overlaps(a, b)
    pairs = list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    both, either = sum(x and y for x, y in pairs), sum(x or y for x, y in pairs)
    if either:
        assert ours["iou"] == pytest.approx(both / either)
        assert ours["dice"] == pytest.approx(2 * both / (both + either))
        assert ours["dice"] == metrics.dice(a, b)
    else:
        assert set(ours.values()) == {None}
    if b.any():
        assert ours["sensitivity"] == pytest.approx(both / b.sum())


def test_real_masks_against_simpleitk(real_data: Callable[[str], Path]) -> None:
    folder = real_data("hippocampus") / "labelsTr"
    for number, path in enumerate(sorted(folder.glob("*.nii.gz"))[:6]):
        reference = read_label(path)
        array = reference.array[0].astype(np.uint8)
        prediction = shift(array, (1, -number % 3, 0), order=0)
        spacing = (1.0, 0.7, 1.9)
        scores = metrics.measure(prediction, array, {"background": 0, "a": 1, "p": 2}, spacing)
        for name, value in (("a", 1), ("p", 2)):
            images = [
                sitk.GetImageFromArray((m == value).astype(np.uint8).transpose(2, 1, 0)) for m in (prediction, array)
            ]
            for image in images:
                image.SetSpacing(spacing)
            overlap = sitk.LabelOverlapMeasuresImageFilter()
            overlap.Execute(images[1], images[0])
            distance = sitk.HausdorffDistanceImageFilter()
            distance.Execute(*images)
            assert scores[name]["dice"] == pytest.approx(overlap.GetDiceCoefficient(1))
            assert scores[name]["iou"] == pytest.approx(overlap.GetJaccardCoefficient(1))
            assert scores[name]["hausdorff_mm"] == pytest.approx(distance.GetHausdorffDistance(), abs=1e-4)
            true = brute_force(prediction == value, array == value, spacing, 1.0)
            assert scores[name]["hd95_mm"] == pytest.approx(true["hd95_mm"], abs=1e-4)
            assert scores[name]["nsd"] == pytest.approx(true["nsd"])


def test_empty_masks_follow_the_stated_rules() -> None:
    none, some = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    absent = metrics.measure_mask(none, none, (1, 1, 1), 1.0, 1.0)
    assert absent["dice"] is absent["nsd"] is absent["hd95_mm"] is absent["sensitivity"] is None
    missed = metrics.measure_mask(none, some, (1, 1, 1), 1000.0, 1.0)
    assert (missed["dice"], missed["nsd"], missed["sensitivity"], missed["hd95_mm"]) == (0.0, 0.0, 0.0, None)
    assert (missed["precision"], missed["relative_volume_error"], missed["volume_error_ml"]) == (None, -1.0, -27.0)
    invented = metrics.measure_mask(some, none, (1, 1, 1), 1000.0, 1.0)
    assert (invented["dice"], invented["precision"], invented["sensitivity"]) == (0.0, 0.0, None)
    assert (invented["false_positive_lesions"], invented["relative_volume_error"]) == (1.0, None)


def test_lesions_are_found_one_by_one() -> None:
    reference, prediction = np.zeros((9, 9, 3), bool), np.zeros((9, 9, 3), bool)
    reference[0, 0, 0] = reference[1, 1, 1] = True  # one lesion: they touch by a corner
    reference[7:9, 7:9, 0] = True
    prediction[7, 7, 0] = True
    prediction[0, 8, 2] = prediction[5, 0, 0] = True
    assert metrics.lesions(prediction, reference) == {
        "lesions": 2.0, "lesion_sensitivity": 0.5, "false_positive_lesions": 2.0,
    }  # fmt: skip


def test_pictures_are_measured_in_their_plane() -> None:
    a, b = np.zeros((20, 20, 1), bool), np.zeros((20, 20, 1), bool)
    a[5:15, 5:15], b[5:15, 7:17] = True, True
    distances = metrics.surface_distances(a, b, (1.0, 0.5, 100.0))
    assert distances is not None
    assert distances.hausdorff == pytest.approx(1.0)
    assert distances.prediction_to_reference.size == 36


def test_pixel_accuracy_counts_every_voxel() -> None:
    assert metrics.pixel_accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75
