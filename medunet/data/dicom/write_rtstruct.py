"""Write an RT Structure Set (PS3.3 A.19): closed planar contours along the pixel edges, one region for each segment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from medunet.data.dicom import objects, plane_geometry
from medunet.data.dicom.codes import CATEGORIES
from medunet.data.dicom.contours import Points, outlines
from medunet.data.dicom.objects import Algorithm, Segment, SegmentMap, SourceImages
from medunet.data.dicom.plane_geometry import PlaneGeometry
from medunet.errors import GeometryError
from medunet.types import IntArray, StrPath

_KIND = 2
_MAX_ANGLE = 0.1
_DECIMALS = 4
_CONTOUR_DATA = Tag("ContourData")
_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management SOP Class: retired, and still what an RT Referenced Study has to name (PS3.3 C.8.8.5)."""


def write_rtstruct(
    path: StrPath, labels: IntArray, source: SourceImages, segments: Sequence[Segment], algorithm: Algorithm
) -> str:
    """Write `labels` (planes, rows, columns) as an RT Structure Set and return its SOP Instance UID.

    Contours follow the pixel edges, so whoever fills them by testing pixel centres gets every voxel back; holes are
    joined to the outside by a channel of no width (PS3.3 C.8.8.6.3). Coordinates are exact to 0.0001 mm. ROI numbers
    are 1, 2, ... in the order of `segments`; a segment without a voxel is an ROI without contours, with volume 0.
    Implicit VR little endian, since a contour can be longer than the 64 KiB that an explicit DS may hold.

    Raises:
        GeometryError: planes are not axial, or labels, planes and headers do not fit together.
        InputError: labels and segments do not fit together.
        ResourceError: the disk is full.
    """
    segments = tuple(segments)
    mapped = objects.segment_map(labels, source, segments)
    geometry = plane_geometry.plane_geometry(source)
    _require_axial(geometry)
    sop_uid = str(generate_uid())
    dataset = objects.patient_and_study(source, objects.texts_of(segments, algorithm))
    _general(dataset, source, algorithm, sop_uid)
    _structure_set(dataset, source, algorithm)
    dataset.StructureSetROISequence = [
        _roi(place, segment, source, algorithm) for place, segment in enumerate(segments)
    ]
    thickness = plane_geometry.slice_thickness(source)
    if thickness or len(source.planes) > 1:
        for roi, volume in zip(
            dataset.StructureSetROISequence, plane_geometry.volumes(mapped, geometry, thickness).tolist(), strict=True
        ):
            roi.ROIVolume = repr(round(volume / 1000, 6))  # cm^3
    dataset.ROIContourSequence = [_contours(place, mapped, geometry, source) for place in range(len(segments))]
    dataset.RTROIObservationsSequence = [_observation(place, segment) for place, segment in enumerate(segments)]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    objects.write_dataset(path, dataset)
    return sop_uid


def _require_axial(geometry: PlaneGeometry) -> None:
    angle = float(np.rad2deg(np.arccos(min(1.0, abs(geometry.normal[2])))))
    if angle > _MAX_ANGLE:
        raise GeometryError(
            f"the source planes are turned {angle:.1f} degrees from axial, and radiotherapy systems read contours on "
            "axial planes only; write DICOM SEG instead"
        )


def _general(dataset: Dataset, source: SourceImages, algorithm: Algorithm, sop_uid: str) -> None:
    """SOP Common, RT Series and General Equipment (PS3.3 C.12.1, C.8.8.1, C.7.5.1)."""
    date, time = objects.now()
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, sop_uid
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", objects.series_uid(sop_uid)
    dataset.SeriesNumber, dataset.InstanceNumber = objects.series_number(source, _KIND), 1
    dataset.SeriesDescription, dataset.OperatorsName = objects.description(algorithm), ""
    dataset.Manufacturer, dataset.ManufacturerModelName = objects.MANUFACTURER, objects.long_string(algorithm.name)
    dataset.SoftwareVersions = objects.software_versions(algorithm)
    dataset.DeviceSerialNumber = objects.long_string(algorithm.digest)


