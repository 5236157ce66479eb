"""What we write as DICOM is read back by others: voxel for voxel at the same place, coded, valid."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

hd = pytest.importorskip("highdicom", reason="the dicom extra is not installed")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sr import _concepts_dict  # noqa: E402

from medunet.data.dicom import objects  # noqa: E402
from medunet.data.dicom.codes import Code, SegmentCode, _table, find_code, generic_code, parse_code  # noqa: E402
from medunet.data.dicom.contours import outlines  # noqa: E402
from medunet.data.dicom.objects import LPS, Algorithm, Segment, SourceImages  # noqa: E402
from medunet.data.dicom.write_report import write_report  # noqa: E402
from medunet.data.dicom.write_rtstruct import write_rtstruct  # noqa: E402
from medunet.data.dicom.write_seg import write_segmentation  # noqa: E402
from medunet.errors import GeometryError, InputError, PlanError  # noqa: E402
from tests.dicom_phantom import CORONAL, SAGITTAL, make_series  # noqa: E402

ALGORITHM = Algorithm("abdomen", "1.2.0", "0123456789abcdef" * 4)
OBLIQUE = (0.9659258263, 0.2588190451, 0.0, -0.2241438680, 0.8365163037, 0.5)


def code(name: str) -> SegmentCode:
    found = find_code(name)
    assert found is not None, name
    return found


SEGMENTS = (
    Segment(3, "kidney_left", code("kidney_left")),
    Segment(7, "thing", generic_code("thing")),
    Segment(4, "liver tumour", code("liver tumour")),
    Segment(9, "hippocampus_anterior", code("hippocampus_anterior")),
)
"""Values that are neither sorted nor consecutive; the last is in no voxel."""


def phantom() -> np.ndarray:
    """Asymmetric along every axis: a ring, its island, a diagonal pair, a bar."""
    labels = np.zeros((6, 13, 11), dtype=np.int16)
    labels[1:4, 2:9, 1:8] = 3
    labels[2:4, 3:7, 3:6] = 0
    labels[2, 5, 4] = 7
    labels[4, 10, 2], labels[4, 11, 3] = 7, 7
    labels[3:5, 1, 9:11] = 4
    return labels


def read_planes(files: list[Path]) -> SourceImages:
    """Headers and plane affines, straight from Image Position, Orientation and Pixel Spacing (PS3.3 C.7.6.2.1.1)."""
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    planes = np.tile(np.eye(4), (len(headers), 1, 1))
    for plane, header in zip(planes, headers, strict=True):
        cosines, spacing = np.array(header.ImageOrientationPatient, float), np.array(header.PixelSpacing, float)
        plane[:3, 0], plane[:3, 1] = cosines[:3] * spacing[1], cosines[3:] * spacing[0]
        plane[:3, 2] = np.cross(cosines[:3], cosines[3:])
        plane[:3, 3] = np.array(header.ImagePositionPatient, float)
    return SourceImages(tuple(headers), LPS @ planes)


def series(folder: Path, labels: np.ndarray, **options: Any) -> SourceImages:
    return read_planes(make_series(folder, labels, **options))


def world_of(labels: np.ndarray, value: int, source: SourceImages) -> np.ndarray:
    """Sorted LPS mm of the voxels of a class."""
    plane, row, column = np.nonzero(labels == value)
    pixels = np.stack([column, row, np.zeros_like(row), np.ones_like(row)]).astype(float)
    ras = np.einsum("nij,jn->ni", source.planes[plane], pixels)[:, :3]
    return in_order(ras * (-1, -1, 1))


def in_order(points: np.ndarray) -> np.ndarray:
    points = np.round(points, 2) + 0.0
    return points[np.lexsort(points.T)]


def voxels_of_seg(path: Path, number: int) -> np.ndarray:
    """Sorted LPS mm of a segment's voxels, from the frames and their functional groups alone."""
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array.reshape(dataset.NumberOfFrames, dataset.Rows, dataset.Columns)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    found = [np.empty((0, 3))]
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if "SegmentIdentificationSequence" in group:
            frame = frame * (group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number)
        row, column = np.nonzero(frame == (1 if dataset.SegmentationType == "BINARY" else number))
        steps = np.outer(column, cosines[:3] * spacing[1]) + np.outer(row, cosines[3:] * spacing[0])
        found.append(np.array(group.PlanePositionSequence[0].ImagePositionPatient, float) + steps)
    return in_order(np.concatenate(found))


