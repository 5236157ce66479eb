"""Windows, restoring onto the input's grid, names, and comparison with the training data."""

from __future__ import annotations

import importlib.util
import time
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from torch import nn

from medunet.data.grid import Grid
from medunet.data.phantom import make_phantom
from medunet.data.resampling import Resampling
from medunet.data.transforms import Frame, LoadVolumed, Preprocess, scale_of, to_classes
from medunet.data.volume import read_volume, write_image, write_label
from medunet.errors import BundleError, GeometryError, InputError, NetworkError, ResourceError, root_cause
from medunet.inference import FolderInputs, WindowInferer, pick_device, windows
from medunet.inference.accumulator import Accumulator
from medunet.inference.compare import compare_grid, compare_intensity
from medunet.inference.inputs import find_cases, name_outputs
from medunet.inference.outputs import decide, probabilities
from medunet.inference.placement import axis_starts, overlapping
from medunet.inference.restoring import FLOOR, Restorer
from medunet.inference.status import CaseResult, Status
from medunet.inference.weights import load_weights
from medunet.networks import UNet
from medunet.networks.receptive import receptive_field

PLAN = {
    "dims": 3, "orientation": "RAS", "spacing": [1.0, 1.0, 1.0], "channels": ["CT"],
    "normalization": [{"scheme": "ct", "low": -100, "high": 300, "mean": 0, "std": 100}],
    "seen": {
        "spacing_min": [0.8, 0.8, 1.0], "spacing_max": [1.2, 1.2, 3.0], "median_shape": [100, 100, 80],
        "pictures": False, "intensity": [{"minimum": -1000.0, "maximum": 2000.0}],
    },
}  # fmt: skip


def image_on(grid: Grid, channels: int = 1, seed: int = 0) -> MetaTensor:
    values = np.random.default_rng(seed).integers(0, 100, (channels, *grid.shape)).astype(np.int16)
    return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(np.array(grid.affine)))


def inferer(classes: int = 3, **options: Any) -> WindowInferer:
    frame = Frame("RAS", options.pop("spacing", (1, 1, 1)), [{"scheme": "zscore"}] * options.pop("channels", 1))
    labels = {str(number): 3 * number for number in range(classes)}
    return WindowInferer(frame, labels, options.pop("patch_size", (16, 8, 16)), **options)


def probabilities_of(engine: WindowInferer, image: MetaTensor, network: Any, classes: int) -> torch.Tensor:
    """All probabilities on the image's own grid, as they are handed to a file."""
    result = torch.full((classes, *image.shape[1:]), torch.nan)

    def keep(number: int, box: Any, values: torch.Tensor) -> None:
        result[(number, *(slice(*bounds) for bounds in box))] = values

    engine.segment([engine.frame.see(image)], network, [keep])
    return result


@st.composite
def scans(draw: st.DrawFn) -> Grid:
    """Grids with permuted and flipped axes, larger and smaller than a window; some are sheared."""
    shape = draw(st.tuples(*[st.integers(2, 36)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, draw(st.permutations(range(3)))] * [draw(st.sampled_from([-1.0, 1.0])) for _ in "xyz"]
    affine[:3, :3] *= draw(st.tuples(*[st.sampled_from([0.7, 1.0, 1.9])] * 3))
    if draw(st.integers(0, 4)) == 0:
        affine[:3, :3] = affine[:3, :3] @ [[1, 0.2, 0], [0, 1, 0], [0, 0.1, 1]]
    return Grid(shape, affine)


@settings(max_examples=40, deadline=None)
@given(scans(), st.integers(2, 5), st.sampled_from([0.0, 0.5, 0.75]), st.integers(1, 3))
def test_streaming_agrees_with_monai_on_whole_volumes(grid: Grid, classes: int, overlap: float, batch: int) -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(1, classes, 3, padding=1).eval()
    image, engine = image_on(grid), inferer(classes, overlap=overlap, batch_size=batch)
    seen = engine.frame.see(image)
    with torch.no_grad():
        logits = SlidingWindowInferer((16, 8, 16), 2, overlap, mode="gaussian")(seen.whole()[None], network)[0]
    expected = Resampling(seen.grid, seen.native).whole(logits.log_softmax(0).clamp(FLOOR)).softmax(0)
    got = probabilities_of(engine, image, network, classes)
    assert torch.allclose(got, expected, atol=1e-5)
    labels = engine(image[None], network)
    assert tuple(labels.shape) == (1, 1, *grid.shape)
    assert torch.equal(labels[0, 0].as_tensor().long(), 3 * got.argmax(0))


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1.5, 0.8, 1.2)])
def test_regions_may_overlap_and_later_ones_lie_on_top(spacing: tuple[float, ...]) -> None:
    """One output less than labels: a sigmoid per label, thresholded where their logits are interpolated to zero."""
    torch.manual_seed(2)
    network = nn.Conv3d(1, 2, 1).eval()
    image = image_on(Grid.from_spacing((20, 13, 18)))
    engine = inferer(3, spacing=spacing)
    seen = engine.frame.see(image)
    logits = network(seen.whole()[None])[0].detach()
    limited = logits.sigmoid().logit(float(np.exp(FLOOR)))
    native = Resampling(seen.grid, seen.native).whole(limited)
    first, second = (native > 0).numpy()
    assert (first & second).any()
    assert (first & ~second).any()
    (made,) = engine.segment([seen], network)
    expected = np.where(second, 6, np.where(first, 3, 0))
    assert (made.labels == expected).mean() > 0.9999
    inside = logits.sigmoid()[1] > 0.5
    assert made.certainty[1]["voxels"] == int(inside.sum())
    assert made.certainty[1]["probability"] == pytest.approx(float(logits.sigmoid()[1][inside].mean()), rel=1e-5)
    got = probabilities_of(engine, image, network, 2)
    assert torch.allclose(got, native.sigmoid(), atol=1e-5)


