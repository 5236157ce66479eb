"""medunet's reader inside MONAI's LoadImaged: what it gives, and that no other reader steps in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged
from monai.utils import MetaKeys, SpaceKeys

from medunet.data import reader
from medunet.data.grid import Grid
from medunet.data.phantom import make_phantom
from medunet.data.reader import VolumeReader
from medunet.data.volume import write_image
from medunet.errors import InputError, root_cause

SHAPE = (9, 8, 7)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    image, _ = make_phantom(4, SHAPE, (2.0, 2.5, 5.0))
    write_image(tmp_path / "scan.nii.gz", image.array[0], image.grid)
    return tmp_path / "scan.nii.gz"


def load(value: str | list[str]) -> MetaTensor:
    transform = Compose([LoadImaged(["image"], reader=VolumeReader(), ensure_channel_first=True)])
    result = transform({"image": value})["image"]
    assert isinstance(result, MetaTensor)
    return result


def test_one_file(scan: Path) -> None:
    image = load(str(scan))
    source = nib.load(scan)
    assert (tuple(image.shape), str(image.dtype)) == ((1, *SHAPE), "torch.float32")
    assert np.array_equal(image[0].numpy(), source.get_fdata())
    assert np.array_equal(image.affine.numpy(), source.affine)
    assert np.array_equal(image.meta[MetaKeys.ORIGINAL_AFFINE], source.affine)
    assert image.meta[MetaKeys.SPACE] == SpaceKeys.RAS
    assert tuple(image.meta[MetaKeys.SPATIAL_SHAPE]) == SHAPE
    assert image.meta["filename_or_obj"] == str(scan)


def test_a_file_per_channel_and_channels_in_one_file(scan: Path, tmp_path: Path) -> None:
    assert load([str(scan), str(scan)]).shape == (2, *SHAPE)
    both = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    write_image(tmp_path / "both.nii", both, Grid.from_spacing((3, 4, 5)))
    assert np.array_equal(load(str(tmp_path / "both.nii")).numpy(), both)


def test_no_other_reader_steps_in_for_a_corrupt_file(scan: Path) -> None:
    scan.write_bytes(scan.read_bytes()[:-200])
    with pytest.raises(RuntimeError) as caught:
        load(str(scan))
    cause = root_cause(caught.value)
    assert isinstance(cause, InputError)
    assert str(cause).startswith(f"{scan}: cannot be read, the file is truncated or corrupt (")


def test_read_keeps_every_error_for_get_data(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(paths: list[str]) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(reader, "read_case", fail)
    kept = VolumeReader().read(str(scan))
    with pytest.raises(MemoryError, match="no room"):
        VolumeReader().get_data(kept)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_counted(tmp_path: Path, value: float) -> None:
    array = np.zeros((3, 4, 5), np.float32)
    array[0, 0, :2] = value
    write_image(tmp_path / "x.nii", array, Grid.from_spacing((3, 4, 5)))
    with pytest.raises(RuntimeError) as caught:
        load(str(tmp_path / "x.nii"))
    assert f"{tmp_path / 'x.nii'}: 2 of 60 voxels are NaN or infinite" in str(root_cause(caught.value))


def test_formats_of_one_image_give_the_same_tensor(real_data: Callable[[str], Path]) -> None:
    folder = real_data("nifti_cases") / "formats" / "test"
    first, *others = (load(str(folder / name)) for name in ("nrrd.nhdr", "mgh.mgz", "mha.mha"))
    assert first.shape == (1, 64, 64, 37)
    for other in others:
        assert np.array_equal(first.numpy(), other.numpy())
        assert np.allclose(first.affine, other.affine, atol=1e-3)
