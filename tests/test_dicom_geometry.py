"""Geometry verdicts: real cases, and stacks of any direction whose every voxel lies where its pixel lay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medunet.data.dicom.geometry import Stack, lay_out, missing_slices
from medunet.data.dicom.scan import Series, scan
from medunet.data.dicom.volumes import read_series, read_stack, to_planes
from medunet.errors import GeometryError, InputError
from tests.dicom_phantom import AXIAL, CORONAL, SAGITTAL, make_series

RealData = Callable[[str], Path]
FULL = ("dicom_cases", "ct_multiorgan")
VERDICTS = {
    "dicom_cases/ct_17slice": [("accepted", "")],
    "dicom_cases/ct_3slice": [("accepted", "")],
    "dicom_cases/enhanced_siemens/001": [("accepted", "")],
    "dicom_cases/failing/gantrytilting/001": [("repaired", "tilted against their stacking by 14.0 degrees")],
    "dicom_cases/failing/notavolume/001": [("refused", "all 4 images lie at one place")],
    "dicom_cases/failing/slicecount/001": [("accepted", "")],
    "dicom_cases/failing/sliceincrement/001": [("refused", "1 slice missing in 1 gap (first: 10 mm")],
    "dicom_cases/failing/sliceincrement/002": [("refused", "1 slice missing in 1 gap (first: 1.499 mm")],
    "dicom_cases/failing/sliceorientation/001": [("accepted", ""), ("accepted", "")],
    "dicom_cases/ge_head_tilt_mixed": [("repaired", "slice distances vary from 1.081 to 6.999 mm")],
    "dicom_cases/j2k/001": [("accepted", "")],
    "dicom_cases/jpegls/001": [("accepted", "")],
    "dicom_cases/rle/001": [("accepted", "")],
    "dicom_cases/siemens_mr/001": [("accepted", "")],
    "dicom_cases/siemens_mr/001_implicit": [("accepted", "")],
    "ct_multiorgan/example_ct_dicom": [("accepted", "")],
}


@pytest.mark.parametrize("folder", VERDICTS)
def test_verdicts_on_real_cases(real_data: RealData, folder: str) -> None:
    name, _, rest = folder.partition("/")
    found = scan(real_data(name) / rest).series
    assert [series.verdict.state for series in found] == [state for state, _ in VERDICTS[folder]]
    for series, (_, words) in zip(found, VERDICTS[folder], strict=True):
        assert words in "; ".join(series.verdict.reasons)


def test_every_sarcoma_series_is_accepted(real_data: RealData) -> None:
    found = scan(real_data("sarcoma_dicom"))
    assert len(found.series) == 17
    assert len(found.labels) == 17
    assert {series.verdict.state for series in found.series} == {"accepted"}
    assert not found.aside


def test_mixed_orientations_are_two_volumes(real_data: RealData) -> None:
    found = scan(real_data("dicom_cases") / "failing/sliceorientation/001").series
    assert [series.part.split()[0] for series in found] == ["sagittal", "axial"]
    assert len({series.uid for series in found}) == 1


def only(folder: Path, **options: bool) -> Series:
    (series,) = scan(folder, **options).series
    return series


def random_plane(seed: int) -> tuple[float, ...]:
    matrix = Rotation.random(random_state=seed).as_matrix()
    return (*matrix[0], *matrix[1])


def edit(file: Path, **values: object) -> None:
    dataset = pydicom.dcmread(file)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file)


def world_of(file: Path) -> np.ndarray:
    """RAS mm of the centre of every pixel (rows, columns, 3), straight from the header's equation (C.7.6.2.1-1)."""
    d = pydicom.dcmread(file, stop_before_pixels=True)
    origin, orientation = np.array(d.ImagePositionPatient, float), np.array(d.ImageOrientationPatient, float)
    rows, columns = np.arange(d.Rows)[:, None, None], np.arange(d.Columns)[None, :, None]
    lps = (
        origin
        + orientation[:3] * float(d.PixelSpacing[1]) * columns
        + orientation[3:] * float(d.PixelSpacing[0]) * rows
    )
    return lps * (-1, -1, 1)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), planes=st.integers(2, 7), order=st.randoms())