def test_outputs_that_are_neither_classes_nor_regions_are_refused() -> None:
    image = image_on(Grid.from_spacing((16, 8, 16)))
    with pytest.raises(NetworkError, match="the network has 5 outputs and the plan 3 labels; give it 3 outputs for cl"):
        inferer(3)(image[None], nn.Conv3d(1, 5, 1))


@pytest.mark.parametrize("border", ["constant", "edge", "mirror"])
def test_a_local_network_gives_the_same_through_windows(border: str) -> None:
    """A 1x1x1 convolution has no context: windows, mirroring and borders must give back its plain result."""
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 1).eval()
    for shape in ((16, 16, 16), (20, 13, 9), (40, 16, 24), (7, 5, 3)):
        image = image_on(Grid.from_spacing(shape))
        engine = inferer(mirror_axes=(0, 2), border=border)
        got = probabilities_of(engine, image, network, 3)
        assert torch.allclose(got, network(engine.frame.see(image).whole()[None])[0].softmax(0), atol=1e-5)


def test_mirroring_averages_over_all_flips() -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 3, padding=1).eval()
    image = image_on(Grid.from_spacing((16, 8, 16)))
    engine = inferer(2, mirror_axes=(0, 1))
    x = engine.frame.see(image).whole()[None]
    mean = sum(network(x.flip(dims)).flip(dims) for dims in ([], [2], [3], [2, 3])) / 4
    assert torch.allclose(probabilities_of(engine, image, network, 2), mean[0].softmax(0), atol=1e-5)


def test_a_2d_network_runs_slice_by_slice() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(2, 1, 1).eval()
    image = image_on(Grid.from_spacing((20, 13, 19)), channels=2)
    engine = inferer(2, channels=2, patch_size=(8, 8), overlap=0.25, batch_size=3)
    x = engine.frame.see(image).whole()
    expected = torch.stack([network(x[None, ..., z])[0] for z in range(19)], dim=-1).sigmoid()
    assert torch.allclose(probabilities_of(engine, image, network, 1), expected, atol=1e-5)
    labels = engine(image[None], network)
    assert torch.equal(labels[0, 0].as_tensor(), 3 * (expected[0] > 0.5).to(torch.uint8))


def test_air_is_run_once_and_gives_the_same_voxels() -> None:
    """Windows that are constant after clipping are all alike: one pass stands for them, exactly."""
    torch.manual_seed(0)
    convolution, calls = nn.Conv3d(1, 3, 3, padding=1).eval(), []

    def network(windows: torch.Tensor) -> torch.Tensor:
        calls.append(len(windows))
        return convolution(windows)

    noisy = np.random.default_rng(0).integers(-1100, -900, (1, 40, 40, 40)).astype(np.int16)
    noisy[:, :12, :12, :12] = np.random.default_rng(1).integers(-100, 300, (12, 12, 12))
    frame = Frame("RAS", (1, 1, 1), [{"scheme": "ct", "low": -200, "high": 300, "mean": 0, "std": 100}])
    engine = WindowInferer(frame, {"a": 0, "b": 1, "c": 2}, (8, 8, 8))
    image = MetaTensor(torch.from_numpy(noisy))
    got = engine(image[None], network)[0, 0].as_tensor()
    assert sum(calls) < 9**3 / 10
    with torch.no_grad():
        whole = SlidingWindowInferer((8, 8, 8), 4, 0.5, mode="gaussian")(frame.see(image).whole()[None], convolution)
    assert torch.equal(got.long(), whole[0].argmax(0))


