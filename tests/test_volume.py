"""Readers and writers on real formats, and MONAI's LoadImaged on top of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from medunet.data.grid import Grid
from medunet.data.phantom import make_phantom
from medunet.data.transforms import load_transform
from medunet.data.volume import (
    read_case,
    read_header,
    read_label,
    read_volume,
    stem_of,
    suffix_of,
    write_image,
    write_label,
)
from medunet.errors import GeometryError, InputError

Data = Callable[[str], Path]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    image, _ = make_phantom(3, (12, 10, 8), (2.0, 2.0, 5.0))
    write_image(tmp_path / "scan.nii.gz", image.array[0], image.grid)
    return tmp_path / "scan.nii.gz"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mgz"])
def test_formats_hold_the_same_volume(scan: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"copy{suffix}"
    if suffix == ".mgz":
        source = nib.load(scan)
        nib.save(nib.MGHImage(np.asarray(source.dataobj).astype(np.int32), source.affine), path)
    else:
        sitk.WriteImage(sitk.ReadImage(str(scan)), str(path))
    ours, theirs = read_volume(path), read_volume(scan)
    assert np.array_equal(ours.array, theirs.array)
    assert ours.grid.distance(theirs.grid) < 1e-3
    header = read_header(path)
    assert header.channels == 1
    assert header.grid.distance(theirs.grid) < 1e-3


def test_world_frame_is_ras_as_nibabel_says(scan: Path) -> None:
    assert np.array_equal(read_volume(scan).grid.affine, nib.load(scan).affine)


def test_real_formats_agree(real_data: Data) -> None:
    folder = real_data("nifti_cases") / "formats"
    files = sorted(p for p in folder.rglob("*") if p.is_file() and suffix_of(p))
    assert files
    for path in files:
        volume = read_volume(path)
        assert volume.array.shape[1:] == volume.grid.shape


def test_lr_and_rl_storage_show_the_same_head(real_data: Data) -> None:
    folder = real_data("nifti_cases") / "nimh"
    left, right = (read_volume(folder / f"avg152T1_{s}_nifti.nii.gz") for s in ("LR", "RL"))
    assert left.grid.axcodes[0] != right.grid.axcodes[0]
    assert np.array_equal(left.array[:, ::-1], right.array)
    pair = read_volume(folder / "avg152T1_LR_nifti.hdr.gz")
    assert np.array_equal(pair.array, left.array)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("I;16", 1), ("1", 1)])
def test_pictures_are_volumes_of_one_slice(tmp_path: Path, mode: str, channels: int) -> None:
    pixels = np.arange(6 * 4, dtype=np.uint16 if mode == "I;16" else np.uint8).reshape(4, 6)
    picture = Image.fromarray(pixels) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    picture.save(tmp_path / "p.png")
    volume = read_volume(tmp_path / "p.png")
    assert volume.array.shape == (channels, 6, 4, 1)
    if mode in ("L", "I;16"):
        assert volume.array[0, 5, 1, 0] == pixels[1, 5]


def test_labels_round_trip_with_a_bit_equal_affine(scan: Path, tmp_path: Path) -> None:
    grid = read_volume(scan).grid
    label = np.zeros(grid.shape, dtype=np.int64)
    label[2:5, 3, 1] = 700
    write_label(tmp_path / "l.nii.gz", label, grid)
    back = read_label(tmp_path / "l.nii.gz")
    assert back.array.dtype == np.int16
    assert np.array_equal(back.array[0], label)
    assert np.array_equal(back.grid.affine, grid.affine)


def test_a_label_copies_qform_and_sform_of_its_image(tmp_path: Path) -> None:
    affine = make_phantom(5, (6, 5, 4), (1.1, 1.1, 3.3))[0].grid.affine
    image = nib.Nifti1Image(np.zeros((6, 5, 4), np.int16), affine)
    image.set_qform(affine, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "q.nii.gz")
    source = read_volume(tmp_path / "q.nii.gz")
    label = np.ones((6, 5, 4), np.uint8)
    write_label(tmp_path / "l.nii.gz", label, source.grid, like=tmp_path / "q.nii.gz")
    back = nib.load(tmp_path / "l.nii.gz")
    assert np.array_equal(back.affine, source.grid.affine)
    assert int(back.header["sform_code"]) == 0
    assert back.get_data_dtype() == np.uint8


def test_writing_twice_gives_the_same_bytes(scan: Path, tmp_path: Path) -> None:
    volume = read_volume(scan)
    for name in "ab":
        write_image(tmp_path / f"{name}.nii.gz", volume.array[0], volume.grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_channels_on_other_grids_are_resampled_through_the_world(tmp_path: Path) -> None:
    fine = Grid.from_spacing((20, 20, 20), (1.0, 1.0, 1.0))
    coarse = Grid((10, 10, 10), np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1.0]]))
    for name, grid in (("a", fine), ("b", coarse)):
        x = grid.to_world(np.argwhere(np.ones(grid.shape)))[:, 0].reshape(grid.shape)
        write_image(tmp_path / f"{name}.nii", x.astype(np.float32), grid)
    case = read_case([tmp_path / "a.nii", tmp_path / "b.nii"])
    assert case.grid == fine
    assert np.allclose(case.array[0, 1:-1], case.array[1, 1:-1], atol=1e-4)


def test_channels_that_show_another_place_are_refused(tmp_path: Path) -> None:
    far = np.eye(4)
    far[:3, 3] = 500
    write_image(tmp_path / "a.nii", np.ones((4, 4, 4), np.float32), Grid.from_spacing((4, 4, 4)))
    write_image(tmp_path / "b.nii", np.ones((4, 4, 4), np.float32), Grid((4, 4, 4), far))
    with pytest.raises(GeometryError, match=r"b\.nii: grid .* does not overlap .*a\.nii"):
        read_case([tmp_path / "a.nii", tmp_path / "b.nii"])


def test_truncated_missing_and_foreign_files_are_one_sentence(scan: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(scan.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"cut\.nii\.gz: cannot be read, the file is truncated or corrupt"):
        read_volume(cut)
    (tmp_path / "text.nii.gz").write_text("not a volume")
    with pytest.raises(InputError, match=r"text\.nii\.gz: cannot be read"):
        read_volume(tmp_path / "text.nii.gz")
    with pytest.raises(InputError, match=r"none\.nii: is missing"):
        read_volume(tmp_path / "none.nii")
    (tmp_path / "x.doc").write_text("")
    with pytest.raises(InputError, match="not a volume that can be read"):
        read_volume(tmp_path / "x.doc")


def test_labels_must_be_whole_numbers(tmp_path: Path) -> None:
    write_image(tmp_path / "l.nii", np.full((3, 3, 3), 1.5, np.float32), Grid.from_spacing((3, 3, 3)))
    with pytest.raises(InputError, match=r"label value 1\.5 is not a whole number"):
        read_label(tmp_path / "l.nii")


def test_stems() -> None:
    assert [stem_of(n) for n in ("a/b.nii.gz", "c.v1.mha", "d.png", "e")] == ["b", "c.v1", "d", "e"]


def test_load_imaged_gives_channel_first_ras(scan: Path) -> None:
    image = load_transform(["image"])({"image": str(scan)})["image"]
    assert image.shape == (1, 12, 10, 8)
    assert np.array_equal(image.affine.numpy(), nib.load(scan).affine)


def test_no_default_reader_steps_in_for_a_refused_file(real_data: Data) -> None:
    path = real_data("nifti_cases") / "nan" / "nan.mha"
    with pytest.raises(InputError, match=r"nan\.mha: \d+ of \d+ voxels are NaN or infinite"):
        load_transform(["image"])({"image": str(path)})