STACKS = {
    "axial": {},
    "feet first prone, from above": {"orientation": (-1, 0, 0, 0, -1, 0), "patient_position": "FFP"},
    "coronal MR": {"orientation": CORONAL, "modality": "MR"},
    "sagittal": {"orientation": SAGITTAL},
    "oblique": {"orientation": OBLIQUE, "modality": "MR"},
    "tilted gantry": {"tilt": 17.0},
    "irregular": {"positions": np.array([0, 2, 5, 6, 10, 11.5])},
    "downwards": {"positions": -np.arange(6) * 2.5},
    "far away, fine pixels": {"origin": (-1234.123456, 987.654321, -1750.25), "spacing": (0.4, 0.12345, 0.12346)},
}


@pytest.mark.parametrize("labelmap", [False, True])
@pytest.mark.parametrize("stack", STACKS)
def test_every_voxel_of_a_segmentation_lies_where_its_pixel_lies(tmp_path: Path, stack: str, labelmap: bool) -> None:
    labels = phantom()
    source = series(tmp_path / "in", labels, **STACKS[stack])
    write_segmentation(tmp_path / "seg.dcm", labels, source, SEGMENTS, ALGORITHM, labelmap=labelmap)
    for number, segment in enumerate(SEGMENTS, 1):
        expected, got = world_of(labels, segment.value, source), voxels_of_seg(tmp_path / "seg.dcm", number)
        assert got.shape == expected.shape
        assert np.allclose(got, expected, atol=0.011)


def test_highdicom_reads_the_segments_on_the_source_images(tmp_path: Path) -> None:
    labels = phantom()
    source = series(tmp_path / "in", labels)
    uid = write_segmentation(tmp_path / "seg.dcm", labels, source, SEGMENTS, ALGORITHM)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert seg.SOPInstanceUID == uid
    assert seg.SeriesInstanceUID == objects.series_uid(uid) != source.first.SeriesInstanceUID
    uids = [d.SOPInstanceUID for d in source.datasets]
    read = seg.get_pixels_by_source_instance(uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
    for number, segment in enumerate(SEGMENTS):
        assert np.array_equal(read[..., number] > 0, labels == segment.value)
    referenced = seg.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == source.first.SeriesInstanceUID
    assert [i.ReferencedSOPInstanceUID for i in referenced.ReferencedInstanceSequence] == uids
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "AccessionNumber"):
        assert seg[keyword].value == source.first[keyword].value