def test_windows_are_halved_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def network(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x.shape[0])
        if x.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.repeat(1, 3, 1, 1, 1)

    image = image_on(Grid.from_spacing((8, 8, 64)))
    inferer(patch_size=(8, 8, 8), batch_size=4)(image[None], network)
    assert sizes[:1] == [1]  # a row has one window here
    sizes.clear()
    inferer(patch_size=(8, 8, 8), batch_size=4)(image_on(Grid.from_spacing((40, 8, 16)))[None], network)
    assert sizes[:3] == [4, 2, 1]

    sizes.clear()
    send = windows._sent

    def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return send(x, device)

    monkeypatch.setattr(windows, "_sent", sent)  # nor does the way to the device have room
    inferer(patch_size=(8, 8, 8), batch_size=4)(image_on(Grid.from_spacing((40, 8, 16)))[None], network)
    assert sizes[:2] == [2, 1]

    def hopeless(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ResourceError, match=r"one window of \[8, 8, 8\] voxels does not fit the memory"):
        inferer(patch_size=(8, 8, 8))(image[None], hopeless)


def test_memory_does_not_grow_with_the_number_of_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planes that the network's input and its logits are held for, whatever the length of the volume."""
    held = noted_voxels(monkeypatch)
    network = nn.Conv3d(1, 3, 1).eval()
    for slices in (32, 64, 200):
        inferer(patch_size=(8, 8, 16))(image_on(Grid.from_spacing((8, 8, slices)))[None], network)
    assert set(held) == {8 * 8 * 16}


def noted_voxels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many voxels' sums an accumulator holds after every window."""
    held, add = [], Accumulator.add

    def noting(self: Accumulator, *arguments: Any) -> None:
        add(self, *arguments)
        rooms = (*self._open.values(), *self._kept.values(), *self._room)
        held.append(sum(room[0].numel() for room in rooms))

    monkeypatch.setattr(Accumulator, "add", noting)
    return held