def _structure_set(dataset: Dataset, source: SourceImages, algorithm: Algorithm) -> None:
    """Structure Set and Approval (PS3.3 C.8.8.5, C.8.8.16): not approved by anyone, on the source's images."""
    dataset.StructureSetLabel = objects.long_string(algorithm.name, 16)
    dataset.StructureSetName = objects.description(algorithm)
    dataset.StructureSetDescription = f"{algorithm.name} {algorithm.version}, sha256 {algorithm.digest}"
    dataset.StructureSetDate, dataset.StructureSetTime = objects.now()
    dataset.ApprovalStatus = "UNAPPROVED"
    all_series = []
    for referenced in objects.referenced_series(source):
        series = Dataset()
        series.SeriesInstanceUID = referenced.SeriesInstanceUID
        series.ContourImageSequence = referenced.ReferencedInstanceSequence
        all_series.append(series)
    study, frame = Dataset(), Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _DETACHED_STUDY, source.first.StudyInstanceUID
    study.RTReferencedSeriesSequence = all_series
    frame.FrameOfReferenceUID = source.first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]


def _roi(place: int, segment: Segment, source: SourceImages, algorithm: Algorithm) -> Dataset:
    """An item of the Structure Set ROI Sequence."""
    item = Dataset()
    item.ROINumber, item.ROIName = place + 1, objects.long_string(segment.name)
    item.ReferencedFrameOfReferenceUID = source.first.FrameOfReferenceUID
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = objects.description(algorithm)
    return item


def _observation(place: int, segment: Segment) -> Dataset:
    """An item of the RT ROI Observations Sequence (PS3.3 C.8.8.8).

    Anatomy is of interpreted type ORGAN. Whether a lesion is a GTV is for a physician to say, so its type is left
    empty; the code says what it is.
    """
    item = Dataset()
    item.ObservationNumber, item.ReferencedROINumber = place + 1, place + 1
    item.RTROIInterpretedType = "ORGAN" if segment.code.category == CATEGORIES["structure"] else ""
    item.ROIInterpreter = ""
    item.SegmentedPropertyCategoryCodeSequence = [objects.code_item(segment.code.category)]
    code = objects.code_item(segment.code.type)
    if segment.code.laterality is not None:
        code.SegmentedPropertyTypeModifierCodeSequence = [objects.code_item(segment.code.laterality)]
    item.RTROIIdentificationCodeSequence = [code]
    return item


def _contours(place: int, mapped: SegmentMap, geometry: PlaneGeometry, source: SourceImages) -> Dataset:
    """An item of the ROI Contour Sequence (PS3.3 C.8.8.6)."""
    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = place + 1, list(objects.colour(place))
    contours: list[Dataset] = []
    for plane in np.flatnonzero(mapped.voxels[:, place]).tolist():
        for points in outlines(mapped.numbers[plane] == place + 1):
            contour = Dataset()
            contour.set_original_encoding(
                True, True, default_encoding
            )  # pydicom then writes the bytes below as they are
            contour.ContourImageSequence = [source.reference(plane)]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourNumber = len(contours) + 1
            contour[_CONTOUR_DATA] = _contour_data(points, geometry, plane)
            contours.append(contour)
    if contours:
        item.ContourSequence = contours
    return item


def _contour_data(points: Points, geometry: PlaneGeometry, plane: int) -> RawDataElement:
    """Corners as LPS mm in decimal strings, as bytes: a DS object for each number would take minutes for a CT."""
    steps = np.stack([geometry.orientation[:3] * geometry.spacing[1], geometry.orientation[3:] * geometry.spacing[0]])
    world = geometry.positions[plane] + (points - 0.5) @ steps
    values = np.round(world, _DECIMALS) + 0.0  # + 0.0: no minus before zero
    text = "\\".join(repr(value).removesuffix(".0") for value in values.ravel().tolist())
    data = (text + " " * (len(text) % 2)).encode("ascii")
    return RawDataElement(_CONTOUR_DATA, "DS", len(data), data, 0, True, True)