def test_simpleitk_reads_the_segmentation_at_the_same_place(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    labels = np.pad(np.where(phantom() == 3, 3, 0), ((0, 0), (0, 0), (0, 5)))  # its bits fill whole bytes
    source = series(tmp_path / "in", labels)
    write_segmentation(tmp_path / "seg.dcm", labels, source, SEGMENTS[:1], ALGORITHM)
    image = sitk.ReadImage(str(tmp_path / "seg.dcm"))
    index = np.argwhere(sitk.GetArrayFromImage(image) > 0)[:, ::-1]
    world = in_order(np.array([image.TransformIndexToPhysicalPoint([int(v) for v in i]) for i in index]))
    assert np.allclose(world, world_of(labels, 3, source), atol=0.011)


def test_segments_say_what_they_are(tmp_path: Path) -> None:
    labels = phantom()
    uid = write_segmentation(tmp_path / "seg.dcm", labels, series(tmp_path / "in", labels), SEGMENTS, ALGORITHM)
    items = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert [i.SegmentLabel for i in items] == [s.name for s in SEGMENTS]
    kinds = [i.SegmentedPropertyTypeCodeSequence[0] for i in items]
    assert [k.CodeMeaning for k in kinds] == ["Kidney", "Tissue", "Neoplasm", "Hippocampus"]
    modifiers = [k.get("SegmentedPropertyTypeModifierCodeSequence") for k in kinds]
    assert [m[0].CodeMeaning if m else None for m in modifiers] == ["Left", None, None, "Anterior"]
    assert [i.TrackingUID for i in items] == [objects.tracking_uid(uid, n) for n in (1, 2, 3, 4)]
    assert len({tuple(i.RecommendedDisplayCIELabValue) for i in items}) == 4
    used = items[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (used.AlgorithmName, used.AlgorithmVersion) == ("abdomen", "1.2.0")
    assert ALGORITHM.digest in used.AlgorithmParameters


def test_nothing_found_is_still_an_object(tmp_path: Path) -> None:
    labels = np.zeros_like(phantom())
    source = series(tmp_path / "in", labels)
    uid = write_segmentation(tmp_path / "seg.dcm", labels, source, SEGMENTS, ALGORITHM)
    write_rtstruct(tmp_path / "rt.dcm", labels, source, SEGMENTS, ALGORITHM)
    write_report(tmp_path / "sr.dcm", labels, source, SEGMENTS, ALGORITHM, uid)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert seg.NumberOfFrames == len(seg.SegmentSequence) == 4
    assert not seg.pixel_array.any()
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 6
    assert not any("ContourSequence" in i for i in pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence)
    for name in ("seg", "rt", "sr"):
        assert errors_of(tmp_path / f"{name}.dcm") == []


def even_odd(contours: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixel centres inside an odd number of polygons, by counting edges crossed on the way to the left."""
    inside = np.zeros(shape, dtype=bool)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for points in contours:
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            spans = (y0 > rows) != (y1 > rows)
            if spans.any():
                inside ^= spans & (x0 + (rows - y0) * (x1 - x0) / (y1 - y0) < columns)
    return inside


def rasterise(path: Path, source: SourceImages, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Masks of every ROI, filled even-odd plane by plane; a union of the contours has to give the same."""
    dataset, place = pydicom.dcmread(path), {d.SOPInstanceUID: n for n, d in enumerate(source.datasets)}
    masks = []
    for roi in dataset.ROIContourSequence:
        by_plane: dict[int, list[np.ndarray]] = {}
        for contour in roi.get("ContourSequence", []):
            plane = place[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            world = np.array(contour.ContourData, float).reshape(-1, 3) * (-1, -1, 1)
            pixel = (np.linalg.inv(source.planes[plane]) @ np.c_[world, np.ones(len(world))].T).T
            assert np.abs(pixel[:, 2]).max() < 1e-3
            assert len(world) == contour.NumberOfContourPoints
            by_plane.setdefault(plane, []).append(pixel[:, :2])
        mask = np.zeros(shape, dtype=bool)
        for plane, contours in by_plane.items():
            mask[plane] = even_odd(contours, shape[1:])
            assert np.array_equal(mask[plane], np.any([even_odd([c], shape[1:]) for c in contours], axis=0))
        masks.append(mask)
    return masks


FLAT = [name for name in STACKS if name not in ("coronal MR", "sagittal", "oblique")]


@pytest.mark.parametrize("stack", FLAT)
def test_contours_give_every_voxel_back(tmp_path: Path, stack: str) -> None:
    labels = phantom()
    source = series(tmp_path / "in", labels, **STACKS[stack])
    write_rtstruct(tmp_path / "rt.dcm", labels, source, SEGMENTS, ALGORITHM)
    for mask, segment in zip(rasterise(tmp_path / "rt.dcm", source, labels.shape), SEGMENTS, strict=True):
        assert np.array_equal(mask, labels == segment.value)


@given(st.integers(1, 9).flatmap(lambda n: st.integers(1, 9).flatmap(lambda m: arrays(np.bool_, (n, m)))))
@settings(max_examples=300, deadline=None)
def test_outlines_of_any_mask_fill_to_the_mask(mask: np.ndarray) -> None:
    polygons = [points - 0.5 for points in outlines(mask)]
    assert np.array_equal(even_odd(polygons, mask.shape), mask)
    union = np.any([even_odd([p], mask.shape) for p in polygons], axis=0) if polygons else np.zeros_like(mask)
    assert np.array_equal(union, mask)


@given(arrays(np.int16, (3, 5, 6), elements=st.integers(0, 2)), st.floats(-400, 400), st.floats(0.2, 2))
@settings(max_examples=25, deadline=None)
def test_structure_sets_of_any_labels_fill_to_the_labels(labels: np.ndarray, origin: float, spacing: float) -> None:
    segments = (Segment(1, "a", generic_code("a")), Segment(2, "b", generic_code("b")))
    with tempfile.TemporaryDirectory() as folder:
        source = series(Path(folder), labels, origin=(origin, -origin, 3.3), spacing=(1.5, spacing, spacing * 1.1))
        write_rtstruct(Path(folder) / "rt.dcm", labels, source, segments, ALGORITHM)
        masks = rasterise(Path(folder) / "rt.dcm", source, labels.shape)
    assert [np.array_equal(m, labels == v) for m, v in zip(masks, (1, 2), strict=True)] == [True, True]


def test_contours_have_corners_only_and_numbers_that_fit(tmp_path: Path) -> None:
    labels = np.zeros((1, 30, 30), dtype=np.int16)
    labels[0, 5:20, 4:25], labels[0, 8:12, 9:15] = 1, 0
    source = series(tmp_path / "in", labels, origin=(-1234.567891, 0.1, 1 / 3), spacing=(1, 1 / 3, 2 / 3))
    write_rtstruct(tmp_path / "rt.dcm", labels, source, (Segment(1, "x", generic_code("x")),), ALGORITHM)
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    assert contour.NumberOfContourPoints == 4 + 5 + 2
    assert max(len(str(v.original_string)) for v in contour.ContourData) <= 16
    assert dataset.ApprovalStatus == "UNAPPROVED"
    roi = dataset.StructureSetROISequence[0]
    assert float(roi.ROIVolume) == pytest.approx((15 * 21 - 4 * 6) * 2 / 9 / 1000, rel=1e-3)


def test_a_large_structure_set_takes_seconds(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:512, :512]
    disc = (rows - 250) ** 2 + (columns - 260) ** 2
    planes = [(disc < (100 + n) ** 2) * (1 + (disc < (60 + n) ** 2)) for n in range(100)]
    labels = np.stack(planes).astype(np.int16)
    source = series(tmp_path / "in", labels[:, ::8, ::8])
    for header in source.datasets:
        header.Rows = header.Columns = 512
    segments = (Segment(1, "shell", generic_code("")), Segment(2, "core", generic_code("")))
    start = time.perf_counter()
    write_rtstruct(tmp_path / "rt.dcm", labels, source, segments, ALGORITHM)
    assert time.perf_counter() - start < 30


def groups_of(path: Path) -> list[Any]:
    report = hd.sr.srread(path)
    return list(report.content.get_volumetric_roi_measurement_groups())


def test_report_states_volumes_and_points_at_the_segments(tmp_path: Path) -> None:
    labels = phantom()
    source = series(tmp_path / "in", labels)
    uid = write_segmentation(tmp_path / "seg.dcm", labels, source, SEGMENTS, ALGORITHM)
    write_report(tmp_path / "sr.dcm", labels, source, SEGMENTS, ALGORITHM, uid)
    groups = groups_of(tmp_path / "sr.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    for number, (group, segment, described) in enumerate(zip(groups, SEGMENTS, seg.SegmentSequence, strict=True), 1):
        measured = group.get_measurements()[0]
        assert measured.value == pytest.approx((labels == segment.value).sum() * 2.5 * 0.8 * 0.7, abs=1e-3)
        assert measured.unit.value == "mm3"
        assert (group.tracking_uid, group.tracking_identifier) == (described.TrackingUID, described.TrackingID)
        assert group.finding_type.value == segment.code.type.value
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == uid
        assert reference.referenced_segment_numbers == [number]
    evidence = pydicom.dcmread(tmp_path / "sr.dcm").CurrentRequestedProcedureEvidenceSequence[0]
    uids = {s.SeriesInstanceUID: len(s.ReferencedSOPSequence) for s in evidence.ReferencedSeriesSequence}
    assert uids == {seg.SeriesInstanceUID: 1, source.first.SeriesInstanceUID: 6}
    comments = ["Comment" in str(g[0]) for g in groups]
    assert comments == [False, False, False, True]


def test_volume_of_an_irregular_stack_takes_each_planes_share(tmp_path: Path) -> None:
    labels = np.zeros((4, 5, 5), dtype=np.int16)
    labels[0, 2, 2], labels[2, 1:3, 1] = 1, 1
    source = series(tmp_path / "in", labels, positions=np.array([0, 2, 5, 6]), spacing=(2, 1, 1), tilt=20.0)
    write_report(tmp_path / "sr.dcm", labels, source, (Segment(1, "x", generic_code("x")),), ALGORITHM, "1.2.3")
    assert groups_of(tmp_path / "sr.dcm")[0].get_measurements()[0].value == pytest.approx(2 + 2 * 2.0, abs=1e-3)


def errors_of(path: Path) -> list[str]:
    """Error lines of David Clunie's dciodvfy."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def write_all(folder: Path, labels: np.ndarray, source: SourceImages, segments: tuple[Segment, ...]) -> list[Path]:
    paths = [folder / f"{name}.dcm" for name in ("seg", "rt", "sr")]
    uid = write_segmentation(paths[0], labels, source, segments, ALGORITHM)
    write_rtstruct(paths[1], labels, source, segments, ALGORITHM)
    write_report(paths[2], labels, source, segments, ALGORITHM, uid)
    return paths


def test_a_report_can_name_a_label_map(tmp_path: Path) -> None:
    labels = phantom()
    source = series(tmp_path / "in", labels)
    uid = write_segmentation(tmp_path / "seg.dcm", labels, source, SEGMENTS, ALGORITHM, labelmap=True)
    write_report(tmp_path / "sr.dcm", labels, source, SEGMENTS, ALGORITHM, uid, labelmap=True)
    reference = groups_of(tmp_path / "sr.dcm")[0].referenced_segment
    assert reference.referenced_sop_instance_uid == uid
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert str(seg.SOPClassUID) in str(pydicom.dcmread(tmp_path / "sr.dcm").to_json())
    assert [s.SegmentNumber for s in seg.SegmentSequence] == [0, 1, 2, 3, 4]


def test_a_single_plane(tmp_path: Path) -> None:
    labels = phantom()[2:3]
    source = series(tmp_path / "in", labels)
    for path in write_all(tmp_path, labels, source, SEGMENTS):
        assert errors_of(path) == []
    assert pydicom.dcmread(tmp_path / "seg.dcm").NumberOfFrames == 2
    source = series(tmp_path / "thin", labels, SliceThickness=None)
    write_segmentation(tmp_path / "seg.dcm", labels, source, SEGMENTS, ALGORITHM)
    write_rtstruct(tmp_path / "rt.dcm", labels, source, SEGMENTS, ALGORITHM)
    with pytest.raises(GeometryError, match="single plane has no slice thickness, so no volume can be stated"):
        write_report(tmp_path / "sr.dcm", labels, source, SEGMENTS, ALGORITHM, "1.2.3")


def test_colours_differ() -> None:
    assert len({objects.colour(place) for place in range(120)}) == 120


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_dciodvfy_finds_no_error(tmp_path: Path, modality: str) -> None:
    labels = phantom()
    source = series(tmp_path / "in", labels, modality=modality)
    for path in write_all(tmp_path, labels, source, SEGMENTS):
        assert errors_of(path) == []
    assert not list(tmp_path.glob(".part-*"))


def test_the_phantom_series_is_itself_valid(tmp_path: Path) -> None:
    for modality in ("CT", "MR"):
        assert errors_of(make_series(tmp_path / modality, phantom(), modality=modality)[0]) == []


MISSING = (
    *("AccessionNumber", "StudyID", "ReferringPhysicianName", "PatientSex", "PatientBirthDate", "StudyDate"),
    *("StudyTime", "PatientName", "PatientID", "SliceThickness", "SeriesNumber", "PositionReferenceIndicator"),
)


def test_headers_without_type_2_attributes_are_enough(tmp_path: Path) -> None:
    labels = phantom()
    source = series(tmp_path / "in", labels, **dict.fromkeys(MISSING))
    for path in write_all(tmp_path, labels, source, SEGMENTS):
        assert errors_of(path) == []
        assert pydicom.dcmread(path).PatientName == ""


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_values_that_break_rules_do_not_break_us(tmp_path: Path) -> None:
    labels = phantom()
    broken = {"PatientSex": "W", "PatientAge": "61", "PatientBirthDate": "1960", "StudyDate": "2024-01-02"}
    source = series(tmp_path / "in", labels, **broken, StudyTime="noon", SeriesNumber=2**31 - 1)
    for path in write_all(tmp_path, labels, source, SEGMENTS):
        assert errors_of(path) == []
        assert pydicom.dcmread(path).PatientSex == ""


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 192", "王^小東"),
        ("GB18030", "王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ],
)
@pytest.mark.parametrize("label", ["kidney", "Größe 右"])
def test_names_survive_in_their_character_set(tmp_path: Path, charset: Any, name: str, label: str) -> None:
    labels = phantom()
    source = series(tmp_path / "in", labels, SpecificCharacterSet=charset, PatientName=name)
    segments = (Segment(3, label, generic_code("")), *SEGMENTS[1:])
    for path in write_all(tmp_path, labels, source, segments):
        dataset = pydicom.dcmread(path)
        assert str(dataset.PatientName) == name
        assert label in str(dataset)


def enhanced(folder: Path, labels: np.ndarray, order: tuple[int, ...]) -> SourceImages:
    """The same series as one multi-frame image whose frames lie in another order."""
    classic = series(folder, labels)
    first = classic.first
    image = Dataset()
    image.update({e.tag: e for e in first if e.keyword not in ("ImagePositionPatient", "ImageOrientationPatient")})
    image.SOPClassUID, image.NumberOfFrames = pydicom.uid.EnhancedCTImageStorage, len(order)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    del image.PixelSpacing
    image.SharedFunctionalGroupsSequence = [shared]
    frames = [Dataset() for _ in order]
    for plane, number in enumerate(order):
        position = Dataset()
        position.ImagePositionPatient = classic.datasets[plane].ImagePositionPatient
        frames[number - 1].PlanePositionSequence = [position]
    image.PerFrameFunctionalGroupsSequence = frames
    return SourceImages((image,), classic.planes, order)


def test_a_multi_frame_source_is_named_by_its_frames(tmp_path: Path) -> None:
    labels, order = phantom(), (3, 1, 2, 6, 5, 4)
    source = enhanced(tmp_path / "in", labels, order)
    paths = write_all(tmp_path, labels, source, SEGMENTS)
    for path in paths:
        assert errors_of(path) == []
    seg, rt = pydicom.dcmread(paths[0]), pydicom.dcmread(paths[1])
    where = {
        tuple(p.PlanePositionSequence[0].ImagePositionPatient): n
        for n, p in enumerate(source.first.PerFrameFunctionalGroupsSequence, 1)
    }
    for group in seg.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedFrameNumber == where[tuple(group.PlanePositionSequence[0].ImagePositionPatient)]
        assert image.ReferencedSOPInstanceUID == source.first.SOPInstanceUID
    found = [c.ContourImageSequence[0].ReferencedFrameNumber for c in rt.ROIContourSequence[0].ContourSequence]
    assert found == [1, 2, 6]


def test_errors_say_what_and_what_to_do(tmp_path: Path) -> None:
    labels = phantom()
    source = series(tmp_path / "in", labels)
    out, one = tmp_path / "x.dcm", (Segment(3, "a", generic_code("a")),)
    with pytest.raises(
        InputError, match="plane 2 of the labels has the value 7, which no segment has; add the segment"
    ):
        write_segmentation(out, np.where(labels == 4, 0, labels), source, one, ALGORITHM)
    with pytest.raises(GeometryError, match=r"labels have shape \(5, 13, 11\), the source images \(6, 13, 11\)"):
        write_rtstruct(out, labels[1:], source, SEGMENTS, ALGORITHM)
    with pytest.raises(InputError, match="labels are of type bool; give whole numbers"):
        write_report(out, labels > 0, source, SEGMENTS, ALGORITHM, "1.2.3")
    with pytest.raises(InputError, match="give each its own value"):
        write_segmentation(out, labels, source, (*one, *one), ALGORITHM)
    coronal = series(tmp_path / "cor", labels, orientation=CORONAL)
    with pytest.raises(GeometryError, match=r"turned 90\.0 degrees from axial.*write DICOM SEG instead"):
        write_rtstruct(out, labels, coronal, SEGMENTS, ALGORITHM)
    moved = np.array(source.planes)
    moved[3, 0, 3] += 0.5
    with pytest.raises(GeometryError, match=r"plane 3 of the source lies 0\.5 mm from where its header"):
        write_segmentation(out, labels, SourceImages(source.datasets, moved), SEGMENTS, ALGORITHM)
    with pytest.raises(GeometryError, match="5 headers and 5 frames for 6 planes"):
        SourceImages(source.datasets[1:], source.planes)
    with pytest.raises(GeometryError, match="a source image has no FrameOfReferenceUID"):
        series(tmp_path / "no", labels, FrameOfReferenceUID=None)
    assert not out.exists()


def test_every_code_of_the_table_means_what_the_standard_says() -> None:
    known: dict[str, set[str]] = {}
    for entries in _concepts_dict.concepts["SCT"].values():
        for value, (meaning, _) in entries.items():
            known.setdefault(value, set()).add(meaning)
    rows = {row.code.type: row.code for row in _table().values()}
    assert len(rows) > 150
    for kind, found in rows.items():
        for part in (kind, found.category, found.laterality):
            if part is not None:
                assert part.scheme == "SCT"
                assert Code.from_json(part.as_json()) == part
                assert part.meaning in known.get(part.value, {part.meaning}), part
    assert {k.meaning for k in rows if k.value not in known} == {"Myocardium"}


@pytest.mark.parametrize(
    ("name", "meaning", "side"),
    [
        ("Kidney_left", "Kidney", "Left"),
        ("left kidney", "Kidney", "Left"),
        ("kidney_L", "Kidney", "Left"),
        ("r-kidney", "Kidney", "Right"),
        ("LeftKidney", "Kidney", "Left"),
        ("LIVER", "Liver", None),
        ("lung_upper_lobe_right", "Upper lobe of lung", "Right"),
        ("heart_atrium_left", "Left atrium", None),
        ("vertebrae_L1", "L1 vertebra", None),
        ("kidney cyst left", "Cyst", "Left"),
        ("liver_tumour", "Neoplasm", None),
        ("posterior hippocampus", "Hippocampus", "Posterior"),
    ],
)
def test_names_find_their_code(name: str, meaning: str, side: str | None) -> None:
    found = code(name)
    assert found.type.meaning == meaning
    assert (found.laterality.meaning if found.laterality else None) == side
    assert SegmentCode.from_json(found.as_json()) == found


@pytest.mark.parametrize("name", ["", "left", "l", "left liver", "label 3", "anterior", "kidney left right", "organ x"])
def test_names_without_a_meaning_find_none(name: str) -> None:
    assert find_code(name) is None
    assert generic_code(name).type.meaning == "Tissue"


def test_a_numbered_lesion_is_a_lesion_and_a_numbered_structure_is_not() -> None:
    assert code("GTV_2").type.meaning == "GTV"
    assert find_code("kidney 2") is None


def test_own_codes() -> None:
    own = parse_code({"type": ["10200004", "SCT", "Liver"], "laterality": "left"}, "x")
    assert (own.category.meaning, own.type.meaning) == ("Anatomical Structure", "Liver")
    assert own.laterality == Code("7771000", "SCT", "Left")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("liver", "code of class 'x' is 'liver'; write a mapping"),
        ({}, "code of class 'x' has no type"),
        ({"type": ["1", "SCT"]}, "type is .*three strings"),
        ({"type": [10200004, "SCT", "Liver"]}, "three strings"),
        ({"type": ["12345678901234567", "SCT", "Liver"]}, "value '12345678901234567'; DICOM allows 1 to 16"),
        ({"type": ["1", "SCT", "m" * 65]}, "DICOM allows 1 to 64"),
        ({"type": ["1", "S\\T", "m"]}, "without backslash"),
        ({"type": ["1", "SCT", "m"], "laterality": "up"}, "has the laterality 'up'; write left, right"),
        ({"type": ["1", "SCT", "m"], "side": "left"}, "has the key 'side'"),
    ],
)
def test_own_codes_are_checked(value: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse_code(value, "x")