def test_every_voxel_lies_where_its_pixel_lay(
    tmp_path_factory: pytest.TempPathFactory, seed: int, planes: int, order: st.DataObject
) -> None:
    """Any direction, file names and InstanceNumbers in any order: the affine takes each voxel to its pixel's place."""
    folder = tmp_path_factory.mktemp("stack")
    array = np.random.default_rng(seed).integers(-1000, 3000, (planes, 5, 4)).astype(np.int16)
    files = make_series(folder, array, orientation=random_plane(seed))
    numbers = list(range(planes))
    order.shuffle(numbers)  # type: ignore[attr-defined]
    for file, number in zip(files, numbers, strict=True):
        edit(file, InstanceNumber=number)
        file.rename(folder / f"x{number}")
    volume = read_series(folder)
    assert np.array_equal(volume.array[0], array.transpose(2, 1, 0))
    for z, number in enumerate(numbers):
        voxels = np.stack(np.meshgrid(np.arange(4), np.arange(5), [z], indexing="ij"), -1).reshape(-1, 3)
        expected = world_of(folder / f"x{number}").transpose(1, 0, 2).reshape(-1, 3)
        assert np.allclose(volume.grid.to_world(voxels), expected, atol=1e-3)


def linear_series(folder: Path, gradient: np.ndarray, **options: object) -> tuple[list[Path], Path]:
    """A series whose value is a linear function of world coordinates: linear interpolation gives it back exactly."""
    planes = len(options.get("positions", range(6)))  # type: ignore[arg-type]
    files = make_series(folder, np.zeros((planes, 20, 16), np.int16), **options)  # type: ignore[arg-type]
    for file in files:
        dataset = pydicom.dcmread(file)
        values = (world_of(file) @ gradient) * 16
        dataset.PixelData = np.round(values).astype("<i2").tobytes()
        dataset.RescaleSlope = 1 / 16
        dataset.save_as(file)
    return files, folder


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    tilt=st.sampled_from([0.0, -22.0, 9.0, 30.0]),
    positions=st.sampled_from([[0, 2, 4, 6, 8, 10], [0, 2, 4, 6, 9, 12, 15], [0, 3, 6, 6.9, 9.9, 12.9, 15.9]]),
)
def test_tilt_and_uneven_slices_are_resampled_to_where_they_lay(
    tmp_path_factory: pytest.TempPathFactory, seed: int, tilt: float, positions: list[float]
) -> None:
    gradient = np.random.default_rng(seed).uniform(-3, 3, 3)
    files, folder = linear_series(
        tmp_path_factory.mktemp("tilted"), gradient, orientation=random_plane(seed), tilt=tilt, positions=positions,
        spacing=(2.0, 0.8, 0.7),
    )  # fmt: skip
    series = only(folder)
    uneven = len(set(np.round(np.diff(positions), 3))) > 1
    assert series.verdict.state == ("repaired" if tilt or uneven else "accepted")
    assert any(
        f"tilted against their stacking by {abs(tilt):.1f} degrees" in r for r in series.verdict.repairs
    ) == bool(tilt)
    assert any("slice distances vary" in reason for reason in series.verdict.repairs) == uneven
    volume = read_stack(series)
    axes = volume.grid.affine[:3, :3] / np.array(volume.grid.spacing)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in volume.grid.shape), indexing="ij"), -1).reshape(-1, 3)
    expected = (volume.grid.to_world(voxels) @ gradient).reshape(volume.grid.shape)
    inside = volume.array[0] > volume.array.min()
    assert inside.mean() > 0.3
    hull = inside.copy()
    for axis in (0, 1):  # voxels at the rim of a plane mix it with what is outside
        hull &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
    hull[[0, -1]] = hull[:, [0, -1]] = False
    rim = np.abs(volume.array[0] - expected)[hull & _covered(series, volume.grid.shape)]
    assert rim.size
    assert rim.max() <= 1 / 16 + 1e-3
    assert len(files) == len(series.layout.order)


