"""Round trips of results: every direction and patient position, written by medunet and read by other programs.

`tests/test_dicom_round_trip.py` runs them with the libraries at hand, ``scripts/dicom_round_trips.py`` also with the
programs dcmqi and plastimatch, and writes ``docs/dicom_round_trips.md``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813

from medunet.data.dicom.codes import generic_code
from medunet.data.dicom.objects import Algorithm, Segment
from medunet.data.dicom.results import write_result
from medunet.data.dicom.scan import Series
from medunet.data.dicom.volumes import find_series, to_planes
from tests.dicom_phantom import AXIAL, CORONAL, SAGITTAL, make_series

_TURN = {"S": np.diag([1.0, 1.0, 1.0]), "P": np.diag([-1.0, -1.0, 1.0])}
_TURN["DR"] = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
_TURN["DL"] = _TURN["DR"].T
_FEET_FIRST = np.diag([-1.0, 1.0, -1.0])
POSITIONS = {f"{end}F{way}": (_FEET_FIRST if end == "F" else np.eye(3)) @ _TURN[way] for end in "HF" for way in _TURN}
"""Patient Position (PS3.3 C.7.3.1.1.2) -> how the scanner's axes lie in the patient's (LPS)."""

_ANGLE = np.radians(17.0)
STACKS = {
    "axial": AXIAL,
    "coronal": CORONAL,
    "sagittal": SAGITTAL,
    "oblique": (0.936, 0.2, -0.2894, -0.1547, 0.9732, 0.1722),
    "tilted": (1.0, 0.0, 0.0, 0.0, np.cos(_ANGLE), -np.sin(_ANGLE)),
}
FORMATS = {"BINARY": ("dicom-seg", False), "LABELMAP": ("dicom-seg", True), "RTSTRUCT": ("rtstruct", False)}
SEGMENTS = [Segment(1, "letter F", generic_code("F")), Segment(2, "ring and dot", generic_code("ring"))]
Voxels = dict[int, np.ndarray]


def phantom(shape: tuple[int, int, int]) -> np.ndarray:
    """Labels (x, y, z) without any symmetry: an F that changes from slice to slice, and a ring with a dot inside."""
    labels = np.zeros(shape, np.int16)
    labels[2:4, 2:12] = labels[2:9, 2:4] = labels[2:7, 6:8] = 1
    labels[8, 2:4, shape[2] // 2 :] = 0
    labels[9:14, 10:16, 1] = 2
    labels[10:13, 11:15, 1] = 0
    labels[11, 13, 1] = 2
    labels[12, 4, 2] = labels[13, 5, 2] = 2
    return labels


def make(folder: Path, stack: str, position: str) -> Series:
    """The series of a stack as it is acquired in a patient position, read by medunet.

    A frame's bits fill whole bytes: GDCM leaves the last pixels of a file of single bits undefined where they do not.
    """
    plane = np.array(STACKS[stack], float).reshape(2, 3)
    plane = np.array([row / np.linalg.norm(row) for row in plane])
    plane[1] -= plane[0] * (plane[1] @ plane[0])
    plane[1] /= np.linalg.norm(plane[1])
    orientation = (plane @ POSITIONS[position].T).reshape(-1)
    tilt = 17.0 if stack == "tilted" else 0.0
    make_series(
        folder,
        np.zeros((5, 20, 16), np.int16),
        (3.0, 0.9, 0.8),
        tuple(orientation),
        tilt=tilt,
        patient_position=position,
    )
    return find_series(folder)


def write(path: Path, series: Series, kind: str, segments: list[Segment] = SEGMENTS) -> Voxels:
    """Write the phantom on a series; LPS mm of each class's voxels, from the headers of the images alone."""
    grid = series.layout.grid
    assert grid is not None
    labels = phantom(grid.shape)
    labels[labels > len(segments)] = 0
    output_format, labelmap = FORMATS[kind]
    write_result(path, labels, grid, series, segments, Algorithm("phantom", "1", "0"), output_format, labelmap=labelmap)
    planes = to_planes(labels, grid, series)
    headers = [pydicom.dcmread(f.file.location.path, stop_before_pixels=True) for f in series.ordered()]
    return {s.value: places(planes == s.value, headers) for s in SEGMENTS}


def places(masks: np.ndarray, headers: list[pydicom.Dataset]) -> np.ndarray:
    """LPS mm of the pixels of each plane that are set (PS3.3 C.7.6.2.1-1)."""
    found = [np.zeros((0, 3))]
    for mask, header in zip(masks, headers, strict=True):
        cosines, spacing = np.array(header.ImageOrientationPatient, float), np.array(header.PixelSpacing, float)
        row, column = np.nonzero(mask)
        steps = np.outer(column, cosines[:3] * spacing[1]) + np.outer(row, cosines[3:] * spacing[0])
        found.append(np.array(header.ImagePositionPatient, float) + steps)
    return in_order(np.concatenate(found))


def in_order(points: np.ndarray) -> np.ndarray:
    """Points sorted, to compare sets of voxels."""
    rounded = np.round(points, 2) + 0.0
    return points[np.lexsort(rounded.T)]


def equal(got: Voxels, expected: Voxels) -> bool:
    """Whether the same voxels were read at the same places, to two hundredths of a millimetre."""
    return all(points.shape == expected[v].shape and _same_places(points, expected[v]) for v, points in got.items())


def _same_places(a: np.ndarray, b: np.ndarray) -> bool:
    from scipy.spatial import cKDTree

    return not len(a) or float(cKDTree(a).query(b)[0].max()) < 0.02