def test_what_is_finished_within_a_row_is_not_held_until_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a row waits for the next, the other half is only held where windows are."""
    held = noted_voxels(monkeypatch)
    network, image = nn.Conv3d(1, 3, 1).eval(), image_on(Grid.from_spacing((40, 8, 64)))
    engine = inferer(patch_size=(8, 8, 16))
    labels = engine(image[None], network)[0, 0].as_tensor()
    _, laid = engine.windows(engine.frame.see(image), network)
    assert max(held) == 8 * (40 * 8 + 8 * 16) == laid.in_columns().held < laid.held
    held.clear()
    made = probabilities_of(engine, image, network, 3)  # asked for, whole rows of them are handed over
    assert max(held) == 8 * 40 * 16
    assert torch.equal(labels.long(), 3 * made.argmax(0))


@pytest.mark.parametrize(("slices", "planes"), [(200, 104), (400, 112), (800, 128), (768, 96)])
def test_a_last_row_that_shares_most_of_its_planes_is_part_of_the_one_before(slices: int, planes: int) -> None:
    """Else nine tenths of a row would have to wait for it."""
    laid = overlapping((512, 512, slices), (96, 96, 96), 0.5).in_columns()
    assert (laid.axis, laid.across, laid.depth, laid.shared) == (2, 0, planes, 48)
    assert laid.held == 512 * (48 * 512 + planes * 96) < 0.8 * 512 * 512 * 96
    ran = [place for row in laid.rows() for place in row.places]
    assert set(ran) == set(product(*laid.spans))
    assert len(ran) == laid.count


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_columns_of_any_kind_give_the_labels_of_whole_rows(data: st.DataObject) -> None:
    """Sizes, windows, overlaps, windows a pass, images smaller than a window, slices one by one."""
    size = data.draw(st.tuples(*[st.integers(1, 30)] * 3))
    flat = data.draw(st.booleans())
    patch = data.draw(st.tuples(*[st.integers(2, 9)] * (2 if flat else 3)))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    network = (nn.Conv2d if flat else nn.Conv3d)(1, 3, 3, padding=1).eval()
    overlap, together = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.8])), data.draw(st.integers(1, 7))
    engine = inferer(3, patch_size=patch, overlap=overlap, batch_size=together)
    image = image_on(Grid.from_spacing(size))
    labels = engine(image[None], network)[0, 0].as_tensor()
    made = probabilities_of(engine, image, network, 3)
    first, second = made.topk(2, dim=0).values
    alike = torch.from_numpy(np.array(engine.values))[made.argmax(0)] == labels
    assert alike[first - second > 1e-5].all()


@pytest.mark.parametrize("known", [False, True])
def test_flips_are_exact_and_labels_keep_their_values(known: bool) -> None:
    target = Grid((4, 3, 2), np.diag([-1.0, 1, 1, 1]))
    flipped = np.eye(4)
    flipped[0, 3] = -3
    classes = torch.arange(24).reshape(4, 3, 2) % 3
    one_hot = torch.zeros(3, 4, 3, 2).scatter_(0, classes[None], 1.0)
    restorer = Restorer(Resampling(Grid((4, 3, 2), flipped), target), 2, [0, 7, 300])
    for planes in (slice(0, 1), slice(1, 2)):
        if known:
            restorer.put_labels(classes[..., planes])
        else:
            restorer.put(one_hot[..., planes].clone())
    assert np.array_equal(restorer.labels, np.array([0, 7, 300])[classes.flip(0).numpy()])
    assert restorer.labels.dtype == np.int16


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_labels_that_are_known_are_put_where_probabilities_would_put_them(data: st.DataObject) -> None:
    """Other order and direction of axes, planes a few at a time, classes or regions."""
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
    axis, outputs, classes = data.draw(st.integers(0, 2)), data.draw(st.integers(2, 4)), data.draw(st.booleans())
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    order = data.draw(st.permutations(range(3)))
    for column, row in enumerate(order):
        sign = data.draw(st.sampled_from([1, -1]))
        affine[row, column], affine[row, 3] = sign, 0 if sign > 0 else shape[row] - 1
    target = Grid(tuple(shape[row] for row in order), affine)
    resampling = Resampling(Grid.from_spacing(shape), target)
    logits = torch.randn((outputs, *shape), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    made = probabilities(logits, classes)
    values = [0, *range(3, 2 + outputs + (not classes))]
    told, untold = Restorer(resampling, axis, values), Restorer(resampling, axis, values)
    for planes in torch.split(made, data.draw(st.integers(1, 5)), dim=1 + axis):
        told.put_labels(decide(planes, classes))
        untold.put(planes.clone())
    assert told.takes_labels
    assert np.array_equal(told.labels, untold.labels)


def test_borders_lie_where_the_network_was_undecided() -> None:
    """Sure of background at 0 mm, just in favour of the object at 4 mm: the border is close to the second voxel."""
    source, target = Grid.from_spacing((2, 1, 1), (4.0, 1.0, 1.0)), Grid.from_spacing((5, 1, 1))
    restorer = Restorer(Resampling(source, target), 0, [0, 1])
    restorer.put(torch.tensor([[0.99, 0.4], [0.01, 0.6]]).reshape(2, 2, 1, 1))
    assert restorer.labels.ravel().tolist() == [0, 0, 0, 0, 1]
    restorer = Restorer(Resampling(source, target), 0, [0, 1, 2])
    certain = torch.tensor([[1e-4, 1e-4], [0.9998, 1e-4], [1e-4, 0.9998]]).reshape(3, 2, 1, 1)
    restorer.put(certain)
    assert 0 not in restorer.labels  # a class that is nowhere probable does not come up between two others


def test_a_class_is_interpolated_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, sample = [], Resampling.__call__

    def noting(self: Resampling, part: torch.Tensor, origin: Any, box: Any, **options: Any) -> torch.Tensor:
        boxes.append(box)
        return sample(self, part, origin, box, **options)

    monkeypatch.setattr(Resampling, "__call__", noting)
    probabilities = torch.zeros(9, 12, 12, 12)
    probabilities[0] = 1
    probabilities[:, 5, 5, 5] = torch.eye(9)[4]
    source, target = Grid.from_spacing((12, 12, 12)), Grid.from_spacing((23, 23, 23), (0.5, 0.5, 0.5))
    restorer = Restorer(Resampling(source, target), 2, list(range(9)))
    restorer.put(probabilities)
    assert boxes == [((9, 12), (9, 12), (9, 12))] * 2  # the background and class 4, around the voxel
    assert set(np.unique(restorer.labels)) == {0, 4}


def test_one_output_is_a_foreground_with_threshold_one_half() -> None:
    grid = Grid.from_spacing((2, 1, 1))
    restorer = Restorer(Resampling(grid, grid), 2, [0, 255])
    restorer.put(torch.tensor([[[[0.4]], [[0.6]]]]))
    assert restorer.labels.ravel().tolist() == [0, 255]


def test_an_inferer_comes_back_to_the_file(tmp_path: Path) -> None:
    """An anisotropic oblique scan, another orientation and spacing: the label map lies on the file's own grid."""
    image, _ = make_phantom(4, (20, 18, 12), (2.0, 2.0, 4.0))
    write_image(tmp_path / "i.nii.gz", image.array[0], image.grid)
    item = LoadVolumed()({"image": str(tmp_path / "i.nii.gz")})
    frame = Frame("ASR", (2.0, 3.0, 2.5), [{"scheme": "none"}])
    assert np.allclose(frame.see(item["image"]).grid.spacing, (2.0, 3.0, 2.5))

    def bright(windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(windows), 0.2 * (windows - 220)], dim=1)

    labels = WindowInferer(frame, {"background": 0, "spine": 9}, (8, 8, 8))(item["image"][None], bright)[0, 0]
    assert tuple(labels.shape) == image.grid.shape
    assert np.array_equal(labels.affine.numpy(), read_volume(tmp_path / "i.nii.gz").grid.affine)
    truth, found = image.array[0] > 220, labels.numpy() == 9
    assert 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + truth.sum()) > 0.75


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_windows_cover_an_axis_as_monai_places_them(size: int, window: int, overlap: float) -> None:
    size = max(size, window)
    starts = axis_starts(size, window, overlap)
    step = max(1, int(window * (1 - overlap)))
    expected = [s[0].start for s in dense_patch_slices((size,), (window,), (step,))]
    assert list(starts) == expected
    assert {v for s in starts for v in range(s, s + window)} == set(range(size))


