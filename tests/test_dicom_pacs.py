"""What we write survives a real PACS: stored, found and fetched by every way in, and read again voxel for voxel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

hd = pytest.importorskip("highdicom", reason="the dicom extra is not installed")
pytest.importorskip("pynetdicom", reason="pynetdicom (dev extra) is not installed")

import dicom_pacs  # noqa: E402
from pydicom import dcmread  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from medunet.data.dicom.labels import label_map, names_in  # noqa: E402
from medunet.data.dicom.objects import Algorithm, Segment  # noqa: E402
from medunet.data.dicom.results import code_of, write_result  # noqa: E402
from medunet.data.dicom.scan import Series, scan  # noqa: E402
from medunet.data.dicom.volumes import find_series, read_stack  # noqa: E402
from tests.dicom_pacs import FIND, RETRIEVE, STORE, Identity, Pacs, Refused  # noqa: E402
from tests.dicom_phantom import make_series  # noqa: E402

ALGORITHM = Algorithm("abdomen", "1.2.0", "0123456789abcdef" * 4)
CLASSES = {"kidney_left": 3, "Größe 右": 7, "liver tumour": 4}
ABSENT = 9
KINDS = {"seg": "SEG", "labelmap": "SEG", "rtstruct": "RTSTRUCT"}
REPORTS = {"seg_report": "seg", "labelmap_report": "labelmap"}
SHAPE = (6, 13, 11)  # planes, rows, columns: a frame of 143 bits does not end on a byte
COMPRESSED = (JPEGLosslessSV1, JPEGLossless, JPEGLSLossless)
"""What Orthanc can make without further plugins."""


# --- what is sent ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Study:
    """A series as a scanner stores it, labels (x, y, z) on its grid, and every object that we write for them."""

    series: Series
    labels: np.ndarray
    images: tuple[Path, ...]
    objects: dict[str, Path]

    @property
    def files(self) -> list[Path]:
        return [*self.images, *self.objects.values()]


@dataclass(frozen=True)
class Fetched:
    """The folder that a study was retrieved into, images and objects side by side."""

    folder: Path
    study: Study
    refused: Refused

    @property
    def files(self) -> dict[Path, Path]:
        """The sent file -> the fetched one, for all that the PACS does not refuse to send."""
        headers = {file: dcmread(file, stop_before_pixels=True) for file in self.study.files}
        kept = {f: h.SOPInstanceUID for f, h in headers.items() if h.SOPClassUID not in self.refused}
        return {file: self.folder / f"{uid}.dcm" for file, uid in kept.items()}

    def object(self, kind: str) -> Path:
        """The fetched object of this kind."""
        found = self.files.get(self.study.objects[kind])
        if found is None:
            pytest.skip(f"this version of Orthanc does not send the SOP class of a {kind} by C-GET")
        return found


def phantom() -> np.ndarray:
    """Planes, asymmetric along every axis: a ring, its island, a diagonal pair, a bar."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:4, 2:9, 1:8] = 3
    labels[2:4, 3:7, 3:6] = 0
    labels[2:4, 5, 4] = 7
    labels[4, 10, 2], labels[4, 11, 3] = 7, 7
    labels[3:5, 1, 9:11] = 4
    return labels


def study_of(folder: Path, planes: np.ndarray, **header: Any) -> Study:
    voxels = np.random.default_rng(0).integers(-1000, 2000, planes.shape).astype(np.int16)
    images = make_series(folder / "in", voxels, **header)
    series = find_series(folder / "in")
    grid, labels = read_stack(series).grid, np.ascontiguousarray(planes.transpose(2, 1, 0))
    segments = [Segment(value, name, code_of(name)) for name, value in {**CLASSES, "spleen": ABSENT}.items()]
    out = {name: folder / f"{name}.dcm" for name in (*KINDS, *REPORTS)}
    write_result(out["seg"], labels, grid, series, segments, ALGORITHM, "dicom-seg")
    write_result(out["labelmap"], labels, grid, series, segments, ALGORITHM, "dicom-seg", labelmap=True)
    write_result(out["rtstruct"], labels, grid, series, segments, ALGORITHM, "rtstruct")
    return Study(series, labels, tuple(images), out)


# --- fixtures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """Orthanc of this test process alone."""
    if dicom_pacs.orthanc() is None:
        pytest.skip("Orthanc is not installed (apt-get install orthanc orthanc-dicomweb)")
    with dicom_pacs.running(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


def require(pacs: Pacs, way: str) -> None:
    if way in dicom_pacs.WEB and not pacs.web:
        pytest.skip("the DICOMweb plugin of Orthanc is not installed (apt-get install orthanc-dicomweb)")


@pytest.fixture(scope="session")
def store_by(pacs: Pacs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Study]:
    """A study of its own for each way of storing; the patient's name needs a character set."""

    @cache
    def store(way: str) -> Study:
        require(pacs, way)
        header = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jürgen"}
        study = study_of(tmp_path_factory.mktemp("study"), phantom(), **header)
        STORE[way](pacs, study.files)
        return study

    return store


@pytest.fixture(params=STORE)
def stored(request: pytest.FixtureRequest, store_by: Callable[[str], Study]) -> Study:
    return store_by(request.param)


@pytest.fixture(scope="session")
def fetch_by(pacs: Pacs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Study], Fetched]:
    """Each study into a folder for each way of retrieving."""

    @cache
    def fetch(way: str, study: Study) -> Fetched:
        require(pacs, way)
        folder = tmp_path_factory.mktemp("fetched")
        return Fetched(folder, study, RETRIEVE[way](pacs, study.series.study, folder))

    return fetch


