"""Windows, restoring onto the input's grid, names, and comparison with the training data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.ndimage import map_coordinates
from torch import nn

from medunet.data.grid import Grid
from medunet.data.phantom import make_phantom
from medunet.data.transforms import Preprocess, normalize, to_classes
from medunet.data.volume import read_volume, write_image
from medunet.errors import BundleError, InputError, ResourceError, root_cause
from medunet.inference import WindowInferer, pick_device
from medunet.inference.compare import compare_grid, compare_intensity
from medunet.inference.inputs import find_cases, name_outputs
from medunet.inference.restoring import RestoreLabeld, current_grid, restore_labels, restore_probabilities
from medunet.inference.weights import load_weights

PLAN = {
    "dims": 3, "orientation": "RAS", "spacing": [1.0, 1.0, 1.0], "channels": ["CT"],
    "normalization": [{"scheme": "ct", "low": -100, "high": 300, "mean": 0, "std": 100}],
    "seen": {
        "spacing_min": [0.8, 0.8, 1.0], "spacing_max": [1.2, 1.2, 3.0], "median_shape": [100, 100, 80],
        "pictures": False, "intensity": [{"minimum": -1000.0, "maximum": 2000.0}],
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 16, 16), (20, 13, 9), (40, 16, 24), (7, 5, 3)])
@pytest.mark.parametrize("mirror", [(), (0, 2)])
def test_a_local_network_gives_the_same_through_windows(shape: tuple[int, ...], mirror: tuple[int, ...]) -> None:
    """A 1x1x1 convolution has no context: blending must give back its plain result, whatever the size."""
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 1)
    volume = torch.randn(1, 1, *shape)
    got = WindowInferer((16, 16, 16), 0.5, mirror_axes=mirror)(volume, network)
    assert torch.allclose(got, network(volume).softmax(1), atol=1e-5)


def test_a_2d_network_runs_slice_by_slice() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(2, 1, 1)
    volume = torch.randn(1, 2, 20, 13, 5)
    got = WindowInferer((8, 8), 0.25)(volume, network)
    expected = torch.stack([network(volume[..., z]) for z in range(5)], dim=-1).sigmoid()
    assert torch.allclose(got, expected, atol=1e-5)


def test_windows_are_halved_when_memory_runs_out() -> None:
    sizes = []

    def network(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x.shape[0])
        if x.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    WindowInferer((8, 8, 8), 0.5, batch_size=4)(torch.randn(1, 1, 24, 8, 8), network)
    assert sizes[:3] == [4, 2, 1]

    def hopeless(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ResourceError, match=r"one window of \[8, 8, 8\] voxels does not fit the memory"):
        WindowInferer((8, 8, 8))(torch.randn(1, 1, 8, 8, 8), hopeless)


@st.composite
def grid_pairs(draw: st.DrawFn) -> tuple[Grid, Grid]:
    """A target grid, and a source that covers it with flipped and permuted axes and another spacing."""
    target = Grid((9, 8, 7), np.diag([draw(st.sampled_from([1.0, 1.5])), 2.0, 3.0, 1.0]))
    order, signs = draw(st.permutations(range(3))), [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    steps = [draw(st.sampled_from([0.5, 1.0, 1.3])) for _ in range(3)]
    shape = [int(np.ceil(target.shape[a] / steps[i])) for i, a in enumerate(order)]
    matrix = np.eye(4)
    for column, axis in enumerate(order):
        matrix[:3, column] = 0
        matrix[axis, column] = signs[column] * steps[column]
        if signs[column] < 0:
            matrix[axis, 3] = (shape[column] - 1) * steps[column]
    return Grid(tuple(shape), target.affine @ matrix), target


@settings(max_examples=60, deadline=None)
@given(grid_pairs())
def test_restoring_agrees_with_scipy(pair: tuple[Grid, Grid]) -> None:
    source, target = pair
    values = np.random.default_rng(0).random((2, *source.shape)).astype(np.float32)
    got = restore_probabilities(torch.from_numpy(values), source, target).numpy()
    points = source.to_voxel(target.to_world(np.argwhere(np.ones(target.shape)))).T
    for channel in range(2):
        expected = map_coordinates(values[channel], points, order=1, mode="nearest").reshape(target.shape)
        assert np.allclose(got[channel], expected, atol=2e-4)


def test_oblique_restoring_agrees_with_scipy() -> None:
    source = Grid.from_spacing((10, 11, 12))
    target = make_phantom(0, (8, 8, 6), (1.2, 1.2, 1.6))[0].grid
    centred = np.array(target.affine)
    centred[:3, 3] += source.to_world(np.array([[5.0, 5.0, 5.0]]))[0] - target.to_world(np.array([[4.0, 4.0, 3.0]]))[0]
    target = Grid(target.shape, centred)
    values = np.random.default_rng(1).random((1, *source.shape)).astype(np.float32)
    got = restore_probabilities(torch.from_numpy(values), source, target).numpy()[0]
    points = source.to_voxel(target.to_world(np.argwhere(np.ones(target.shape)))).T
    expected = map_coordinates(values[0], points, order=1, mode="nearest").reshape(target.shape)
    assert np.allclose(got, expected, atol=1e-3)


def test_flips_are_exact_and_labels_keep_their_values() -> None:
    target = Grid((4, 3, 2), np.diag([-1.0, 1, 1, 1]))
    flipped = np.eye(4)
    flipped[0, 3] = -3
    source = Grid((4, 3, 2), flipped)
    one_hot = torch.zeros(3, 4, 3, 2)
    classes = torch.arange(24).reshape(4, 3, 2) % 3
    one_hot.scatter_(0, classes[None], 1.0)
    labels = restore_labels(one_hot, source, target, [0, 7, 300])
    assert np.array_equal(labels, np.array([0, 7, 300])[classes.flip(0).numpy()])


def test_one_output_is_a_foreground_with_threshold_one_half() -> None:
    grid = Grid.from_spacing((2, 1, 1))
    labels = restore_labels(torch.tensor([[[[0.4]], [[0.6]]]]), grid, grid, [0, 255])
    assert labels.ravel().tolist() == [0, 255]


def test_preprocess_and_restore_come_back_to_the_file(tmp_path: Path) -> None:
    """An anisotropic oblique scan, another orientation and spacing: the label map lies on the file's own grid."""
    image, _ = make_phantom(4, (20, 18, 12), (2.0, 2.0, 4.0))
    write_image(tmp_path / "i.nii.gz", image.array[0], image.grid)
    preprocess = Preprocess("ASR", (2.0, 3.0, 2.5), [{"scheme": "none"}])
    item = preprocess({"image": str(tmp_path / "i.nii.gz")})
    assert np.allclose(item["image"].pixdim, (2.0, 3.0, 2.5), atol=1e-3)
    spine = (item["image"][0] > 220).float()
    item["pred"] = torch.stack([1 - spine, spine])
    restored = RestoreLabeld({"background": 0, "spine": 9})(item)["pred"]
    assert tuple(restored.shape[1:]) == image.grid.shape
    assert np.array_equal(restored.affine.numpy(), read_volume(tmp_path / "i.nii.gz").grid.affine)
    truth = image.array[0] > 220
    overlap = 2 * np.count_nonzero((restored[0].numpy() == 9) & truth) / (np.count_nonzero(restored == 9) + truth.sum())
    assert overlap > 0.75


