"""What every written object shares: segments, algorithm and source as values; patient and study, UIDs, colours."""

from __future__ import annotations

import colorsys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import config, valuerep
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import generate_uid

from medunet.data.atomic import atomic_path
from medunet.data.dicom.codes import Code, SegmentCode
from medunet.errors import GeometryError, InputError
from medunet.types import FloatArray, IntArray, StrPath

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS millimetres of our grids <-> LPS millimetres of DICOM (PS3.3 C.7.6.2.1.1)."""

MANUFACTURER = "medunet"
_REQUIRED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "AccessionNumber", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
_OPTIONAL = (
    *("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved"),
    *("DeidentificationMethod", "StudyDescription", "PositionReferenceIndicator"),
)
_IDENTITY = ("PatientID", "PatientName", "AccessionNumber", "IssuerOfPatientID")

_OKABE_ITO = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)


@dataclass(frozen=True)
class Segment:
    """A class of the label map: its `value` in the array (1 or more; 0 is background), its name and its code."""

    value: int
    name: str
    code: SegmentCode


@dataclass(frozen=True)
class Algorithm:
    """What made the labels: name and version of the model, and the sha256 `digest` of its files."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True, eq=False)
class SourceImages:
    """The images that were segmented, in plane order.

    `datasets` are headers without pixel data: one for each plane of a classic series, or one multi-frame image with
    `frame_numbers` (from 1, one for each plane). `planes` is (n, 4, 4): pixel (column, row, 0, 1) -> RAS mm.

    Raises:
        GeometryError: the counts do not fit, a UID is missing, or a header contradicts its plane.
    """

    datasets: tuple[Dataset, ...]
    planes: npt.NDArray[np.float64]
    frame_numbers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        planes = np.array(self.planes, dtype=np.float64)
        if planes.ndim != 3 or planes.shape[1:] != (4, 4) or not len(planes) or not np.isfinite(planes).all():
            raise GeometryError(f"planes of the source images have shape {planes.shape}; give one finite 4x4 for each")
        if self.frame_numbers is None and len(self.datasets) == 1 and "PerFrameFunctionalGroupsSequence" in self.first:
            object.__setattr__(self, "frame_numbers", tuple(range(1, len(planes) + 1)))
        found = len(self.datasets) if self.frame_numbers is None else len(self.frame_numbers)
        if found != len(planes) or (self.frame_numbers is not None and len(self.datasets) != 1):
            images = f"{len(self.datasets)} headers and {found} frames"
            raise GeometryError(f"source images have {images} for {len(planes)} planes; give one for each plane")
        planes.setflags(write=False)
        object.__setattr__(self, "planes", planes)
        for keyword in (
            "SOPClassUID",
            "SOPInstanceUID",
            "StudyInstanceUID",
            "SeriesInstanceUID",
            "FrameOfReferenceUID",
        ):
            if any(not dataset.get(keyword) for dataset in self.datasets):
                raise GeometryError(f"a source image has no {keyword}; write NIfTI instead, or repair the series")

    @property
    def first(self) -> Dataset:
        """The header that patient and study are taken from."""
        return self.datasets[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planes, rows, columns."""
        return len(self.planes), int(self.first.Rows), int(self.first.Columns)

    def header(self, plane: int) -> tuple[Dataset, int | None]:
        """The dataset of a plane, and its frame number in a multi-frame image."""
        if self.frame_numbers is None:
            return self.datasets[plane], None
        return self.datasets[0], self.frame_numbers[plane]

    def reference(self, plane: int) -> Dataset:
        """SOP Class, Instance and frame of a plane (PS3.3 table 10-3)."""
        dataset, frame = self.header(plane)
        item = Dataset()
        item.ReferencedSOPClassUID = dataset.SOPClassUID
        item.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
        if frame is not None:
            item.ReferencedFrameNumber = frame
        return item


@dataclass(frozen=True, eq=False)
class SegmentMap:
    """Labels as segment numbers.

    `numbers` is (planes, rows, columns): 0, or 1 + the place in the list of segments; `voxels` is (planes, segments).
    """

    numbers: IntArray
    voxels: npt.NDArray[np.int64]


def segment_map(labels: IntArray, source: SourceImages, segments: tuple[Segment, ...]) -> SegmentMap:
    """Number the labels 1, 2, ... in the order of `segments`, and count their voxels.

    Raises:
        GeometryError: the labels do not lie on the planes of the source.
        InputError: no segments, a value twice, or a value in the labels that no segment has.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels are of type {labels.dtype}; give whole numbers")
    if labels.shape != source.shape:
        raise GeometryError(
            f"labels have shape {labels.shape}, the source images {source.shape} (planes, rows, columns)"
        )
    values = [segment.value for segment in segments]
    if not values or min(values) < 1 or max(values) > 65535 or len(set(values)) != len(values):
        raise InputError(f"segments have the values {values}; give each its own value from 1 to 65535")
    lookup = np.full(65536, -1, dtype=np.int32)
    lookup[0] = 0
    lookup[values] = np.arange(1, len(values) + 1)
    numbers = np.zeros(labels.shape, dtype=np.uint8 if len(values) < 256 else np.uint16)
    voxels = np.zeros((len(labels), len(values)), dtype=np.int64)
    for index, plane in enumerate(labels):
        if plane.min() < 0 or plane.max() > 65535:
            raise InputError(
                f"plane {index} of the labels has values beyond 0 to 65535; labels are small whole numbers"
            )
        numbered = lookup[plane]
        if numbered.min() < 0:
            unknown = int(plane[numbered < 0][0])
            raise InputError(
                f"plane {index} of the labels has the value {unknown}, which no segment has; add the segment"
            )
        numbers[index] = numbered
        voxels[index] = np.bincount(numbered.ravel(), minlength=len(values) + 1)[1:]
    return SegmentMap(numbers, voxels)


def patient_and_study(source: SourceImages, texts: list[str]) -> Dataset:
    """Patient, study and frame of reference of the source; what is missing or unusable of type 2 is empty.

    Identifiers are kept even when they break a length rule. The character set is the source's, or UTF-8 when one of our
    own `texts` needs it.
    """
    first = source.first
    result = Dataset()
    charset = first.get("SpecificCharacterSet")
    if not all(text.isascii() for text in texts):
        charset = "ISO_IR 192"
    if charset:
        result.SpecificCharacterSet = charset
    for keyword in _REQUIRED + _OPTIONAL:
        value = _usable(first, keyword)
        if value is not None or keyword in _REQUIRED:
            setattr(result, keyword, value if value is not None else "")
    result.StudyInstanceUID = first.StudyInstanceUID
    result.FrameOfReferenceUID = first.FrameOfReferenceUID
    if "PositionReferenceIndicator" not in result:
        result.PositionReferenceIndicator = ""
    return result


def _usable(dataset: Dataset, keyword: str) -> Any:
    try:
        element = dataset[keyword]
    except (KeyError, ValueError, TypeError):
        return None
    value = element.value
    if isinstance(value, MultiValue):  # a backslash where only one value may stand
        return "\\".join(map(str, value)) if keyword in _IDENTITY and value else None
    if value is None or str(value) == "":
        return None
    if element.VR == "PN" or keyword in _IDENTITY:
        return str(value)
    if keyword == "PatientSex" and value not in ("M", "F", "O"):
        return None
    try:
        valuerep.validate_value(element.VR, str(value), config.RAISE)
        if element.VR == "DA":
            valuerep.DA(str(value))
        if element.VR == "TM":
            valuerep.TM(str(value))
    except (ValueError, TypeError):
        return None
    return value


def instances(source: SourceImages) -> list[Dataset]:
    """SOP Class and Instance of every source image, once each, also those where nothing was segmented."""
    result = []
    for dataset in source.datasets:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        result.append(item)
    return result


def referenced_series(source: SourceImages) -> list[Dataset]:
    """The Common Instance Reference module (PS3.3 C.12.2): every source image under its series."""
    by_series: dict[str, list[Dataset]] = {}
    for dataset, item in zip(source.datasets, instances(source), strict=True):
        by_series.setdefault(str(dataset.SeriesInstanceUID), []).append(item)
    result = []
    for uid, items in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID, series.ReferencedInstanceSequence = uid, items
        result.append(series)
    return result


def series_uid(sop_uid: str) -> str:
    """The Series Instance UID of an object of ours: it has a series of its own, known from its SOP Instance UID."""
    return str(generate_uid(entropy_srcs=[sop_uid, "series"]))


def tracking_uid(segmentation_uid: str, number: int) -> str:
    """The Tracking UID of a segment of one SEG object: what the SEG, its report and later studies call the finding."""
    return str(generate_uid(entropy_srcs=[segmentation_uid, "segment", str(number)]))


def tracking_id(segment: Segment, number: int) -> str:
    """The Tracking Identifier of a segment, for people."""
    return f"{number} {segment.name}"


def series_number(source: SourceImages, kind: int) -> int:
    """A series number beside the source's: 100 times its number, plus `kind`."""
    try:
        number = int(source.first.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    return min(max(number, 0) * 100 + kind, 2**31 - 1)


def description(algorithm: Algorithm) -> str:
    """Series and content description (LO)."""
    return long_string(f"{algorithm.name} {algorithm.version} (medunet {version()})")


def software_versions(algorithm: Algorithm) -> list[str]:
    """Software Versions (LO, up to 64 characters each): medunet, then the model."""
    return [f"medunet {version()}", long_string(f"{algorithm.name} {algorithm.version}")]


def version() -> str:
    """The version of medunet."""
    try:
        return metadata.version("medunet")
    except metadata.PackageNotFoundError:
        return "unknown"


def long_string(text: str, limit: int = 64) -> str:
    """Text as DICOM's LO allows it: one line, no backslash, at most `limit` characters, not empty."""
    clean = "".join(c if c.isprintable() and c != "\\" else " " for c in text).strip()
    return clean[:limit].rstrip() or "unnamed"


def code_item(code: Code) -> Dataset:
    """A code as an item of a code sequence (PS3.3 table 8.8-1)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def colour(place: int) -> tuple[int, int, int]:
    """The RGB colour of the segment at `place` (from 0): the seven of Okabe and Ito (2008), then spread-out hues."""
    if place < len(_OKABE_ITO):
        return _OKABE_ITO[place]
    turn = place - len(_OKABE_ITO)
    red, green, blue = colorsys.hls_to_rgb(turn * 0.618034 % 1.0, (0.42, 0.62, 0.78)[turn % 3], 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def decimal_strings(values: FloatArray) -> list[str]:
    """Numbers as DICOM's DS, at most 16 characters, as exact as that allows."""
    return [valuerep.format_number_as_ds(float(value)) for value in values]


def now() -> tuple[str, str]:
    """Date and time as DA and TM."""
    time = datetime.now()
    return time.strftime("%Y%m%d"), time.strftime("%H%M%S")


def write_dataset(path: StrPath, dataset: Dataset) -> None:
    """Write a whole DICOM file (PS3.10) at `path`, atomically."""
    with atomic_path(path) as temporary:
        pydicom.dcmwrite(Path(temporary), dataset, enforce_file_format=True)


def quietly(make: Callable[..., Any], **arguments: Any) -> Any:
    """Call a highdicom class without its advice on the patient's name, which is the hospital's and stays as it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*person name.*")
        return make(**arguments)


def texts_of(segments: tuple[Segment, ...], algorithm: Algorithm) -> list[str]:
    """Every text of ours that an object will hold."""
    codes = [c for s in segments for c in (s.code.category, s.code.type, s.code.laterality) if c is not None]
    return [algorithm.name, algorithm.version, *(s.name for s in segments), *(c.meaning for c in codes)]
