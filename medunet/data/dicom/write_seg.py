"""Write a DICOM Segmentation (PS3.3 A.51, C.8.20): coded labels on the source's own planes, every source named."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as SrCode
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medunet.data.dicom import objects, plane_geometry
from medunet.data.dicom.codes import Code
from medunet.data.dicom.objects import Algorithm, Segment, SourceImages
from medunet.data.dicom.plane_geometry import PlaneGeometry
from medunet.types import IntArray, StrPath

_COMPRESSION = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_KIND = 1


def write_segmentation(
    path: StrPath,
    labels: IntArray,
    source: SourceImages,
    segments: Sequence[Segment],
    algorithm: Algorithm,
    *,
    labelmap: bool = False,
) -> str:
    """Write `labels` (planes, rows, columns) as one Segmentation object and return its SOP Instance UID.

    Segment numbers are 1, 2, ... in the order of `segments`. Every segment is declared, also one without a voxel;
    frames without a voxel are left out. When no segment has a voxel at all, the middle plane is written empty (once
    for each segment), since an image needs a frame. `labelmap` writes the newer Label Map Segmentation Storage, one
    frame for each plane, which fewer systems read. Transfer syntax: explicit VR little endian.

    Raises:
        GeometryError: labels, planes and headers do not fit together, or planes are not parallel.
        InputError: labels and segments do not fit together.
        ResourceError: the disk is full.
    """
    segments = tuple(segments)
    mapped = objects.segment_map(labels, source, segments)
    geometry = plane_geometry.plane_geometry(source)
    sop_uid = str(generate_uid())
    chosen = list(range(len(mapped.numbers))) if mapped.voxels.any() else [len(mapped.numbers) // 2]
    header = objects.patient_and_study(source, objects.texts_of(segments, algorithm))
    described = [_description(place, segment, algorithm, sop_uid) for place, segment in enumerate(segments)]
    dataset = objects.quietly(
        Segmentation,
        source_images=_stand_ins(source, geometry, header, chosen),
        pixel_array=mapped.numbers[chosen],
        segmentation_type="LABELMAP" if labelmap else "BINARY",
        segment_descriptions=described,
        series_instance_uid=objects.series_uid(sop_uid),
        series_number=objects.series_number(source, _KIND),
        sop_instance_uid=sop_uid,
        instance_number=1,
        manufacturer=objects.MANUFACTURER,
        manufacturer_model_name=objects.long_string(algorithm.name),
        software_versions=objects.software_versions(algorithm),
        device_serial_number=objects.long_string(algorithm.digest),
        content_label="SEGMENTATION",
        content_description=objects.description(algorithm),
        series_description=objects.description(algorithm),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=bool(mapped.voxels.any()),
        specific_character_set=None,
    )
    _finish(dataset, source, header)
    objects.write_dataset(path, dataset)
    return sop_uid


def _description(place: int, segment: Segment, algorithm: Algorithm, sop_uid: str) -> SegmentDescription:
    """An item of the Segment Sequence (PS3.3 table C.8.20-4)."""
    number = place + 1
    item = SegmentDescription(
        segment_number=number,
        segment_label=objects.long_string(segment.name),
        segmented_property_category=sr_code(segment.code.category),
        segmented_property_type=sr_code(segment.code.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm_item(algorithm),
        tracking_uid=objects.tracking_uid(sop_uid, number),
        tracking_id=objects.tracking_id(segment, number),
        display_color=CIELabColor.from_rgb(*objects.colour(place)),
    )
    if segment.code.laterality is not None:
        modifier = objects.code_item(segment.code.laterality)
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return item


def algorithm_item(algorithm: Algorithm) -> AlgorithmIdentificationSequence:
    """The Algorithm Identification macro (PS3.3 table 10-19): the model, and what it ran in."""
    return AlgorithmIdentificationSequence(
        name=objects.long_string(algorithm.name),
        family=codes.cid7162.ArtificialIntelligence,
        version=objects.long_string(algorithm.version),
        source=f"{objects.MANUFACTURER} {objects.version()}",
        parameters={"sha256": algorithm.digest},
    )


def sr_code(code: Code) -> SrCode:
    """Our code as pydicom and highdicom take it."""
    return SrCode(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def _stand_ins(source: SourceImages, geometry: PlaneGeometry, header: Dataset, chosen: list[int]) -> list[Dataset]:
    """A small single-frame header for each plane, numbered by its UID.

    highdicom reads geometry and identity from the source images and stumbles over what real ones lack; these have what
    it asks for, and are equal for classic and multi-frame sources. `_finish` names the true images.
    """
    thickness = plane_geometry.slice_thickness(source)
    thickness = thickness if thickness is not None else _typical(geometry)
    images = []
    for plane in chosen:
        image = Dataset()
        image.update(header)
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, _stand_in_uid(plane)
        image.SeriesInstanceUID = source.first.SeriesInstanceUID
        _, image.Rows, image.Columns = source.shape
        image.PixelSpacing, image.SliceThickness = objects.decimal_strings(geometry.spacing), thickness
        image.ImagePositionPatient = objects.decimal_strings(geometry.positions[plane])
        image.ImageOrientationPatient = objects.decimal_strings(geometry.orientation)
        for keyword in _COMPRESSION:
            if source.first.get(keyword):
                image[keyword] = source.first[keyword]
        images.append(image)
    return images


def _typical(geometry: PlaneGeometry) -> float | None:
    if len(geometry.positions) == 1:
        return None
    return float(sorted(geometry.shares(None))[len(geometry.positions) // 2])


def _stand_in_uid(plane: int) -> str:
    return f"2.25.{plane + 1}"


def _finish(dataset: Segmentation, source: SourceImages, header: Dataset) -> None:
    """Name the true source images, and state the character set."""
    true = {_stand_in_uid(plane): source.reference(plane) for plane in range(len(source.planes))}
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in frame.DerivationImageSequence:
            for image in derivation.SourceImageSequence:
                image.update(true.get(image.ReferencedSOPInstanceUID, Dataset()))
    dataset.SourceImageSequence = objects.instances(source)
    dataset.ReferencedSeriesSequence = objects.referenced_series(source)
    if "SpecificCharacterSet" in header:
        dataset.SpecificCharacterSet = header.SpecificCharacterSet
    size = (dataset.NumberOfFrames * dataset.Rows * dataset.Columns * dataset.BitsAllocated + 7) // 8
    if size % 2:  # highdicom pads with a character, PS3.5 8.1.1 wants zero
        dataset.PixelData = dataset.PixelData[:size] + b"\0"
