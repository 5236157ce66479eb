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
from medunet.data.transforms import LoadVolumed
from medunet.data.volume import (
    read_case,
    read_grid,
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
    image = LoadVolumed()({"image": str(scan)})["image"]
    assert image.shape == (1, 12, 10, 8)
    assert np.array_equal(image.affine.numpy(), nib.load(scan).affine)


def test_no_default_reader_steps_in_for_a_refused_file(real_data: Data) -> None:
    path = real_data("nifti_cases") / "nan" / "nan.mha"
    with pytest.raises(InputError, match=r"nan\.mha: \d+ of \d+ voxels are NaN or infinite"):
        LoadVolumed()({"image": str(path)})


def test_a_flipped_bit_in_a_compressed_file_is_noticed(tmp_path: Path) -> None:
    write_image(tmp_path / "x.nii.gz", np.zeros((40, 40, 40), np.float32), Grid.from_spacing((40, 40, 40)))
    content = bytearray((tmp_path / "x.nii.gz").read_bytes())
    content[-8] ^= 1  # the checksum (RFC 1952: CRC32 and length end a gzip file)
    (tmp_path / "x.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.nii\.gz: cannot be read, the file is truncated or corrupt \(CRC"):
        read_volume(tmp_path / "x.nii.gz")


@pytest.mark.parametrize("suffix", [".nii", ".mha", ".nrrd", ".png", ".tif"])
def test_truncated_files_of_every_kind_name_the_file(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    path = tmp_path / f"x{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(pixels if suffix in (".png", ".tif") else pixels[None]), str(path))
    path.write_bytes(path.read_bytes()[:-250])
    with pytest.raises(InputError) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"{path}: cannot be read")
    assert "copy it again from its source" in str(caught.value)
    assert "/ITK/" not in str(caught.value)


def test_an_impossible_affine_names_the_file(scan: Path, tmp_path: Path) -> None:
    content = bytearray(nib.load(scan).to_bytes())
    content[280:296] = bytes(16)  # srow_x
    (tmp_path / "s.nii").write_bytes(content)
    with pytest.raises(GeometryError, match=r"s\.nii: affine is singular"):
        read_volume(tmp_path / "s.nii")


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_other_lengths_than_millimetres_are_refused(tmp_path: Path, unit: str) -> None:
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([0.5, 0.5, 0.5, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    for read in (read_volume, read_header):
        with pytest.raises(GeometryError, match=rf"a\.nii: states its lengths in {unit} .*; correct its header"):
            read(tmp_path / "a.nii")


def test_more_voxels_than_nifti_counts_are_refused_before_they_are_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 40000 voxels along an axis, NIfTI holds 32767; write tiff \(--format"):
        write_label(tmp_path / "a.nii.gz", np.zeros((40000, 2, 1), np.uint8), Grid.from_spacing((40000, 2, 1)))


def test_half_of_a_pair_names_the_other_half(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / "p.hdr")
    (tmp_path / "p.img").unlink()
    with pytest.raises(InputError, match=r"p\.hdr: the file that belongs to it, .*p\.img, is missing"):
        read_volume(tmp_path / "p.hdr")


def test_other_byte_orders_become_native(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(voxels, np.eye(4), header), tmp_path / "b.nii")
    array = read_volume(tmp_path / "b.nii").array
    assert array.dtype == np.int16
    assert array.dtype.isnative
    assert np.array_equal(array[0], voxels)


@pytest.mark.parametrize(("slope", "dtype"), [(1.0, np.int16), (0.5, np.float32)])
def test_scaling_is_applied_and_integers_stay(tmp_path: Path, slope: float, dtype: type) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    image.header.set_slope_inter(slope, 0)
    content = bytearray(image.to_bytes())
    content[352:354] = np.int16(7).tobytes()
    (tmp_path / "s.nii").write_bytes(content)
    array = read_volume(tmp_path / "s.nii").array
    assert array.dtype == dtype
    assert array[0, 0, 0, 0] == 7 * (float(image.header["scl_slope"]) if slope != 1 else 1)


def vector_nifti(path: Path, array: np.ndarray) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(array.transpose(3, 2, 1, 0), isVector=True), str(path))


def colour_nifti(path: Path, array: np.ndarray) -> None:
    voxels = np.zeros(array.shape[1:], dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, channel in zip("RGB", array, strict=True):
        voxels[name] = channel
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def frames_nifti(path: Path, array: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(np.moveaxis(array, 0, -1), np.eye(4)), path)


def frames_nrrd(path: Path, array: np.ndarray) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(array.transpose(0, 3, 2, 1), isVector=False), str(path.with_suffix(".nrrd")))
    path.with_suffix(".nrrd").rename(path)


@pytest.mark.parametrize(
    ("write", "suffix"),
    [
        (vector_nifti, ".nii.gz"),
        (vector_nifti, ".mha"),
        (colour_nifti, ".nii"),
        (frames_nifti, ".nii"),
        (frames_nrrd, ".nrrd"),
    ],
)
def test_frames_vectors_and_colours_are_channels(
    tmp_path: Path, write: Callable[[Path, np.ndarray], None], suffix: str
) -> None:
    array = np.arange(3 * 4 * 5 * 6, dtype=np.uint8).reshape(3, 4, 5, 6)
    write(tmp_path / f"x{suffix}", array)
    assert np.array_equal(read_volume(tmp_path / f"x{suffix}").array, array)
    assert read_header(tmp_path / f"x{suffix}").channels == 3
    assert read_grid(tmp_path / f"x{suffix}").shape == (4, 5, 6)


def test_colour_of_16_bits_keeps_them(tmp_path: Path) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint16).reshape(4, 6, 3) * 900
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / "d.png"))
    volume = read_volume(tmp_path / "d.png")
    assert np.array_equal(volume.array[:, :, :, 0], pixels.transpose(2, 1, 0))


