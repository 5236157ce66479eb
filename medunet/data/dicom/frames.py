"""One record per image plane, from classic single-frame objects and enhanced multi-frame objects alike.

Values are read as numbers or refused in words; nothing is filled in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydicom.multival import MultiValue
from pydicom.uid import UID

from medunet.data.dicom.files import DicomFile, PixelSpan
from medunet.data.dicom.header import text
from medunet.data.dicom.location import one_line

COLOUR = "is a colour picture"
_MOST_FRAMES = 100_000
_MOST_PIXELS = 1 << 26  # of a plane: 8192 x 8192
_LEAST_PIXEL = 1e-4  # mm
_MOST_VALUE = 1e9  # of RescaleSlope and RescaleIntercept: int32 and float32 hold what they give
_PHYSICAL = ("CT", "PT")  # modalities that must say how stored values become HU or Bq/ml (PS3.3 C.8.2.1, C.8.9.4)
_HOUNSFIELD = ("HU", "US", "UNSPECIFIED", "HOUNSFIELD", "HOUNSFIELD UNITS")  # units of CT; US is unspecified
_RLE = "1.2.840.10008.1.2.5"  # two bytes stand for 128 at most (PS3.5 G.3.1)
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Frame:
    """A plane of pixels and where it lies (DICOM patient coordinates, LPS mm; PS3.3 C.7.6.2).

    `position` is the centre of the first pixel; `orientation` the direction of the columns (along a row) and of the
    rows; `spacing` the distance between rows and between columns in mm. None is what the file does not say.
    """

    file: DicomFile
    number: int
    sop_uid: str
    rows: int
    columns: int
    position: Triple | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    thickness: float | None
    slope: float
    intercept: float
    keys: Mapping[str, Any] = field(repr=False)
    problem: str = ""


class _BadValueError(ValueError):
    """An element whose value cannot be used."""


def frames_of(file: DicomFile) -> list[Frame]:
    """The planes of an image object, each with the first problem that forbids its use."""
    header = file.header
    try:
        count = _integer(header, "NumberOfFrames", 1)
        if not 1 <= count <= _MOST_FRAMES:
            raise _BadValueError(f"NumberOfFrames is {count}")
        if "PerFrameFunctionalGroupsSequence" in header:
            return _enhanced(file, count)
        frame = _frame(file, 0, [header])
        if count > 1:
            frame = _with_problem(frame, f"is one object of {count} frames without a position for each")
        return [frame]
    except _BadValueError as error:
        return [unusable(file, str(error))]
    except Exception as error:  # pydicom raises many kinds when it converts broken values
        return [unusable(file, f"its header is broken ({type(error).__name__}: {one_line(error, 120)})")]


def _enhanced(file: DicomFile, count: int) -> list[Frame]:
    """Frames of an enhanced object: each function group stands per frame, or once for all (PS3.3 C.7.6.16)."""
    header = file.header
    groups = header.PerFrameFunctionalGroupsSequence
    if len(groups) != count:
        raise _BadValueError(f"NumberOfFrames is {count} and {len(groups)} frames are described")
    shared = header.get("SharedFunctionalGroupsSequence") or []
    common = _flattened(shared[0]) if len(shared) else []
    return [_frame(file, number, [*_flattened(group), *common, header]) for number, group in enumerate(groups)]


def _flattened(group: Any) -> list[Any]:
    """The first item of every sequence of a functional group."""
    items = []
    for element in group:
        if element.VR == "SQ" and element.value:
            items.append(element.value[0])
            items += [e.value[0] for e in element.value[0] if e.VR == "SQ" and e.value]
    return items


def _frame(file: DicomFile, number: int, places: Sequence[Any]) -> Frame:
    """A frame whose elements are looked up in `places`, nearest first."""
    header = file.header
    rows, columns = _integer(header, "Rows"), _integer(header, "Columns")
    if rows < 1 or columns < 1:
        raise _BadValueError(f"has {rows} rows and {columns} columns")
    if rows * columns > _MOST_PIXELS:
        raise _BadValueError(f"has {rows} x {columns} pixels, more than any image of a volume")
    position = _numbers(places, "ImagePositionPatient", 3)
    orientation = _numbers(places, "ImageOrientationPatient", 6)
    spacing = _numbers(places, "PixelSpacing", 2)
    thickness = _numbers(places, "SliceThickness", 1)
    slope, intercept = _numbers(places, "RescaleSlope", 1), _numbers(places, "RescaleIntercept", 1)
    return Frame(
        file=file,
        number=number,
        sop_uid=str(header.get("SOPInstanceUID", "")),
        rows=rows,
        columns=columns,
        position=None if position is None else (position[0], position[1], position[2]),
        orientation=orientation,
        spacing=None if spacing is None else (spacing[0], spacing[1]),
        thickness=thickness[0] if thickness and thickness[0] > 0 else None,
        slope=1.0 if slope is None else slope[0],
        intercept=0.0 if intercept is None else intercept[0],
        keys=_keys(places),
        problem=_problem(file, position, orientation, spacing)
        or _rescaling_problem(header, slope, intercept)
        or _unit_problem(places),
    )


def _problem(file: DicomFile, position: Any, orientation: Any, spacing: Any) -> str:
    """What forbids the use of a plane, in a few words; empty when nothing does."""
    missing = [
        name
        for name, value in (
            ("ImagePositionPatient", position), ("ImageOrientationPatient", orientation), ("PixelSpacing", spacing),
        )
        if value is None
    ]  # fmt: skip
    if missing:
        return f"has no {' and no '.join(missing)}"
    if min(spacing) < _LEAST_PIXEL:
        return f"PixelSpacing is {spacing[0]:g} x {spacing[1]:g} mm"
    if max(abs(p) for p in position) > 1e6 or max(spacing) > 1e4:
        return "its position or spacing is beyond all measure"
    return _pixel_problem(file) or _orientation_problem(orientation) or _mosaic_problem(file.header)


def _mosaic_problem(header: Any) -> str:
    """Siemens lays the slices of a volume side by side in one picture, whose position is not theirs."""
    kind = header.get("ImageType") or ()
    mosaic = "MOSAIC" in ([kind] if isinstance(kind, str) else kind)
    return "is a Siemens mosaic, many slices in one picture; export it as single slices" if mosaic else ""


def _rescaling_problem(header: Any, slopes: Sequence[float] | None, intercepts: Sequence[float] | None) -> str:
    if text(header, "Modality") in _PHYSICAL and (slopes is None or intercepts is None):
        return f"has no {'RescaleSlope' if slopes is None else 'RescaleIntercept'}, so that its values have no unit"
    slope, intercept = (slopes or (1.0,))[0], (intercepts or (0.0,))[0]
    if slope == 0 or abs(slope) > _MOST_VALUE:
        return f"RescaleSlope is {slope:g}"
    return f"RescaleIntercept is {intercept:g}" if abs(intercept) > _MOST_VALUE else ""


def _unit_problem(places: Sequence[Any]) -> str:
    """CT objects also hold maps of iodine, atomic number or electron density (PS3.3 C.11.1.1.2)."""
    unit = (_first(places, "RescaleType") or "US").strip()
    if text(places[-1], "Modality") != "CT" or unit.upper() in _HOUNSFIELD:
        return ""
    return f"RescaleType is {one_line(unit, 20)}, not HU; give the series of CT numbers of this scan"


def _orientation_problem(orientation: Sequence[float]) -> str:
    """PS3.3 C.7.6.2.1.1: both directions are unit vectors and orthogonal."""
    row, column = orientation[:3], orientation[3:]
    lengths = [math.sqrt(sum(v * v for v in vector)) for vector in (row, column)]
    if max(abs(length - 1) for length in lengths) > 0.01:
        return f"ImageOrientationPatient has vectors of length {lengths[0]:.3g} and {lengths[1]:.3g}, not 1"
    cosine = sum(a * b for a, b in zip(row, column, strict=True))
    return (
        f"ImageOrientationPatient has vectors that are not orthogonal (cosine {cosine:.3g})"
        if abs(cosine) > 0.01
        else ""
    )


def _pixel_problem(file: DicomFile) -> str:
    header = file.header
    if file.pixels is None:
        return "has no pixel data"
    if file.pixels.problem:
        return file.pixels.problem
    if _integer(header, "SamplesPerPixel", 1) != 1 or not _is_grey(header):
        return COLOUR
    if "ModalityLUTSequence" in header:
        return "maps its values with a ModalityLUTSequence, which is not read"
    return _bits_problem(header) or _amount_problem(file, file.pixels)


def _is_grey(header: Any) -> bool:
    return str(header.get("PhotometricInterpretation") or "MONOCHROME2").strip() in ("MONOCHROME1", "MONOCHROME2")


def _bits_problem(header: Any) -> str:
    """What does not fit in how a value is stored (PS3.5 section 8.1.1)."""
    bits, stored, high = bits_of(header)
    if bits not in (8, 16, 32) or not 1 <= stored <= bits:
        return f"has {stored} of {bits} bits per pixel, which is not read"
    sign = _integer(header, "PixelRepresentation", 0)
    if not stored - 1 <= high < bits:
        return f"HighBit is {high} where {stored} of {bits} bits are stored"
    return f"PixelRepresentation is {sign}, neither 0 nor 1" if sign not in (0, 1) else ""


def bits_of(header: Any) -> tuple[int, int, int]:
    """BitsAllocated, BitsStored and HighBit of a header, with what stands for an absent or an empty one of the last."""
    allocated = _integer(header, "BitsAllocated")
    stored = _integer(header, "BitsStored", allocated)
    return allocated, stored, _integer(header, "HighBit", stored - 1)


def _amount_problem(file: DicomFile, pixels: PixelSpan) -> str:
    """Pixel data that is not what the header describes; padding of less than a row is not asked about."""
    header = file.header
    count, row = _integer(header, "NumberOfFrames", 1), _integer(header, "Columns") * _integer(header, "BitsAllocated")
    needed = _integer(header, "Rows") * row // 8 * count
    if pixels.length is None:
        if file.syntax in _NATIVE:
            return f"its transfer syntax is {_syntax_name(file)} and its pixel data is encapsulated"
        few = f"its compressed pixel data has {pixels.fragments} fragments, {count} are needed"
        many = f"its compressed pixel data has {pixels.size} bytes for a picture of {needed}"
        unlikely = pixels.size > 2 * needed + 4096 * count or (file.syntax == _RLE and 64 * pixels.size < needed)
        return few if pixels.fragments < count else many if unlikely else ""
    if file.syntax not in _NATIVE:
        return f"its transfer syntax is {_syntax_name(file)} and its pixel data is not encapsulated"
    if needed <= pixels.length < needed + max(row // 8, 2):
        return ""
    return f"its pixel data has {pixels.length} bytes, {needed} are needed"


def _syntax_name(file: DicomFile) -> str:
    return one_line(UID(file.syntax).name)


def _keys(places: Sequence[Any]) -> dict[str, Any]:
    """What may tell apart images that lie at the same place."""
    header = places[-1]
    kind = next((p.FrameType for p in places if "FrameType" in p), header.get("ImageType")) or ()
    return {
        "temporal position": _first(places, "TemporalPositionIdentifier", "TemporalPositionIndex"),
        "echo": _first(places, "EchoNumbers", "EffectiveEchoTime", "EchoTime"),
        "b-value": _first(places, "DiffusionBValue"),
        "image type": "/".join(str(part) for part in kind),
        "stack": _first(places, "StackID"),
        "acquisition": _first(places, "AcquisitionNumber", "FrameAcquisitionNumber"),
        "inversion time": _first(places, "InversionTime"),
        "trigger time": _first(places, "TriggerTime", "NominalCardiacTriggerDelayTime"),
        "kernel": _first(places, "ConvolutionKernel"),
        "acquisition time": _first(places, "AcquisitionTime"),
        "series time": _first(places, "SeriesTime"),
    }


def _first(places: Sequence[Any], *keywords: str) -> str | None:
    for keyword in keywords:
        for place in places:
            value = place.get(keyword)
            if value not in (None, ""):
                return "/".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    return None


def _numbers(places: Sequence[Any], keyword: str, count: int) -> tuple[float, ...] | None:
    """Finite numbers of the nearest place that has the element; None where none has it."""
    value = next((place.get(keyword) for place in places if place.get(keyword) not in (None, "")), None)
    if value is None:
        return None
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError) as error:
        raise _BadValueError(f"{keyword} is not numbers ({one_line(value, 40)})") from error
    if len(numbers) < count or (count > 1 and len(numbers) != count) or not all(map(math.isfinite, numbers)):
        raise _BadValueError(f"{keyword} is {', '.join(map(str, numbers))[:60]}, not {count} finite numbers")
    return numbers[:count]


def _integer(header: Any, keyword: str, default: int | None = None) -> int:
    value = header.get(keyword)
    if value in (None, ""):
        if default is None:
            raise _BadValueError(f"has no {keyword}")
        return default
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise _BadValueError(f"{keyword} is not a whole number ({one_line(value, 40)})") from error


def unusable(file: DicomFile, problem: str) -> Frame:
    """The one plane of an object of which only its problem is known."""
    return Frame(file, 0, text(file.header, "SOPInstanceUID"), 0, 0, None, None, None, None, 1.0, 0.0, {}, problem)


def _with_problem(frame: Frame, problem: str) -> Frame:
    return replace(frame, problem=problem)