def test_preprocessing_for_training_is_what_inference_sees(tmp_path: Path) -> None:
    image, label = make_phantom(4, (20, 18, 12), (2.0, 2.0, 4.0))
    write_image(tmp_path / "i.nii.gz", image.array[0], image.grid)
    write_label(tmp_path / "l.nii.gz", label.array[0], label.grid)
    frame = Frame("ASR", (2.0, 3.0, 2.5), [{"scheme": "zscore"}])
    names = {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}
    item = Preprocess(frame, names)({"image": str(tmp_path / "i.nii.gz"), "label": str(tmp_path / "l.nii.gz")})
    seen = frame.see(LoadVolumed()({"image": str(tmp_path / "i.nii.gz")})["image"])
    assert torch.equal(item["image"].as_tensor(), seen.whole())
    assert item["label"].shape == item["image"].shape
    assert np.array_equal(item["image"].affine.numpy(), seen.grid.affine)


def test_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "i.nii", np.zeros((4, 4, 4), np.float32), Grid.from_spacing((4, 4, 4)))
    image = LoadVolumed()({"image": str(tmp_path / "i.nii")})["image"]
    with pytest.raises(InputError, match=r"i\.nii: has 1 channel, the model takes 2; give one per channel"):
        Frame("RAS", (1, 1, 1), [{"scheme": "zscore"}] * 2).see(image)


def normalized(values: np.ndarray, scheme: dict[str, Any]) -> torch.Tensor:
    return Frame("RAS", (1, 1, 1), [scheme]).see(MetaTensor(torch.from_numpy(values))).whole()


@given(st.floats(1e-3, 1e6), st.floats(-1e3, 1e3))
def test_zscore_does_not_depend_on_the_scanners_scale(scale: float, shift: float) -> None:
    base = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    a = normalized(base, {"scheme": "zscore"})
    b = normalized((base.astype(np.float64) * scale + shift * scale).astype(np.float32), {"scheme": "zscore"})
    assert torch.allclose(a, b, atol=5e-2)
    assert abs(float(a.mean())) < 1e-4


def test_a_constant_image_becomes_zero_and_ct_keeps_its_units() -> None:
    assert normalized(np.full((1, 3, 3, 3), 7.0, np.float32), {"scheme": "zscore"}).abs().max() == 0
    ct = {"scheme": "ct", "low": -100, "high": 300, "mean": 100, "std": 50}
    values = np.array([-1000, 200, 3000], np.int16).reshape(1, 1, 1, 3)
    assert normalized(values, ct).ravel().tolist() == [-4.0, 2.0, 4.0]


def test_statistics_of_large_images_are_close_to_those_of_all_voxels() -> None:
    values = np.random.default_rng(0).gamma(2.0, 50.0, (180, 170, 160)).astype(np.int16)
    scale = scale_of(values, {"scheme": "zscore"})
    low, high = np.percentile(values, [0.5, 99.5])
    clipped = np.clip(values, scale.low, scale.high)
    assert abs(scale.low - low) <= 1
    assert abs(scale.high - high) <= 10
    assert np.isclose(scale.mean, clipped.mean())
    assert np.isclose(scale.std, clipped.std())