def test_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "i.nii", np.zeros((4, 4, 4), np.float32), Grid.from_spacing((4, 4, 4)))
    with pytest.raises(InputError, match=r"i\.nii: has 1 channel, the model takes 2; give one per channel"):
        Preprocess("RAS", (1, 1, 1), [{"scheme": "zscore"}] * 2)({"image": str(tmp_path / "i.nii")})


@given(st.floats(1e-3, 1e6), st.floats(-1e3, 1e3))
def test_zscore_does_not_depend_on_the_scanners_scale(scale: float, shift: float) -> None:
    base = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32))
    a = normalize(base.clone(), [{"scheme": "zscore"}])
    b = normalize((base.double() * scale + shift * scale).float(), [{"scheme": "zscore"}])
    assert torch.allclose(a, b, atol=5e-2)
    assert abs(float(a.mean())) < 1e-4


def test_a_constant_image_becomes_zero_and_ct_keeps_its_units() -> None:
    assert normalize(torch.full((1, 3, 3, 3), 7.0), [{"scheme": "zscore"}]).abs().max() == 0
    ct = {"scheme": "ct", "low": -100, "high": 300, "mean": 100, "std": 50}
    assert normalize(torch.tensor([[[[-1000.0, 200.0, 3000.0]]]]), [ct]).ravel().tolist() == [-4.0, 2.0, 4.0]


def test_stored_values_become_classes() -> None:
    label = MetaTensor(torch.tensor([[[[0.0, 255.0, 3.0]]]]))
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


def test_current_grid_follows_the_tensor() -> None:
    image = MetaTensor(torch.zeros(1, 3, 4, 5), affine=np.diag([2.0, 3.0, 4.0, 1.0]))
    assert current_grid(image) == Grid.from_spacing((3, 4, 5), (2.0, 3.0, 4.0))


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


def test_root_cause_prefers_our_own_error() -> None:
    outer, middle = RuntimeError("wrapped"), InputError("ours")
    outer.__cause__, middle.__cause__ = middle, KeyError("deep")
    assert root_cause(outer) is middle
    assert str(root_cause(RuntimeError("alone"))) == "alone"
