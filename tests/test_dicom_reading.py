"""Reading DICOM: voxel for voxel against other readers and NIfTI references, PET to SUV, what is set aside, sources."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.transforms import LoadImaged
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from medunet.data.dicom.results import require_writable
from medunet.data.dicom.scan import scan
from medunet.data.dicom.source import Source, is_dicom
from medunet.data.dicom.volumes import find_series, read_series
from medunet.data.grid import Grid
from medunet.data.reader import VolumeReader
from medunet.data.volume import read_case, read_header, read_volume, write_label
from medunet.errors import GeometryError, InputError, root_cause
from tests.dicom_phantom import AXIAL, make_series
from tests.test_dicom_geometry import edit

RealData = Callable[[str], Path]
LOADER = LoadImaged(["image"], reader=VolumeReader(), ensure_channel_first=True)
RNG = np.random.default_rng(0)
SARCOMA = [
    *(f"STS_{n:03d}/MR_T1" for n in (1, 5, 6, 11, 12, 13, 14, 23, 26, 28, 43, 49)),
    *(f"STS_{n:03d}/CT" for n in (1, 6, 43)), "STS_013/PET",
]  # fmt: skip


def on_grid(volume: np.ndarray, source: Grid, grid: Grid) -> np.ndarray:
    """Voxels of another array at the places of `grid`; they must coincide."""
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1).reshape(-1, 3)
    places = source.to_voxel(grid.to_world(voxels))
    rounded = np.rint(places).astype(int)
    assert np.abs(places - rounded).max() < 1e-2
    return volume[tuple(rounded.T)].reshape(grid.shape)


@pytest.mark.parametrize("name", SARCOMA)
def test_sarcoma_equals_its_nifti_reference_voxel_for_voxel(real_data: RealData, name: str) -> None:
    reference = read_volume(real_data("sarcoma_nifti") / f"{name}_image.nii.gz")
    volume = read_volume(real_data("sarcoma_dicom") / name / "image")
    assert volume.grid.shape == reference.grid.shape
    expected = on_grid(reference.array[0], reference.grid, volume.grid)
    assert np.allclose(volume.array[0], expected, rtol=1e-6, atol=0 if "PET" not in name else 1e-6)


@pytest.mark.parametrize(
    "name",
    ["j2k/001", "jpegls/001", "rle/001", "siemens_mr/001", "siemens_mr/001_implicit", "enhanced_siemens/001",
     "failing/slicecount/001"],
)  # fmt: skip
def test_real_cases_equal_their_ground_truth(real_data: RealData, name: str) -> None:
    folder = real_data("dicom_cases")
    reference = read_volume(folder / f"{name}_ground_truth.nii.gz")
    volume = read_volume(folder / name)
    assert np.array_equal(volume.array[0], on_grid(reference.array[0], reference.grid, volume.grid))


@pytest.mark.parametrize("name", ["ct_multiorgan/example_ct_dicom", "dicom_cases/ct_17slice", "dicom_cases/ct_3slice"])
def test_real_series_equal_what_simpleitk_reads(real_data: RealData, name: str) -> None:
    root, _, rest = name.partition("/")
    folder = str(real_data(root) / rest)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    theirs = Grid(image.GetSize(), np.diag([-1.0, -1, 1, 1]) @ affine)
    volume = read_volume(folder)
    assert np.array_equal(
        volume.array[0], on_grid(sitk.GetArrayFromImage(image).transpose(2, 1, 0), theirs, volume.grid)
    )


def array(planes: int = 4) -> np.ndarray:
    return RNG.integers(-1000, 3000, (planes, 6, 5)).astype(np.int16)


def voxels(folder: Path) -> np.ndarray:
    return read_series(folder).array[0].transpose(2, 1, 0)


def test_each_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    stored = array()
    for number, file in enumerate(make_series(tmp_path, stored)):
        edit(file, RescaleSlope=0.5 + number, RescaleIntercept=-number)
    slopes, intercepts = 0.5 + np.arange(4), -np.arange(4)
    expected = stored * slopes[:, None, None] + intercepts[:, None, None]
    assert read_series(tmp_path).array.dtype == np.float32
    assert np.allclose(voxels(tmp_path), expected)


@pytest.mark.parametrize(
    ("intercept", "low", "high"), [(-1024, 0, 4095), (0, -2000, 2000), (-1024, -32768, 32767), (1, 0, 9)]
)
def test_whole_numbers_stay_whole(tmp_path: Path, intercept: int, low: int, high: int) -> None:
    stored = np.random.default_rng(1).integers(low, high + 1, (3, 6, 5)).astype(np.int16)
    stored[0, 0, :2] = low, high
    make_series(tmp_path, stored, RescaleIntercept=intercept)
    volume = read_series(tmp_path)
    assert volume.array.dtype.kind == "i"
    assert np.array_equal(voxels(tmp_path), stored.astype(int) + intercept)


@pytest.mark.parametrize("unit", ["HU", "hu ", "US", "Hounsfield Units", None])
def test_ct_in_hounsfield_units_or_of_no_stated_unit_is_read(tmp_path: Path, unit: str | None) -> None:
    make_series(tmp_path, array(), RescaleType=unit)
    assert scan(tmp_path).series[0].verdict.state == "accepted"


def test_unsigned_16_bit_values_are_not_negative(tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 65536, (3, 6, 5)).astype(np.uint16)
    make_series(tmp_path, stored.view(np.int16), PixelRepresentation=0)
    assert np.array_equal(voxels(tmp_path), stored)


def test_an_empty_high_bit_is_an_absent_one(tmp_path: Path) -> None:
    stored = np.abs(array()) % 4096
    make_series(tmp_path, stored, PixelRepresentation=0, BitsStored=12, HighBit=None)
    for file in sorted(tmp_path.iterdir()):
        edit(file, HighBit=None)
    assert np.array_equal(voxels(tmp_path), stored)


@pytest.mark.parametrize("signed", [0, 1])
def test_only_the_stored_bits_are_the_value(tmp_path: Path, signed: int) -> None:
    """Old scanners keep an overlay in the bits above; a signed value of 12 bits has its sign in bit 11."""
    values = np.random.default_rng(1).integers(-2048 if signed else 0, 2048, (3, 6, 5))
    stored = (values & 0x0FFF) | 0x3000
    make_series(tmp_path, stored.astype(np.int16), PixelRepresentation=signed, BitsStored=12, HighBit=11)
    assert np.array_equal(voxels(tmp_path), values)


def test_monochrome1_is_turned_where_values_have_no_unit(tmp_path: Path) -> None:
    stored = np.abs(array()) % 4096
    options = {"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": 0, "BitsStored": 12, "HighBit": 11}
    make_series(tmp_path / "mr", stored, modality="MR", **options)
    make_series(tmp_path / "ct", stored, **options)
    assert np.array_equal(voxels(tmp_path / "mr"), 4095 - stored)
    assert "stored inverted (MONOCHROME1): turned" in scan(tmp_path / "mr").series[0].verdict.reasons[0]
    assert np.array_equal(voxels(tmp_path / "ct"), stored)
    assert scan(tmp_path / "ct").series[0].verdict.state == "accepted"


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings(tmp_path: Path, syntax: str) -> None:
    stored = array()
    for file in make_series(tmp_path, stored):
        dataset = pydicom.dcmread(file)
        big = syntax == ExplicitVRBigEndian
        if big:
            dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(file, dataset, little_endian=not big, implicit_vr=False)
    assert np.array_equal(voxels(tmp_path), stored)


def gdcm_lossless(file: Path) -> None:
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(file))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1])
def test_lossless_compression_gives_the_same_voxels(tmp_path: Path, syntax: str) -> None:
    stored = RNG.integers(-1000, 3000, (3, 64, 64)).astype(np.int16)
    for file in make_series(tmp_path, stored):
        if syntax == JPEGLosslessSV1:
            gdcm_lossless(file)
            continue
        dataset = pydicom.dcmread(file)
        dataset.compress(syntax, encoding_plugin="pydicom" if syntax == RLELossless else "")
        dataset.save_as(file)
    assert pydicom.dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(voxels(tmp_path), stored)


def test_lossy_compression_is_told(tmp_path: Path) -> None:
    make_series(tmp_path, array(), LossyImageCompression="01")
    assert "compressed with loss" in scan(tmp_path).series[0].verdict.notes[0]


def without_preamble(folder: Path) -> Path:
    for number, file in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(file)
        del dataset.file_meta
        pydicom.dcmwrite(folder / f"{number}", dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
        file.unlink()
    return folder


def as_zip(folder: Path) -> Path:
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.iterdir()):
            file.write(path, f"some/folder/{path.stem}")
    return archive


def as_dicomdir(folder: Path) -> Path:
    media = FileSet()
    for path in folder.iterdir():
        media.add(path)
    media.write(folder.parent / "media")
    return folder.parent / "media" / "DICOMDIR"


@pytest.mark.parametrize("place", [without_preamble, as_zip, as_dicomdir, lambda folder: as_dicomdir(folder).parent])
def test_wherever_the_files_are(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    stored = array()
    make_series(tmp_path / "series", stored)
    source = place(tmp_path / "series")
    assert is_dicom(source)
    assert np.array_equal(voxels(source), stored)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"modality": "CT", "RescaleIntercept": None}, "has no RescaleIntercept, so that its values have no unit"),
        ({"modality": "CT", "RescaleSlope": None}, "has no RescaleSlope"),
        ({"modality": "CT", "RescaleType": "MGML"}, "RescaleType is MGML, not HU; give the series of CT numbers"),
        ({"modality": "CT", "RescaleType": "Z_EFF"}, "RescaleType is Z_EFF, not HU"),
        ({"modality": "CT", "RescaleType": "HU_MOD"}, "RescaleType is HU_MOD, not HU"),
        ({"modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "is a Siemens mosaic"),
    ],
)
@pytest.mark.parametrize("images", [1, 4])
def test_images_that_do_not_say_what_they_show_are_refused(
    tmp_path: Path, images: int, header: dict[str, object], words: str
) -> None:
    make_series(tmp_path, array(images), **header)  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match=words):
        read_series(tmp_path)


@pytest.mark.parametrize("place", [lambda folder: folder, as_zip])
def test_another_patient_under_the_same_names_is_read_anew(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    """As a folder of incoming series that is emptied and filled, by copies that keep the times of the files."""
    found = []
    for patient in ("A1", "B2"):
        make_series(tmp_path / "in", np.zeros((4, 6, 5)), PatientID=patient)
        source = place(tmp_path / "in")
        for file in (source, *(tmp_path / "in").rglob("*")):
            os.utime(file, (1e9, 1e9))
        found.append(scan(source).series[0].patient)
        shutil.rmtree(tmp_path / "in")
    assert found == ["A1", "B2"]


def test_a_file_that_joins_the_series_of_a_dicomdir_is_seen(tmp_path: Path) -> None:
    make_series(tmp_path / "in", array())
    directory = as_dicomdir(tmp_path / "in")
    assert len(scan(directory).series) == 1
    make_series(directory.parent / "more", array())
    assert len(scan(directory).series) == 2


def test_what_a_dicomdir_lists_and_is_not_there_is_told(tmp_path: Path) -> None:
    make_series(tmp_path / "series", array())
    directory = as_dicomdir(tmp_path / "series")
    files = sorted(p for p in directory.parent.rglob("*") if p.is_file() and p != directory)
    files[-1].unlink()
    found = scan(directory)
    assert [a.reason for a in found.aside] == ["is listed in DICOMDIR and missing"]
    assert "1 file beside its images may be of it and cannot be used" in found.series[0].verdict.refusals[0]


@pytest.mark.parametrize("content", [b"", b"not an image"])
@pytest.mark.parametrize("names", ["1.2.840.99.{}", "IM.{:04}"])
def test_a_damaged_last_slice_is_noticed_whatever_the_files_are_called(
    tmp_path: Path, names: str, content: bytes
) -> None:
    files = [file.rename(tmp_path / names.format(n)) for n, file in enumerate(make_series(tmp_path, array()))]
    files[-1].write_bytes(content)
    with pytest.raises(GeometryError, match="1 file beside its images may be of it and cannot be used"):
        read_series(tmp_path)


def test_what_is_no_volume_is_set_aside_by_name(tmp_path: Path) -> None:
    make_series(tmp_path / "a", array())
    make_series(tmp_path / "b", array(1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    make_series(tmp_path / "c", array(1), Modality="SR", Rows=None)
    make_series(tmp_path / "d", array(1), Modality="OT", ImagePositionPatient=None)
    (tmp_path / "notes.dcm").write_text("not an image")
    (tmp_path / "empty").write_bytes(b"")
    found = scan(tmp_path)
    reasons = sorted(item.reason for item in found.aside)
    assert len(found.series) == 1
    assert reasons == ["CT localiser", "CT without patient geometry", "CT: not an image", "is empty", "is not DICOM"]


def enhanced(path: Path, stored: np.ndarray, order: list[int]) -> Path:
    """An enhanced MR object whose frames stand in `order`, geometry per frame, spacing and direction shared."""
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    d.SOPClassUID, d.SOPInstanceUID, d.Modality = EnhancedMRImageStorage, generate_uid(), "MR"
    d.file_meta.MediaStorageSOPClassUID, d.file_meta.MediaStorageSOPInstanceUID = d.SOPClassUID, d.SOPInstanceUID
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = generate_uid(), generate_uid(), generate_uid()
    d.PatientID, d.NumberOfFrames = "E1", len(order)
    d.Rows, d.Columns = stored.shape[1:]
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 2.5
    plane.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    d.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for number in order:
        group, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-20.0, -30.0, 100 + 2.5 * number]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = number + 1, 0, "US"
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([values])
        groups.append(group)
    d.PerFrameFunctionalGroupsSequence = Sequence(groups)
    d.PixelData = stored[order].astype("<i2").tobytes()
    pydicom.dcmwrite(path, d, enforce_file_format=True)
    return path


@pytest.mark.parametrize(("lost", "total"), [(1, 3), (2, 3), (3, 3), (1, None), (2, None), (None, 3), (None, None)])
def test_an_object_split_into_parts_is_read_when_all_are_there(
    tmp_path: Path, lost: int | None, total: int | None
) -> None:
    """A concatenation (PS3.3 C.7.6.16.2.2.4): the frames of one object in several files."""
    stored = np.abs(array(6)) % 100
    whole = pydicom.dcmread(enhanced(tmp_path / "whole", stored, list(range(6))))
    (tmp_path / "whole").unlink()
    groups, uid = whole.PerFrameFunctionalGroupsSequence, generate_uid()
    for part in range(3):
        own = slice(2 * part, 2 * part + 2)
        whole.PerFrameFunctionalGroupsSequence, whole.NumberOfFrames = groups[own], 2
        whole.PixelData = stored[own].astype("<i2").tobytes()
        whole.ConcatenationUID, whole.InConcatenationNumber = uid, part + 1
        whole.InConcatenationTotalNumber = total
        whole.ConcatenationFrameOffsetNumber = 2 * part
        whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if part + 1 != lost:
            whole.save_as(tmp_path / f"{part}.dcm")
    if lost is None:
        assert np.array_equal(voxels(tmp_path), stored * np.arange(1, 7)[:, None, None])
        with pytest.raises(InputError, match="is spread over 3 multi-frame objects; write NIfTI"):
            require_writable(find_series(tmp_path), "rtstruct")
        return
    with pytest.raises(GeometryError, match=f"part {lost} of 3 of an object in several files is missing; add it"):
        read_series(tmp_path)


def test_a_folder_a_multi_frame_file_and_nifti_have_one_grid(tmp_path: Path) -> None:
    stored = np.abs(array(5)) % 100
    make_series(tmp_path / "classic", stored)
    path = enhanced(tmp_path / "enhanced", stored, [3, 0, 4, 1, 2])
    classic, multi = read_volume(tmp_path / "classic"), read_volume(path)
    write_label(tmp_path / "same.nii.gz", classic.array[0], classic.grid)
    nifti = read_volume(tmp_path / "same.nii.gz")
    assert np.array_equal(multi.array[0], classic.array[0] * np.arange(1, 6))
    assert multi.grid.agrees_with(classic.grid, 1e-6)
    assert nifti.grid.agrees_with(classic.grid, 1e-6)
    loaded = [LOADER({"image": str(p)})["image"] for p in (tmp_path / "classic", path)]
    for image in loaded:
        assert np.allclose(image.affine.numpy(), classic.grid.affine)
    assert read_header(path).grid == multi.grid


def test_a_refusal_reaches_the_user_through_loadimaged(tmp_path: Path) -> None:
    make_series(tmp_path, array(6))[3].unlink()
    with pytest.raises(Exception, match=r".") as caught:
        LOADER({"image": str(tmp_path)})
    cause = root_cause(caught.value)
    assert isinstance(cause, GeometryError)
    assert "is refused: 1 slice missing" in str(cause)


def test_a_folder_without_images_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty; give a DICOM series"):
        read_volume(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds no DICOM image series \(.*notes.txt: is not DICOM\)"):
        read_volume(tmp_path)
    with pytest.raises(InputError, match="is missing"):
        scan(tmp_path / "nowhere")


def test_channels_of_a_case_need_one_frame_of_reference(tmp_path: Path) -> None:
    make_series(tmp_path / "a", array(), FrameOfReferenceUID="1.2.3")
    make_series(tmp_path / "b", array(), FrameOfReferenceUID="1.2.3")
    make_series(tmp_path / "c", array(), FrameOfReferenceUID="1.2.4")
    assert read_case([tmp_path / "a", tmp_path / "b"]).array.shape == (2, 5, 6, 4)
    with pytest.raises(GeometryError, match=r"frame of reference 1\.2\.4 differs from 1\.2\.3"):
        read_case([tmp_path / "a", tmp_path / "c"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"series": "1.2", "part": "image type ORIGINAL//M/./"},
        {"on": "../a b/x#series=1.2&part=echo 2", "GTV/1 & #2=x": "1", "ü": "3"},
    ],
)
def test_sources_survive_their_text(options: dict[str, str]) -> None:
    source = Source(Path("folder/file.dcm"), options)
    assert Source.parse(str(source)) == source
    assert Source.parse(str(Path("/data") / str(source))).options == options, "as a path below a dataset's root"


def test_a_hash_in_a_real_name_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "a#b=c").mkdir()
    assert Source.parse(tmp_path / "a#b=c").path.name == "a#b=c"


def test_a_hash_in_a_folder_does_not_lead_to_another_patient(tmp_path: Path) -> None:
    make_series(tmp_path / "P", np.zeros((4, 6, 5)))
    for value in (1, 2):
        make_series(tmp_path / "P#1" / "CT" / str(value), np.full((4, 6, 5), value), SeriesInstanceUID=f"1.2.{value}")
    for value in (1, 2):
        source = Source(tmp_path / "P#1" / "CT", {"series": f"1.2.{value}"})
        assert Source.parse(str(source)) == source
        assert (read_series(str(source)).array == value).all()
    by_hand = Source.parse(f"{tmp_path / 'P'}#series=1&part=echo #2")
    assert (by_hand.path, by_hand.options["part"]) == (tmp_path / "P", "echo #2")


def test_a_source_may_be_longer_than_a_file_name(tmp_path: Path) -> None:
    source = Source(tmp_path / "file.dcm", {f"Organ number {number}": str(number) for number in range(1, 40)})
    assert Source.parse(str(source)) == source


PET = {
    "Units": "BQML", "DecayCorrection": "START", "CorrectedImage": ["ATTN", "DECY", "SCAT"], "PatientWeight": 70.0,
    "SeriesDate": "20240102", "SeriesTime": "120000", "AcquisitionDate": "20240102", "AcquisitionTime": "120000",
}  # fmt: skip
DOSE = {"RadionuclideTotalDose": 3.7e8, "RadionuclideHalfLife": 6586.2, "RadiopharmaceuticalStartTime": "110000"}


def pet(folder: Path, dose: dict[str, object] | None = None, **changes: object) -> Path:
    item = Dataset()
    for keyword, value in {**DOSE, **(dose or {})}.items():
        if value is not None:
            setattr(item, keyword, value)
    values = {**PET, "RadiopharmaceuticalInformationSequence": Sequence([item]), **changes}
    make_series(folder, np.full((3, 4, 4), 1000, np.int16), Modality="PT", **values)
    return folder


DECAYED = 70_000 / (3.7e8 * 2 ** (-3600 / 6586.2))


@pytest.mark.parametrize(
    ("changes", "dose", "factor", "words"),
    [
        ({}, {}, DECAYED, "decayed 60.0 min until the series start"),
        ({"DecayCorrection": "ADMIN"}, {}, 70_000 / 3.7e8, "corrected to the injection"),
        ({"Units": "GML"}, {}, 1.0, "SUVbw as stored"),
        ({"SeriesTime": "003000", "AcquisitionTime": "003000"}, {"RadiopharmaceuticalStartTime": "233000"}, DECAYED,
         "decayed 60.0 min"),
        ({}, {"RadiopharmaceuticalStartDateTime": "20240102110000.00+0100"}, DECAYED, "decayed 60.0 min"),
        ({"TimezoneOffsetFromUTC": "+0200"}, {"RadiopharmaceuticalStartDateTime": "20240102090000+0000"}, DECAYED,
         "decayed 60.0 min"),
    ],
)  # fmt: skip
def test_pet_becomes_suv(
    tmp_path: Path, changes: dict[str, object], dose: dict[str, object], factor: float, words: str
) -> None:
    volume = read_series(pet(tmp_path, dose, **changes))
    assert np.allclose(volume.array, 1000 * factor, rtol=1e-5)
    assert volume.verdict is not None
    assert words in volume.verdict["notes"][0]


def private(folder: Path, creator: str, group: int, element: int, vr: str, value: object) -> None:
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.private_block(group, creator, create=True).add_new(element, vr, value)
        dataset.save_as(file)


def test_philips_counts_need_the_philips_factor(tmp_path: Path) -> None:
    pet(tmp_path, Units="CNTS")
    assert "Philips factors (7053,1000) and (7053,1009) are missing" in scan(tmp_path).series[0].verdict.reasons[0]
    private(tmp_path, "Philips PET Private Group", 0x7053, 0x00, "DS", "0.002")
    assert np.allclose(read_series(tmp_path).array, 2.0)


def test_ge_keeps_the_scan_start_when_a_series_was_processed_again(tmp_path: Path) -> None:
    pet(tmp_path, SeriesTime="150000")
    assert "scan start unknown" in scan(tmp_path).series[0].verdict.reasons[0]
    private(tmp_path, "GEMS_PETD_01", 0x0009, 0x0D, "DT", "20240102120000.00")
    assert np.allclose(read_series(tmp_path).array, 1000 * DECAYED, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "dose", "words"),
    [
        ({"PatientWeight": None}, {}, "PatientWeight is missing"),
        ({"PatientWeight": 0}, {}, "PatientWeight is 0 kg"),
        ({"CorrectedImage": ["DECY"]}, {}, "CorrectedImage is DECY; SUV needs ATTN and DECY"),
        ({"Units": "PROPCPS"}, {}, "its Units are PROPCPS"),
        ({"Units": "GML", "SUVType": "LBM"}, {}, "SUV by LBM, not by body weight"),
        ({"DecayCorrection": "NONE"}, {}, "DecayCorrection is NONE"),
        ({}, {"RadionuclideTotalDose": 370.0}, "looks like MBq"),
        ({}, {"RadionuclideTotalDose": None}, "RadionuclideTotalDose is missing"),
        ({}, {"RadionuclideHalfLife": None}, "RadionuclideHalfLife is missing"),
        ({}, {"RadiopharmaceuticalStartTime": None}, "the time of injection (RadiopharmaceuticalStartTime) is missing"),
        ({"AcquisitionTime": None}, {}, "AcquisitionTime is missing"),
        ({}, {"RadiopharmaceuticalStartDateTime": "20240102090000+0000"}, "with the offset +0000 from UTC"),
        ({"RadiopharmaceuticalInformationSequence": Sequence()}, {}, "has 0 items, one is needed"),
    ],
)
def test_pet_that_cannot_become_suv_is_refused(
    tmp_path: Path, changes: dict[str, object], dose: dict[str, object], words: str
) -> None:
    verdict = scan(pet(tmp_path, dose, **changes)).series[0].verdict
    assert verdict.state == "refused"
    assert words in verdict.reasons[0]
    with pytest.raises(GeometryError, match="PET without SUV"):
        read_series(tmp_path)