def _covered(series: Series, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels that lie at least two pixels inside every plane."""
    grid = series.layout.grid
    assert grid is not None
    starts = grid.to_voxel(series.layout.planes[:, :3, 3])[:, :2]
    covered = np.zeros(shape, bool)
    low, high = np.ceil(starts.max(0)).astype(int) + 2, np.floor(starts.min(0) + np.array((14, 18))).astype(int)
    covered[low[0] : high[0], low[1] : high[1]] = True
    return covered


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, random_plane(3)])
@pytest.mark.parametrize(
    ("tilt", "positions"), [(0, None), (12.0, None), (0, [0, 2, 4, 7, 10, 13]), (-20, [0, 2, 4, 7, 10, 13])]
)
def test_labels_go_back_to_the_planes_they_came_from(
    tmp_path: Path, orientation: tuple[float, ...], tilt: float, positions: list[float] | None
) -> None:
    """A label is the class of the place: on each image of the series it must be the class of its pixels' place."""
    make_series(tmp_path, np.zeros((6, 20, 16), np.int16), (2.0, 0.8, 0.8), orientation, tilt=tilt, positions=positions)
    series = only(tmp_path)
    grid = series.layout.grid
    assert grid is not None
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1).reshape(-1, 3)
    numbers = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    planes = to_planes(numbers, grid, series)
    assert planes.shape == (6, 20, 16)
    for plane, frame in zip(planes, series.ordered(), strict=True):
        place = grid.to_world(voxels[plane.reshape(-1)]).reshape(20, 16, 3)
        distance = np.linalg.norm(place - world_of(frame.file.location.path), axis=-1)
        assert distance.max() <= np.linalg.norm([0.4, 0.4, grid.spacing[2] / 2]) + 1e-3
        if not series.layout.resampled:
            assert distance.max() < 1e-3


def test_a_wrong_grid_is_refused(tmp_path: Path) -> None:
    from medunet.data.grid import Grid

    make_series(tmp_path, np.zeros((3, 6, 5), np.int16))
    with pytest.raises(GeometryError, match=r"label grid .* differs from series"):
        to_planes(np.zeros((5, 6, 3), np.int16), Grid.from_spacing((5, 6, 3)), only(tmp_path))


def test_a_missing_slice_is_refused_and_repaired_when_allowed(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.int16)[:, None, None] * np.ones((1, 5, 4), np.int16) * 10
    files = make_series(tmp_path, array)
    files[3].unlink()
    series = only(tmp_path)
    assert series.verdict.refusals[0] == (
        "1 slice missing in 1 gap (first: 5 mm from 105 to 110, elsewhere 2.5 mm); "
        "add the missing slices or allow gaps (--allow-gaps)"
    )
    with pytest.raises(GeometryError, match="is refused: 1 slice missing"):
        read_series(tmp_path)
    repaired = only(tmp_path, allow_gaps=True)
    assert repaired.verdict.as_json()["verdict"] == "repaired"
    assert repaired.verdict.reasons[0].endswith("interpolated")
    volume = read_stack(repaired)
    assert volume.grid.shape == (4, 5, 6)
    assert np.allclose(volume.array[0, 0, 0], [0, 10, 20, 30, 40, 50])
    assert np.array_equal(read_series(f"{tmp_path}#allow_gaps=1").array, volume.array)