@pytest.fixture(params=RETRIEVE)
def fetched(request: pytest.FixtureRequest, stored: Study, fetch_by: Callable[[str, Study], Fetched]) -> Fetched:
    return fetch_by(request.param, stored)


# --- tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("find", FIND)
def test_every_object_is_found_in_the_study_of_its_images(pacs: Pacs, stored: Study, find: str) -> None:
    require(pacs, find)
    headers = [dcmread(file, stop_before_pixels=True) for file in stored.files]
    words = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    written = {Identity(*(str(header.get(word, "")) for word in words)) for header in headers}
    found = FIND[find](pacs, stored.series.study)
    assert found == written
    assert len(found) == len(stored.files)
    assert {i.study for i in found} == {stored.series.study}
    assert {i.frame_of_reference for i in found} == {stored.series.frame_of_reference, ""}  # an SR has none
    assert len({i.series for i in found}) == 1 + len(stored.objects)


def test_the_series_comes_back_as_the_same_volume(fetched: Fetched) -> None:
    sent, got = read_stack(fetched.study.series), read_stack(find_series(fetched.folder))
    assert got.grid == sent.grid
    assert got.array.dtype == sent.array.dtype
    assert np.array_equal(got.array, sent.array)


def differences(sent: Dataset, got: Dataset) -> list[str]:
    """The attributes that are not equal, pixel data, contours and content tree among them."""
    return [str(tag) for tag in sorted({*sent.keys(), *got.keys()}) if sent.get(tag) != got.get(tag)]


def test_every_attribute_comes_back(fetched: Fetched) -> None:
    assert sorted(fetched.folder.iterdir()) == sorted(fetched.files.values())
    for sent, got in fetched.files.items():
        assert differences(dcmread(sent), dcmread(got)) == [], sent.name


def test_a_retrieved_folder_is_understood(fetched: Fetched) -> None:
    kinds = [kind for name, kind in KINDS.items() if fetched.study.objects[name] in fetched.files]
    found = scan(fetched.folder)
    assert [series.uid for series in found.series] == [fetched.study.series.uid]
    assert sorted(label.kind for label in found.labels) == sorted(kinds)
    assert {label.frame_of_reference for label in found.labels} == {fetched.study.series.frame_of_reference}
    assert len(found.aside) == len(REPORTS)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_come_back_voxel_for_voxel(fetched: Fetched, kind: str) -> None:
    path, series = fetched.object(kind), find_series(fetched.folder)
    assert set(names_in(path)) == set(CLASSES)
    read = label_map(path, read_stack(series).grid, series.frame_of_reference, CLASSES)
    assert read.notes == ()
    assert np.array_equal(read.array, fetched.study.labels)


@pytest.mark.parametrize("kind", REPORTS)
def test_reports_come_back_with_the_volumes_of_their_segmentation(fetched: Fetched, kind: str) -> None:
    segmentation = dcmread(fetched.study.objects[REPORTS[kind]])
    groups = hd.sr.srread(fetched.object(kind)).content.get_volumetric_roi_measurement_groups()
    voxel = abs(float(np.linalg.det(read_stack(fetched.study.series).grid.affine)))
    counts = [int((fetched.study.labels == value).sum()) for value in (*CLASSES.values(), ABSENT)]
    assert [g.get_measurements()[0].value for g in groups] == pytest.approx([n * voxel for n in counts], abs=1e-3)
    assert {g.referenced_segment.referenced_sop_instance_uid for g in groups} == {segmentation.SOPInstanceUID}
    assert {g.referenced_segment.referenced_sop_class_uid for g in groups} == {segmentation.SOPClassUID}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda s: s.name)
def test_a_contour_too_long_for_explicit_vr_comes_back(pacs: Pacs, tmp_path: Path, syntax: UID) -> None:
    """A DS of explicit VR ends at 64 KiB; a PACS that sends explicit VR nonetheless writes it as UN (PS3.5 6.2.2)."""
    planes = np.zeros((2, 120, 120), dtype=np.uint8)
    planes[:, 10:111, 10:111] = 3
    planes[0, 11:110:2, 11:110:2] = 0
    study = study_of(tmp_path, planes)
    contours = [c for r in dcmread(study.objects["rtstruct"]).ROIContourSequence for c in r.get("ContourSequence", [])]
    assert max(len("\\".join(map(str, c.ContourData))) for c in contours) > 2**16
    dicom_pacs.c_store(pacs, study.files)
    folder = tmp_path / "fetched"
    folder.mkdir()
    refused = dicom_pacs.c_get(pacs, study.series.study, folder, {"RTSTRUCT": syntax})
    got = Fetched(folder, study, refused).object("rtstruct")
    assert dcmread(got).file_meta.TransferSyntaxUID == syntax
    read = label_map(got, read_stack(find_series(folder)).grid, study.series.frame_of_reference, {"kidney_left": 3})
    assert np.array_equal(read.array, study.labels)


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda s: s.name)
def test_a_series_that_the_pacs_compresses_comes_back_as_the_same_volume(
    pacs: Pacs, store_by: Callable[[str], Study], tmp_path: Path, syntax: UID
) -> None:
    study = store_by("C-STORE")
    dicom_pacs.rest_compressed(pacs, study.series.uid, tmp_path, syntax)
    assert [dcmread(file).file_meta.TransferSyntaxUID for file in tmp_path.iterdir()] == [syntax] * len(study.images)
    sent, got = read_stack(study.series), read_stack(find_series(tmp_path))
    assert got.grid == sent.grid
    assert np.array_equal(got.array, sent.array)
