"""Resampling between grids: against MONAI and scipy, and the same whichever way it is cut into boxes."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from medunet.data.grid import Grid
from medunet.data.resampling import Resampling, network_grid

spacings = st.tuples(*[st.floats(0.5, 3.0)] * 3)


@st.composite
def native_grids(draw: st.DrawFn) -> Grid:
    """Small grids with permuted and flipped axes, or rotated ones."""
    shape = draw(st.tuples(*[st.integers(2, 13)] * 3))
    if draw(st.booleans()):
        axes = Rotation.random(random_state=draw(st.integers(0, 10_000))).as_matrix()
    else:
        axes = np.eye(3)[:, draw(st.permutations(range(3)))] * [draw(st.sampled_from([-1, 1])) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = axes * draw(spacings)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-50, 50)] * 3))
    return Grid(shape, affine)


@st.composite
def orientations(draw: st.DrawFn) -> str:
    return "".join(draw(st.sampled_from(pair)) for pair in draw(st.permutations(["RL", "AP", "SI"])))


def _axis_of(code: str) -> str:
    return next(pair for pair in ("RL", "AP", "SI") if code in pair)


def values_on(grid: Grid, channels: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((channels, *grid.shape)).astype(np.float32))


@settings(max_examples=80, deadline=None)
@given(native_grids(), orientations(), spacings)
def test_grid_and_values_agree_with_monai(native: Grid, orientation: str, spacing: tuple[float, ...]) -> None:
    assume("".join(nib.aff2axcodes(native.affine)) == native.axcodes)  # nibabel decides otherwise near 45 degrees
    values = values_on(native)
    image = MetaTensor(values.clone(), affine=torch.from_numpy(np.array(native.affine)))
    image = Orientation(axcodes=orientation, labels=None)(image)
    image = Spacing(spacing, mode="bilinear", padding_mode="border", dtype=torch.float64)(image)
    target = network_grid(native, orientation, spacing)
    order = [next(a for a, own in enumerate(native.axcodes) if own in pair) for pair in map(_axis_of, orientation)]
    steps = [(native.shape[a] - 1) * native.spacing[a] / wanted for a, wanted in zip(order, spacing, strict=True)]
    assume(min(abs(n % 1 - 0.5) for n in steps) > 1e-6)  # half a voxel is rounded to either side
    assert target.shape == tuple(image.shape[1:])
    assert np.allclose(target.affine, image.affine.numpy(), atol=1e-6)
    got = Resampling(native, target).whole(values)
    assert torch.allclose(got, image.as_tensor().float(), atol=2e-3)  # positions within 1/1000 voxel take the voxel


@settings(max_examples=80, deadline=None)
@given(native_grids(), orientations(), spacings, st.data())
def test_a_box_has_the_voxels_of_the_whole(
    native: Grid, orientation: str, spacing: tuple[float, ...], data: st.DataObject
) -> None:
    target = network_grid(native, orientation, spacing)
    for resampling in (Resampling(native, target), Resampling(target, native)):
        source = values_on(resampling.source)
        starts = [data.draw(st.integers(0, n - 1)) for n in resampling.target.shape]
        box = tuple((s, data.draw(st.integers(s + 1, n))) for s, n in zip(starts, resampling.target.shape, strict=True))
        needed = resampling.needs(box)
        part = source[(slice(None), *(slice(*bounds) for bounds in needed))]
        got = resampling(part, [first for first, _ in needed], box)
        assert torch.equal(got, resampling.whole(source)[(slice(None), *(slice(*bounds) for bounds in box))])


@settings(max_examples=60, deadline=None)
@given(native_grids(), orientations(), spacings)
def test_values_agree_with_scipy_both_ways(native: Grid, orientation: str, spacing: tuple[float, ...]) -> None:
    target = network_grid(native, orientation, spacing)
    for resampling in (Resampling(native, target), Resampling(target, native)):
        source = values_on(resampling.source, 1)
        voxels = np.argwhere(np.ones(resampling.target.shape))
        points = resampling.source.to_voxel(resampling.target.to_world(voxels)).T
        expected = map_coordinates(source[0].numpy(), points, order=1, mode="nearest")
        assert np.allclose(resampling.whole(source)[0].numpy().ravel(), expected, atol=3e-3)


def test_a_sheared_affine_is_sampled_at_its_true_places() -> None:
    sheared = np.eye(4)
    sheared[0, 1], sheared[2, 1] = 0.3, 0.2
    native = Grid((10, 9, 8), sheared)
    target = network_grid(native, "RAS", (1.0, 1.0, 1.5))
    resampling = Resampling(native, target)
    assert not resampling.aligned
    source = values_on(native, 1)
    points = native.to_voxel(target.to_world(np.argwhere(np.ones(target.shape)))).T
    expected = map_coordinates(source[0].numpy(), points, order=1, mode="nearest")
    assert np.allclose(resampling.whole(source)[0].numpy().ravel(), expected, atol=1e-4)
    box = ((2, 7), (0, 4), (1, 3))
    needed = resampling.needs(box)
    part = source[(slice(None), *(slice(*bounds) for bounds in needed))]
    inside = resampling(part, [first for first, _ in needed], box)
    assert torch.allclose(inside, resampling.whole(source)[:, 2:7, 0:4, 1:3], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(native_grids(), orientations(), spacings, st.tuples(*[st.floats(-0.5, 0.5)] * 3))
def test_a_sheared_volume_lies_inside_its_network_grid(
    native: Grid, orientation: str, spacing: tuple[float, ...], shear: tuple[float, float, float]
) -> None:
    """Gantry tilt, or a registration's sform: no voxel is lost, and the axes are at right angles."""
    lean = np.array([[1, *shear[:2]], [0, 1, shear[2]], [0, 0, 1]])
    affine = np.array(native.affine)
    affine[:3, :3] = affine[:3, :3] @ lean
    sheared = Grid(native.shape, affine)
    target = network_grid(sheared, orientation, spacing)
    places = target.to_voxel(sheared.corners())
    assert places.min() > -1 - 1e-6
    assert (places.max(0) < np.array(target.shape) + 1e-6).all()
    straight = Grid(native.shape, native.affine)
    moved = np.abs(straight.to_voxel(sheared.corners()) - straight.to_voxel(straight.corners())).max()
    if moved > 1 + 1e-6:
        unit = target.affine[:3, :3] / target.spacing
        assert np.allclose(unit.T @ unit, np.eye(3), atol=1e-9)
        assert np.allclose(target.spacing, spacing)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 5.0), (1.0, 1.0, 2.5)])