@pytest.mark.parametrize(
    ("gaps", "thickness", "expected"),
    [
        ([5, 5, 10], None, [False, False, True]),
        ([5, 5, 5, 10, 10, 10], [5, 5, 5, 5, 10, 10, 10], [False] * 6),
        ([5, 5, 5, 10, 10, 10], [5] * 7, [False, False, False, True, True, True]),
        ([4, 4, 1, 7, 7], [4, 4, 4, 7, 7, 7], [False] * 5),
        ([10, 10, 10], [5] * 4, [False] * 3),
        ([5, 10], None, [False, True]),
        ([5, 10, 15], [5] * 4, [False, True, True]),
        ([5, 6.1, 7.3], None, [False] * 3),
        ([20], [5, 5], [True]),
        ([20], None, [False]),
        ([3, 3, 3, 9, 3, 3], None, [False, False, False, True, False, False]),
    ],
)
def test_what_counts_as_missing(gaps: list[float], thickness: list[float] | None, expected: list[bool]) -> None:
    known = np.full(len(gaps) + 1, np.nan) if thickness is None else np.array(thickness, float)
    assert missing_slices(np.array(gaps, float), known).tolist() == expected


def test_positions_rounded_by_the_scanner_are_accepted_with_a_note(tmp_path: Path) -> None:
    make_series(tmp_path, np.zeros((9, 4, 4), np.int16), positions=np.round(np.arange(9) * 0.625, 1))
    verdict = only(tmp_path).verdict
    assert verdict.state == "accepted"
    assert "off an even spacing" in verdict.notes[0]


def test_one_image_is_a_volume_when_its_thickness_is_known(tmp_path: Path) -> None:
    make_series(tmp_path / "a", np.zeros((1, 4, 4), np.int16))
    assert only(tmp_path / "a").verdict.notes[0].startswith("a single image; its thickness of 2.5 mm")
    make_series(tmp_path / "b", np.zeros((1, 4, 4), np.int16), SliceThickness=None)
    assert "a single image without SliceThickness" in only(tmp_path / "b").verdict.reasons[0]


def test_duplicates_are_left_out_when_they_are_equal(tmp_path: Path) -> None:
    files = make_series(tmp_path, np.arange(5 * 20, dtype=np.int16).reshape(5, 5, 4))
    (tmp_path / "copy.dcm").write_bytes(files[2].read_bytes())
    series = only(tmp_path)
    assert series.verdict.reasons == ("1 duplicate image left out",)
    assert read_stack(series).grid.shape == (4, 5, 5)
    edit(tmp_path / "copy.dcm", PixelData=bytes(40))
    assert only(tmp_path).verdict.state == "refused"
    assert "several images that differ and that no header tells apart" in only(tmp_path).verdict.reasons[0]


def two_stacks(folder: Path, first: dict[str, object], second: dict[str, object], **common: object) -> list[Series]:
    """Two stacks of different pixels under one SeriesInstanceUID."""
    uids = {"SeriesInstanceUID": "1.2.3.4.5", "FrameOfReferenceUID": "1.2.3.4.6", "StudyInstanceUID": "1.2.3.4.7"}
    for number, values in enumerate((first, second)):
        array = np.full((4, 5, 6), number, np.int16)
        make_series(folder / str(number), array, modality="MR", **{**uids, **common, **values})  # type: ignore[arg-type]
    return list(scan(folder).series)


@pytest.mark.parametrize(
    ("first", "second", "parts"),
    [
        ({"EchoNumbers": 1}, {"EchoNumbers": 2}, ["echo 1", "echo 2"]),
        ({"TemporalPositionIdentifier": 9}, {"TemporalPositionIdentifier": 10},
         ["temporal position 9", "temporal position 10"]),
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}, ["acquisition 1", "acquisition 2"]),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
         ["image type ORIGINAL/PRIMARY/M", "image type ORIGINAL/PRIMARY/P"]),
        ({"orientation": AXIAL}, {"orientation": CORONAL}, ["axial 6 x 5", "coronal 6 x 5"]),
        ({"FrameOfReferenceUID": "1.9"}, {"FrameOfReferenceUID": "1.8"},
         ["axial 6 x 5, stack 1", "axial 6 x 5, stack 2"]),
    ],
)  # fmt: skip
def test_a_series_of_several_stacks_is_split(
    tmp_path: Path, first: dict[str, object], second: dict[str, object], parts: list[str]
) -> None:
    found = two_stacks(tmp_path, first, second)
    assert [series.part for series in found] == parts
    assert [series.verdict.state for series in found] == ["accepted", "accepted"]
    assert [int(read_stack(series).array.max()) for series in found] == [0, 1]
    assert int(read_series(f"{tmp_path}#series=1.2.3.4.5&part={parts[1]}").array.max()) == 1
    with pytest.raises(InputError, match=r"holds 2 stacks of images; choose one: .*#series=1.2.3.4.5&part="):
        read_series(tmp_path)


