"""Write a measurement report (PS3.16 TID 1500, Comprehensive 3D SR): the volume of every segment of a Segmentation."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage, generate_uid

from medunet.data.dicom import objects, plane_geometry
from medunet.data.dicom.codes import CATEGORIES, LEFT, RIGHT, Code
from medunet.data.dicom.objects import Algorithm, Segment, SourceImages
from medunet.types import IntArray, StrPath

_KIND = 3
_LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
_EMPTY = "The algorithm gave no voxel to this class."


def write_report(
    path: StrPath,
    labels: IntArray,
    source: SourceImages,
    segments: Sequence[Segment],
    algorithm: Algorithm,
    segmentation_uid: str,
    *,
    labelmap: bool = False,
) -> str:
    """Write the volumes of `labels` (planes, rows, columns) as a measurement report; return its SOP Instance UID.

    `segmentation_uid` is what `write_segmentation` returned for the same labels and segments (`labelmap` as there);
    each group refers to its segment there, under the same tracking identifiers. Volumes are in mm^3: voxels times
    pixel area times each plane's own share along the normal, so stacks need not be regular. A segment without a voxel
    has a group too, with volume 0 and a comment, so that a reader can tell "looked for, none found" from "not looked
    for". The report is complete, preliminary and unverified: no person has read it.

    Raises:
        GeometryError: labels, planes and headers do not fit together, or a single plane has no thickness.
        InputError: labels and segments do not fit together.
        ResourceError: the disk is full.
    """
    segments = tuple(segments)
    mapped = objects.segment_map(labels, source, segments)
    volumes = plane_geometry.volumes(
        mapped, plane_geometry.plane_geometry(source), plane_geometry.slice_thickness(source)
    ).tolist()
    sop_uid = str(generate_uid())
    header = objects.patient_and_study(source, objects.texts_of(segments, algorithm))
    segmentation = _segmentation(header, segmentation_uid, labelmap)
    groups = [
        _group(place, segment, volumes[place], algorithm, segmentation, source)
        for place, segment in enumerate(segments)
    ]
    content = sr.MeasurementReport(
        observation_context=_observer(algorithm),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    dataset = objects.quietly(
        sr.Comprehensive3DSR,
        evidence=[segmentation, *_evidence(source)],
        content=content[0],
        series_instance_uid=objects.series_uid(sop_uid),
        series_number=objects.series_number(source, _KIND),
        sop_instance_uid=sop_uid,
        instance_number=1,
        manufacturer=objects.MANUFACTURER,
        manufacturer_model_name=objects.long_string(algorithm.name),
        software_versions=objects.software_versions(algorithm),
        device_serial_number=objects.long_string(algorithm.digest),
        series_description=objects.description(algorithm),
        is_complete=True,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=None,
    )
    if "SpecificCharacterSet" in header:
        dataset.SpecificCharacterSet = header.SpecificCharacterSet
    objects.write_dataset(path, dataset)
    return sop_uid


def _segmentation(header: Dataset, uid: str, labelmap: bool) -> Dataset:
    """What the report has to know of the Segmentation, with the patient and study of both."""
    dataset = Dataset()
    dataset.update(header)
    dataset.SOPClassUID = _LABEL_MAP_SEGMENTATION if labelmap else SegmentationStorage
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = uid, objects.series_uid(uid)
    return dataset


def _evidence(source: SourceImages) -> list[Dataset]:
    """Every source image, for the Current Requested Procedure Evidence Sequence."""
    result = []
    for dataset in source.datasets:
        item = Dataset()
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            setattr(item, keyword, dataset[keyword].value)
        result.append(item)
    return result


def _observer(algorithm: Algorithm) -> sr.ObservationContext:
    """The model as the observer: a device whose UID follows from name, version and digest (TID 1004)."""
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=str(generate_uid(entropy_srcs=[algorithm.name, algorithm.version, algorithm.digest])),
        name=objects.long_string(algorithm.name),
        manufacturer_name=objects.MANUFACTURER,
        model_name=objects.long_string(f"{algorithm.name} {algorithm.version}"),
        serial_number=objects.long_string(algorithm.digest),
    )
    return sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device))


def _group(
    place: int, segment: Segment, volume: float, algorithm: Algorithm, segmentation: Dataset, source: SourceImages
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Volumetric ROI Measurements (TID 1411) of one segment; `volume` in mm^3."""
    number = place + 1
    uid = str(segmentation.SOPInstanceUID)
    tracking = sr.TrackingIdentifier(objects.tracking_uid(uid, number), objects.tracking_id(segment, number))
    measured = sr.Measurement(
        name=codes.SCT.Volume,
        value=round(volume, 3),
        unit=codes.UCUM.CubicMillimeter,
        method=codes.DCM.SumOfSegmentedVoxelMethodForVolume,
    )
    group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking,
        referenced_segment=sr.ReferencedSegment(
            segmentation.SOPClassUID, uid, number, source_series=_source_series(source)
        ),
        finding_category=_concept(segment.code.category),
        finding_type=_concept(segment.code.type),
        finding_sites=_sites(segment),
        algorithm_id=_algorithm(algorithm),
        measurements=[measured],
    )
    if volume == 0:
        group[0].ContentSequence.append(_comment(_EMPTY))
    return group


def _source_series(source: SourceImages) -> sr.SourceSeriesForSegmentation:
    return sr.SourceSeriesForSegmentation(str(source.first.SeriesInstanceUID))


def _algorithm(algorithm: Algorithm) -> sr.AlgorithmIdentification:
    """TID 4019."""
    name, version = objects.long_string(algorithm.name), objects.long_string(algorithm.version)
    return sr.AlgorithmIdentification(name, version, parameters=[f"sha256={algorithm.digest}"])


def _sites(segment: Segment) -> list[sr.FindingSite] | None:
    """The site of a structure that has a side or a part; a lesion's site is not known from its class."""
    modifier = segment.code.laterality
    if modifier is None or segment.code.category != CATEGORIES["structure"]:
        return None
    site = _concept(segment.code.type)
    if modifier in (LEFT, RIGHT):
        return [sr.FindingSite(site, laterality=_concept(modifier))]
    return [sr.FindingSite(site, topographical_modifier=_concept(modifier))]


def _comment(text: str) -> sr.TextContentItem:
    return sr.TextContentItem(name=codes.DCM.Comment, value=text, relationship_type=sr.RelationshipTypeValues.CONTAINS)


def _concept(code: Code) -> sr.CodedConcept:
    return sr.CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)