def test_alpha_that_varies_is_refused_and_constant_alpha_dropped(tmp_path: Path) -> None:
    pixels = np.full((4, 6, 4), 200, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "c.png")
    pixels[0, 0, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "v.png")
    assert read_volume(tmp_path / "c.png").array.shape[0] == 3
    with pytest.raises(InputError, match=r"v\.png: its transparency \(alpha\) varies"):
        read_volume(tmp_path / "v.png")


def test_large_label_values_do_not_wrap_and_are_refused_in_writing(tmp_path: Path) -> None:
    grid = Grid.from_spacing((2, 2, 2))
    write_image(tmp_path / "l.nii", np.full((2, 2, 2), 3e9, np.float32), grid)
    label = read_label(tmp_path / "l.nii").array[0]
    assert label.max() == 3_000_000_000
    with pytest.raises(InputError, match="label values 3000000000 to 3000000000 do not fit 32 bits"):
        write_label(tmp_path / "m.nii", label, grid)
    with pytest.raises(InputError, match=r"only NIfTI is written; give a name that ends in \.nii"):
        write_label(tmp_path / "m.mha", np.zeros((2, 2, 2), np.uint8), grid)
    assert [p.name for p in tmp_path.iterdir()] == ["l.nii"]


@pytest.mark.parametrize(
    ("values", "dtype"), [((0, 255), np.uint8), ((-1, 3), np.int16), ((0, 40_000), np.uint16), ((0, 70_000), np.int32)]
)
def test_labels_take_the_smallest_type(tmp_path: Path, values: tuple[int, int], dtype: type) -> None:
    write_label(tmp_path / "l.nii.gz", np.array(values).reshape(2, 1, 1), Grid.from_spacing((2, 1, 1)))
    assert nib.load(tmp_path / "l.nii.gz").get_data_dtype() == dtype


def test_nuclei_are_colour_pictures(real_data: Data) -> None:
    paths = sorted((real_data("nuclei") / "images").glob("*.png"))[:20]
    for path in paths:
        volume = read_volume(path)
        width, height = Image.open(path).size
        assert volume.array.shape == (3, width, height, 1)