def test_a_tilted_stack_comes_back_to_its_file(spacing: tuple[float, ...]) -> None:
    """20 degrees over 40 slices move the last one by 73 voxels."""
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[1, 2] = 5 * np.tan(np.radians(20))
    native = Grid((30, 40, 40), affine)
    labels = torch.zeros((1, *native.shape), dtype=torch.uint8)
    labels[:, 8:22, 10:30, 4:36] = 1
    seen = Resampling(native, network_grid(native, "RAS", spacing))
    again = Resampling(seen.target, native).whole(seen.whole(labels, nearest=True), nearest=True)
    assert not seen.aligned
    assert 2 * int((again * labels).sum()) / int(again.sum() + labels.sum()) > 0.97


def test_a_shear_within_half_a_voxel_keeps_the_voxels() -> None:
    """Direction cosines of few digits are none."""
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[0, 2] = 0.01
    native = Grid((30, 40, 40), affine)
    assert network_grid(native, "RAS", (1.0, 1.0, 5.0)) == native


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32])
def test_labels_keep_their_values_and_type(kind: type) -> None:
    native = Grid((4, 5, 6), np.diag([-1.0, 1.0, 2.0, 1.0]))
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (1, 4, 5, 6)).astype(kind))
    flipped = Resampling(native, network_grid(native, "RAS", (1, 1, 2))).whole(labels, nearest=True)
    assert flipped.dtype == labels.dtype
    assert torch.equal(flipped, labels.flip(1))
    finer = Resampling(native, network_grid(native, "LAS", (0.5, 1, 2))).whole(labels, nearest=True)
    assert set(finer.unique().tolist()) <= set(labels.unique().tolist())


def test_flips_and_permutations_copy_voxels() -> None:
    native = Grid((4, 5, 6), np.array([[0, -2.0, 0, 9], [3.0, 0, 0, 1], [0, 0, 1.0, 0], [0, 0, 0, 1]]))
    resampling = Resampling(native, network_grid(native, "RAS", (2.0, 3.0, 1.0)))
    source = values_on(native)
    assert torch.equal(resampling.whole(source), source.permute(0, 2, 1, 3).flip(1))
