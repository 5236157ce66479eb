"""A label map on a series' grid as the DICOM objects that a PACS takes: SEG with its report, or RTSTRUCT."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data.dicom.codes import SegmentCode, find_code, generic_code
from medunet.data.dicom.files import quiet, read_full_header
from medunet.data.dicom.objects import Algorithm, Segment, SourceImages
from medunet.data.dicom.scan import Series
from medunet.data.dicom.volumes import to_planes
from medunet.data.grid import Grid
from medunet.errors import GeometryError, InputError
from medunet.types import IntArray

_REFERRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_AXIAL = np.cos(np.radians(0.1))


def source_images(series: Series) -> SourceImages:
    """The whole headers of a series' images, and where their planes lie; duplicates that reading left out stay out.

    Raises:
        GeometryError: a header lacks what an object must refer to.
        InputError: a series mixes single images and multi-frame objects.
    """
    frames = series.ordered()
    files = list(dict.fromkeys(frame.file.location for frame in frames))
    planes = series.layout.planes.astype(np.float64)
    if len(files) == len(frames) and "PerFrameFunctionalGroupsSequence" not in frames[0].file.header:
        return SourceImages(tuple(read_full_header(frame.file.location) for frame in frames), planes)
    _require_one_object(series)
    return SourceImages((read_full_header(files[0]),), planes, tuple(frame.number + 1 for frame in frames))


def _require_one_object(series: Series) -> None:
    """Refuse a volume of several multi-frame objects: what is written refers to the frames of one."""
    files = {
        frame.file.location for frame in series.ordered() if "PerFrameFunctionalGroupsSequence" in frame.file.header
    }
    if len(files) > 1:
        raise InputError(f"{series.folder}: {series.name} is spread over {len(files)} multi-frame objects; write NIfTI")


def require_writable(series: Series, output_format: str) -> None:
    """Refuse, before time is spent, what `write_result` could not write.

    Raises:
        InputError: highdicom is not installed, or the images are in several multi-frame objects.
        GeometryError: images lack the UIDs that an object refers to, or share them, or an RTSTRUCT is asked of planes
            that are not axial.
    """
    if output_format == "dicom-seg" and find_spec("highdicom") is None:
        raise InputError("highdicom is missing, which writes DICOM SEG; install it: pip install 'medunet[dicom]'")
    _require_one_object(series)
    _require_uids(series, output_format)
    normal = series.layout.planes[0][:3, 2]
    if output_format == "rtstruct" and abs(normal[2]) < _AXIAL:
        raise GeometryError(
            f"{series.folder}: {series.name} is not axial (its normal is {np.round(normal, 3).tolist()}), and RTSTRUCT "
            f"readers expect axial planes; write dicom-seg"
        )


def _require_uids(series: Series, output_format: str) -> None:
    """Every image has the UIDs that an object refers to, and one of its own."""
    for frame in series.ordered():
        missing = [key for key in _REFERRED if not frame.file.header.get(key)]
        if missing:
            raise GeometryError(
                f"{frame.file.location}: has no {missing[0]}, which {output_format} refers to; write nifti"
            )
    files = {frame.file.location: frame.sop_uid for frame in series.ordered()}
    own = len(set(files.values()))
    if own < len(files):
        raise GeometryError(
            f"{series.folder}: {series.name} has {len(files)} images and {own} SOPInstanceUIDs, so that "
            f"{output_format} cannot say which image it means; write nifti"
        )


def segments_of(labels: Mapping[str, int], codes: Mapping[str, Any]) -> tuple[list[Segment], list[str]]:
    """The segments of a label table (background first, not a segment), and a warning for each without a real code.

    `codes` are a plan's: class name -> category, type and laterality.
    """
    segments, warnings = [], []
    for place, (name, value) in enumerate(labels.items()):
        if place == 0:
            continue
        code = SegmentCode.from_json(codes[name]) if name in codes else code_of(name)
        if code == generic_code(name):
            warnings.append(
                f"class '{name}' has no anatomical code, it is written as {code.type.meaning}; "
                f"plan with --set 'codes={{{name}: {{type: [VALUE, SCT, MEANING]}}}}'"
            )
        segments.append(Segment(value, name, code))
    return segments, warnings


def code_of(name: str) -> SegmentCode:
    """The standard code of a class name, or the generic one."""
    return find_code(name) or generic_code(name)


def write_result(
    path: Path,
    labels: IntArray,
    grid: Grid,
    series: Series,
    segments: list[Segment],
    algorithm: Algorithm,
    output_format: str,
    *,
    labelmap: bool = False,
) -> None:
    """Write labels (x, y, z) on the series' grid as ``dicom-seg`` (and ``NAME_report.dcm``) or ``rtstruct``.

    Raises:
        GeometryError: the labels lie on another grid, or the object cannot hold these planes.
        ResourceError: the disk is full.
    """
    with quiet():
        _write(
            path, to_planes(labels, grid, series), source_images(series), segments, algorithm, output_format, labelmap
        )


def _write(
    path: Path,
    planes: IntArray,
    source: SourceImages,
    segments: list[Segment],
    algorithm: Algorithm,
    output_format: str,
    labelmap: bool,
) -> None:
    if output_format == "rtstruct":
        from medunet.data.dicom.write_rtstruct import write_rtstruct

        write_rtstruct(path, planes, source, segments, algorithm)
        return
    from medunet.data.dicom.write_report import write_report
    from medunet.data.dicom.write_seg import write_segmentation

    uid = write_segmentation(path, planes, source, segments, algorithm, labelmap=labelmap)
    report = path.with_name(path.name.removesuffix(".dcm").removesuffix("_seg") + "_report.dcm")
    write_report(report, planes, source, segments, algorithm, uid, labelmap=labelmap)