def test_a_few_bright_voxels_are_not_clipped_away() -> None:
    """Spots in an empty field: percentiles 0.5 and 99.5 are both background."""
    values = np.zeros((40, 40, 40), np.int16)
    values[10, 10, 5:35] = np.arange(100, 130)
    scale = scale_of(values, {"scheme": "zscore"})
    assert (scale.low, scale.high) == (0, 129)
    assert np.isclose(scale.mean, values.mean())
    assert np.isclose(scale.std, values.std())


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_a_value_that_is_not_declared_is_refused(tmp_path: Path, kind: type) -> None:
    image, label = make_phantom(4, (12, 12, 12), (2.0, 2.0, 2.0))
    write_image(tmp_path / "i.nii.gz", image.array[0], image.grid)
    drawn = label.array[0].astype(kind)
    drawn[0, 0, 0] = 77
    nib.save(nib.Nifti1Image(drawn, image.grid.affine), tmp_path / "l.nii.gz")
    frame = Frame("RAS", (2.0, 2.0, 2.0), [{"scheme": "none"}])
    values = sorted(set(np.unique(drawn).tolist()) - {77})
    preprocess = Preprocess(frame, {f"c{v}": v for v in values})
    with pytest.raises(InputError, match=r"l\.nii\.gz: label value 77 is not declared \(c0=0, .*correct the label"):
        preprocess({"image": str(tmp_path / "i.nii.gz"), "label": str(tmp_path / "l.nii.gz")})


@pytest.mark.parametrize("change", ["cropped", "moved", "turned"])
def test_a_label_that_does_not_lie_on_its_image_is_refused(tmp_path: Path, change: str) -> None:
    """One that was saved again after the plan looked at it, or of a test case that no plan looks at."""
    image, label = make_phantom(4, (12, 12, 12), (2.0, 2.0, 2.0))
    write_image(tmp_path / "i.nii.gz", image.array[0], image.grid)
    array, affine = label.array[0], np.array(image.grid.affine)
    if change == "cropped":
        array = array[2:, 2:, 2:]
        affine[:3, 3] += affine[:3, :3] @ [2, 2, 2]
    elif change == "moved":
        affine[:3, 3] += 500
    else:
        array, affine = array[::-1, ::-1], affine @ np.diag([-1, -1, 1, 1])
        affine[:3, 3] += image.grid.affine[:3, :3] @ [11, 11, 0]
    write_label(tmp_path / "l.nii.gz", array, Grid(array.shape, affine))
    item = {"image": str(tmp_path / "i.nii.gz"), "label": str(tmp_path / "l.nii.gz")}
    frame = Frame("RAS", (2.0, 2.0, 2.0), [{"scheme": "none"}])
    words = r"l\.nii\.gz: label grid \(.*\) differs from image \(12, 12, 12\).*; resample the label or remove the case"
    for transform in (LoadVolumed(("image", "label")), Preprocess(frame, {"background": 0, "a": 1})):
        with pytest.raises(GeometryError, match=words):
            transform(item)


def test_stored_values_become_classes() -> None:
    label = torch.tensor([[[[0.0, 255.0, 3.0]]]])
    assert to_classes(label, [0, 3, 255]).ravel().tolist() == [0, 2, 1]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, np.zeros((2, 2, 2), np.float32), Grid.from_spacing((2, 2, 2)))


def test_names_cannot_collide(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "image.nii.gz", tmp_path / "b" / "image.nii.gz", tmp_path / "a" / "image.nii"]
    touch(*paths)
    outputs = [c.output for c in find_cases([tmp_path])]
    assert sorted(outputs) == ["a/image_nii.nii.gz", "a/image_nii_gz.nii.gz", "b/image.nii.gz"]


@given(
    st.lists(
        st.text("ab/", min_size=1, max_size=6).map(lambda t: t.strip("/") or "x"), min_size=1, max_size=8, unique=True
    )
)
def test_outputs_are_unique(stems: list[str]) -> None:
    suffixes = [".nii.gz", ".mha", ".nii"]
    groups = [(f"/data/{stem}{suffixes[n % 3]}",) for n, stem in enumerate(stems)]
    outputs = [c.output.lower() for c in name_outputs(groups)]
    assert len(set(outputs)) == len(outputs)


def test_channels_of_a_folder_belong_together(tmp_path: Path) -> None:
    touch(*(tmp_path / f"case{n}_000{c}.nii" for n in range(2) for c in range(2)))
    cases = find_cases([tmp_path], channels=("a", "b"))
    assert [c.output for c in cases] == ["case0.nii.gz", "case1.nii.gz"]
    assert all(len(c.images) == 2 for c in cases)
    (tmp_path / "case0_0001.nii").unlink()
    (tmp_path / "list.txt").write_text("# comment\ncase1_0000.nii; case1_0001.nii\n")
    assert len(find_cases([f"@{tmp_path / 'list.txt'}"], channels=("a", "b"))[0].images) == 2
    touch(tmp_path / "case1_0002.nii")
    with pytest.raises(InputError, match="has 3 files, the model takes 2 channels"):
        find_cases([tmp_path], channels=("a", "b"))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [("03", "has the channels 0000, 0003, the model takes 0000 to 0001"), ("12", "has the channels 0001, 0002")],
)
def test_channels_go_by_their_numbers(numbers: str, words: str, tmp_path: Path) -> None:
    touch(*(tmp_path / f"case_000{n}.nii" for n in numbers))
    with pytest.raises(InputError, match=words):
        find_cases([tmp_path], channels=("a", "b"))