def test_interleaved_acquisitions_are_told_apart(tmp_path: Path) -> None:
    found = two_stacks(tmp_path, {"AcquisitionNumber": 1}, {"AcquisitionNumber": 2, "origin": (-20.0, -30.0, 101.0)})
    assert [series.part for series in found] == ["acquisition 1", "acquisition 2"]


HALF_WAY = (-20.0, -30.0, 101.25)
"""Where a stack of 2.5 mm begins that lies half a slice beyond another one."""


@pytest.mark.parametrize(
    ("first", "second", "parts"),
    [
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}, ["acquisition 1", "acquisition 2"]),
        ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2},
         ["temporal position 1", "temporal position 2"]),
        ({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": ["Br59f", "3"]}, ["kernel B30f", "kernel Br59f/3"]),
        ({"AcquisitionTime": "101112"}, {"AcquisitionTime": "101150"},
         ["acquisition time 101112", "acquisition time 101150"]),
        ({"SeriesTime": "101112"}, {"SeriesTime": "101150"}, ["series time 101112", "series time 101150"]),
    ],
)  # fmt: skip
def test_two_stacks_that_mesh_evenly_are_told_apart(
    tmp_path: Path, first: dict[str, object], second: dict[str, object], parts: list[str]
) -> None:
    """Each is a volume without gaps; merged they would be one of half the distance that alternates between two."""
    found = two_stacks(tmp_path, first, {**second, "origin": HALF_WAY})
    assert [series.part for series in found] == parts
    assert [series.verdict.state for series in found] == ["accepted", "accepted"]
    assert [int(read_stack(series).array.max()) for series in found] == [0, 1]


@pytest.mark.parametrize("common", [{"SliceThickness": "1.25"}, {"SliceThickness": "1.0"}, {"SliceThickness": None}])
def test_one_stack_acquired_in_two_passes_stays_one(tmp_path: Path, common: dict[str, object]) -> None:
    """Odd slices first, even slices then: either pass alone has gaps."""
    found = two_stacks(tmp_path, {"AcquisitionNumber": 1}, {"AcquisitionNumber": 2, "origin": HALF_WAY}, **common)
    assert [series.part for series in found] == [""]
    assert found[0].verdict.state == "accepted"


def test_overlapping_slices_are_one_stack(tmp_path: Path) -> None:
    found = two_stacks(tmp_path, {}, {"origin": HALF_WAY})
    assert [series.part for series in found] == [""]
    beside = two_stacks(tmp_path / "b", {"AcquisitionNumber": 1}, {"AcquisitionNumber": 2, "origin": (-20, -30, 110)})
    assert [series.part for series in beside] == [""]


def test_an_acquisition_number_for_each_slice_is_one_stack(tmp_path: Path) -> None:
    for number, file in enumerate(make_series(tmp_path, np.zeros((6, 4, 4), np.int16))):
        edit(file, AcquisitionNumber=number // 2)
    assert only(tmp_path).part == ""


def test_a_stack_that_is_too_large_to_resample_is_refused() -> None:
    positions = np.c_[np.zeros((4, 2)), [0, 1e-3, 1, 1e5]]
    stack = Stack(positions, np.array(AXIAL), 512, 512, (1.0, 1.0), np.full(4, np.nan))
    assert lay_out(stack, allow_gaps=True).grid is None