def with_highdicom(path: Path, series: Series) -> Voxels:
    """highdicom: as a volume where planes make one, else on the images that the frames refer to."""
    seg = hd.seg.segread(path)
    if series.layout.resampled:
        return _by_image(seg, series)
    result = {}
    for number, segment in enumerate(SEGMENTS, 1):
        if seg.segmentation_type.value == "LABELMAP":
            volume = seg.get_volume(combine_segments=True, allow_missing_positions=True)
            index = np.argwhere(volume.array == number)
        else:
            volume = seg.get_volume(segment_numbers=[number], allow_missing_positions=True)
            index = np.argwhere(volume.array[..., 0] > 0)
        result[segment.value] = in_order(index @ volume.affine[:3, :3].T + volume.affine[:3, 3])
    return result


def _by_image(seg: hd.seg.Segmentation, series: Series) -> Voxels:
    headers = [pydicom.dcmread(f.file.location.path, stop_before_pixels=True) for f in series.ordered()]
    read = seg.get_pixels_by_source_instance(
        [h.SOPInstanceUID for h in headers],
        combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True,
    )  # fmt: skip
    return {s.value: places(read == number, headers) for number, s in enumerate(SEGMENTS, 1)}


def with_frames(path: Path, series: Series) -> Voxels:
    """Frame by frame from the functional groups, as a viewer that knows nothing of volumes does (pydicom)."""
    d = pydicom.dcmread(path)
    frames = d.pixel_array.reshape(d.NumberOfFrames, d.Rows, d.Columns)
    shared = d.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    found: dict[int, list[np.ndarray]] = {s.value: [np.zeros((0, 3))] for s in SEGMENTS}
    for frame, group in zip(frames, d.PerFrameFunctionalGroupsSequence, strict=True):
        for number, segment in enumerate(SEGMENTS, 1):
            if d.SegmentationType == "BINARY":
                own = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
                row, column = np.nonzero(frame * own)
            else:
                row, column = np.nonzero(frame == number)
            steps = np.outer(column, cosines[:3] * spacing[1]) + np.outer(row, cosines[3:] * spacing[0])
            found[segment.value].append(np.array(group.PlanePositionSequence[0].ImagePositionPatient, float) + steps)
    return {value: in_order(np.concatenate(points)) for value, points in found.items()}


def of_image(image: sitk.Image, value: int | None = None) -> np.ndarray:
    """LPS mm of the voxels of an ITK image that are `value`, or not 0."""
    array = sitk.GetArrayFromImage(image)
    index = np.argwhere(array == value if value else array > 0)[:, ::-1]
    direction = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    return in_order(index @ direction.T + image.GetOrigin())


def with_simpleitk(path: Path, series: Series) -> Voxels:
    """SimpleITK (GDCM), which takes the frames of a file for one volume: so a file with the first class alone."""
    alone = path.with_name(f"one_{path.name}")
    write(alone, series, "BINARY", SEGMENTS[:1])
    return {SEGMENTS[0].value: of_image(sitk.ReadImage(str(alone)))}


def with_images(path: Path, series: Series) -> Voxels:
    """Contours filled even-odd on the images that SimpleITK (GDCM) reads: another reader and another geometry."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(frame.file.location.path) for frame in series.ordered()])
    image = reader.Execute()
    inverse = np.linalg.inv(np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing())
    d = pydicom.dcmread(path)
    result = {}
    for number, segment in enumerate(SEGMENTS):
        mask = np.zeros(image.GetSize()[::-1], bool)
        for contour in d.ROIContourSequence[number].get("ContourSequence", []):
            points = (np.array(contour.ContourData, float).reshape(-1, 3) - image.GetOrigin()) @ inverse.T
            mask[round(float(points[0, 2]))] ^= _inside(points[:, :2], mask.shape[1:])
        itk = sitk.GetImageFromArray(mask.astype(np.uint8))
        itk.CopyInformation(image)
        result[segment.value] = of_image(itk)
    return result


def _inside(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    inside = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        crosses = (y0 > rows) != (y1 > rows)
        if crosses.any():
            inside ^= crosses & (x0 + (rows - y0) * (x1 - x0) / (y1 - y0) < columns)
    return inside


def with_dcmqi(program: str) -> Callable[[Path, Series], Voxels]:
    """dcmqi's segimage2itkimage: one file per segment."""

    def read(path: Path, series: Series) -> Voxels:
        folder = path.with_suffix(".dcmqi")
        folder.mkdir()
        command = [program, "--inputDICOM", str(path), "--outputDirectory", str(folder), "--outputType", "nrrd"]
        subprocess.run(command, check=True, capture_output=True)
        if len(list(folder.glob("*.nrrd"))) < len(SEGMENTS):  # a label map: one file with all segments
            image = sitk.ReadImage(str(folder / "1.nrrd"))
            return {s.value: of_image(image, n) for n, s in enumerate(SEGMENTS, 1)}
        return {s.value: of_image(sitk.ReadImage(str(folder / f"{n}.nrrd"))) for n, s in enumerate(SEGMENTS, 1)}

    return read


def with_plastimatch(program: str) -> Callable[[Path, Series], Voxels]:
    """plastimatch convert: one mask per structure on the images' grid."""

    def read(path: Path, series: Series) -> Voxels:
        folder = path.with_suffix(".plastimatch")
        command = [program, "convert", "--input", str(path), "--referenced-ct", series.folder]
        subprocess.run(
            [*command, "--output-prefix", str(folder), "--prefix-format", "nrrd"], check=True, capture_output=True
        )
        files = {s.value: folder / f"{s.name}.nrrd" for s in SEGMENTS}
        return {value: of_image(sitk.ReadImage(str(file))) for value, file in files.items()}

    return read