def test_results_are_no_inputs(tmp_path: Path) -> None:
    """Neither those in a folder below, nor those that earlier calls left beside the inputs."""
    touch(tmp_path / "a.nii.gz", tmp_path / "out" / "c.nii.gz")
    (tmp_path / "a.mha").touch()
    (tmp_path / "b.mha").touch()

    def names(output: Path) -> list[str]:
        return [case.output for case in find_cases([tmp_path], output_dir=output)]

    assert names(tmp_path / "out") == ["a_mha.nii.gz", "a_nii_gz.nii.gz", "b.nii.gz"]
    assert len(names(tmp_path)) == 4
    assert len(FolderInputs(str(tmp_path), ["CT"], str(tmp_path / "out"))) == 3  # in MONAI's run too
    status = Status(tmp_path, "digest")
    status.add(CaseResult("a", "done", output="a.nii.gz"))
    status.write()
    assert names(tmp_path) == ["a.nii.gz", "b.nii.gz", "out/c.nii.gz"]


def test_volumes_go_one_by_one() -> None:
    batch = image_on(Grid.from_spacing((8, 8, 8)))[None]
    with pytest.raises(InputError, match="a batch has 2 volumes, and they go one by one; set dataloader::batch_size"):
        inferer()(torch.cat((batch, batch)), lambda windows: windows)


def test_a_window_is_timed_when_it_is_warm() -> None:
    calls: list[int] = []

    def slow_at_first(windows: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        time.sleep(0.3 if len(calls) == 1 else 0.0)
        return windows.repeat(1, 3, 1, 1, 1)

    engine = inferer(patch_size=(8, 8, 8))
    image = engine.frame.see(image_on(Grid.from_spacing((24, 24, 24))))
    load = engine.workload(image, slow_at_first)
    assert 0 < load.seconds < 0.3 * load.windows


def test_folders_without_volumes_say_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no volume"):
        find_cases([tmp_path])
    (tmp_path / "x.dcm").write_text("")
    with pytest.raises(InputError, match=r"no DICOM series of images .*is empty"):
        find_cases([tmp_path])
    with pytest.raises(InputError, match="no input"):
        find_cases([])


@pytest.mark.parametrize(
    ("shape", "spacing", "words", "fatal"),
    [
        ((100, 100, 80), (1.0, 1.0, 1.0), None, False),
        ((100, 100, 1), (1.0, 1.0, 1.0), "is a single slice", True),
        ((40, 40, 60), (2.6, 2.6, 1.0), "has spacing", False),
        ((100, 100, 80), (10.0, 10.0, 1.0), "has spacing", True),
        ((300, 300, 80), (1.0, 1.0, 1.0), "covers 300 x 300 x 80 mm", False),
        ((512, 512, 80), (1.0, 1.0, 1.0), "covers", True),
    ],
)
def test_grids_are_compared_with_training(
    shape: tuple[int, ...], spacing: tuple[float, ...], words: str | None, fatal: bool
) -> None:
    concerns = compare_grid(Grid.from_spacing(shape, spacing), PLAN)
    if words is None:
        assert concerns == []
    else:
        assert any(words in c.message for c in concerns)
        assert any(c.fatal for c in concerns) == fatal


def test_intensities_are_compared_with_training() -> None:
    assert compare_intensity([(-1000, 1500)], PLAN) == []
    assert "Hounsfield" in compare_intensity([(0, 1)], PLAN)[0].message
    assert "constant" in compare_intensity([(5, 5)], PLAN)[0].message


def test_weights_that_do_not_fit_or_are_broken(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(BundleError, match="is missing; train the bundle first"):
        load_weights(nn.Linear(2, 2), path)
    torch.save(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(BundleError, match="weights do not fit the plan's network"):
        load_weights(nn.Linear(2, 2), path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BundleError, match="cannot be loaded as plain weights"):
        load_weights(nn.Linear(2, 2), path)
    torch.save({"weight": nn.Linear(2, 2)}, path)
    with pytest.raises(BundleError, match="cannot be loaded as plain weights"):
        load_weights(nn.Linear(2, 2), path)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ResourceError, match="device 'tpu' is not available"):
        pick_device("tpu")
    with pytest.raises(ResourceError, match="device 'cpu:first' is not a device; give cpu, or cpu:0 and so on"):
        pick_device("cpu:first")


def test_a_graphics_card_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ResourceError, match="'cuda:2' is not available on this machine, whose last is cuda:1; give"):
        pick_device("cuda:2")


def test_root_cause_prefers_our_own_error() -> None:
    outer, middle = RuntimeError("wrapped"), InputError("ours")
    outer.__cause__, middle.__cause__ = middle, KeyError("deep")
    assert root_cause(outer) is middle
    assert str(root_cause(RuntimeError("alone"))) == "alone"


@pytest.mark.parametrize("options", [{"norm": "none"}, {"norm": "batch", "upsample": "interpolated"}])
def test_exact_tiles_give_the_result_of_the_whole_volume(options: dict[str, Any]) -> None:
    """Overlap-tile: whatever the tiles, each voxel once, as if the volume had gone through in one pass."""
    torch.manual_seed(0)
    network = UNet.of_depth(3, 4, 3, out_channels=2, **options).eval()
    image = image_on(Grid.from_spacing((50, 45, 90)))
    engine = inferer(2, blend="exact", border="mirror", patch_size=(16, 16, 16))
    seen = engine.frame.see(image)
    border, windows = engine.windows(seen, network)
    assert windows.count > 1
    with torch.no_grad():
        logits = network(border.read(tuple((0, n) for n in border.size))[None])[0]
    inner = tuple(slice(b, b + n) for b, n in zip(border.before, border.inner, strict=True))
    expected = logits.log_softmax(0).clamp(FLOOR).softmax(0)[(slice(None), *inner)]
    assert torch.allclose(probabilities_of(engine, image, network, 2), expected, atol=1e-5)


def test_exact_tiles_count_every_voxel_once() -> None:
    network = UNet.of_depth(3, 2, 2, norm="none").eval()
    engine = inferer(2, blend="exact", patch_size=(32, 32))
    _, windows = engine.windows(engine.frame.see(image_on(Grid.from_spacing((300, 140, 3)))), network)
    counted = np.zeros(windows.size, int)
    for row in windows.rows():
        for place in row.places:
            counted[tuple(slice(span.first, span.stop) for span in place)] += 1
    assert (counted == 1).all()


def test_a_network_that_sees_everything_has_no_exact_tiles() -> None:
    network = UNet.of_depth(2, 2, 3, norm="instance").eval()
    with pytest.raises(NetworkError, match="depends on all of its input"):
        inferer(2, blend="exact")(image_on(Grid.from_spacing((40, 40, 40)))[None], network)


@pytest.mark.parametrize(
    ("layers", "halo"),
    [
        ([nn.Conv3d(1, 1, 3, padding=1)], (1, 1)),
        ([nn.Conv3d(1, 1, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv3d(1, 1, 5, padding=2)], (4, 4)),
        ([nn.Conv3d(1, 1, 2, stride=2), nn.Conv3d(1, 1, 3, padding=1), nn.ConvTranspose3d(1, 1, 2, stride=2)], (3, 3)),
        ([nn.InstanceNorm3d(1)], None),
    ],
)
def test_receptive_fields(layers: list[nn.Module], halo: tuple[int, int] | None) -> None:
    network = nn.Sequential(*layers)
    network.spatial_divisor = (2, 2, 2)
    got = receptive_field(network, 3)
    assert got == (None if halo is None else (halo,) * 3)


def test_images_share_forward_passes() -> None:
    torch.manual_seed(0)
    network, sizes = nn.Conv2d(1, 2, 3, padding=1).eval(), []
    hook = network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    engine = inferer(2, patch_size=(16, 16), batch_size=8)
    images = [engine.frame.see(image_on(Grid.from_spacing((16, 16, 1)), seed=n)) for n in range(5)]
    together = engine.segment(images, network)
    assert sizes == [5]
    hook.remove()
    for image, labels in zip(images, together, strict=True):
        assert np.array_equal(engine.segment([image], network)[0].labels, labels.labels)


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
@pytest.mark.parametrize("mirror_axes", [(), (0,)])
def test_images_side_by_side_are_those_one_by_one(mirror_axes: tuple[int, ...]) -> None:
    """Of one window and of several, in 2D, with OpenVINO's windows side by side."""
    torch.manual_seed(0)
    network = UNet.of_depth(3, 4, 2, in_channels=1, out_channels=2).eval()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine = inferer(2, patch_size=(16, 16), backend="openvino", mirror_axes=mirror_axes)
        assert engine.together(network) > 5
        sizes = [(16, 16, 1), (40, 16, 1), (16, 16, 1), (16, 20, 5), (16, 16, 1)]
        images = [engine.frame.see(image_on(Grid.from_spacing(size), seed=n)) for n, size in enumerate(sizes)]
        for image, made in zip(images, engine.segment(images, network), strict=True):
            assert made.labels.any()
            assert np.array_equal(engine.segment([image], network)[0].labels, made.labels)
    finally:
        torch.set_num_threads(before)
