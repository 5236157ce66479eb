"""Label objects of a case: SEG and RTSTRUCT on the grid of the image that they were drawn on."""

from __future__ import annotations

from pathlib import Path

from medunet.data.dicom.labels import label_map
from medunet.data.dicom.source import Source
from medunet.data.dicom.volumes import find_series, image_places, series_header
from medunet.data.volume import Volume
from medunet.errors import InputError
from medunet.types import StrPath


def read_label_source(source: StrPath) -> Volume:
    """The label map (1, x, y, z) of ``FILE#on=IMAGE&NAME=VALUE&...``; IMAGE is relative to the file's folder.

    The option ``threshold`` is the share of the maximum from which a FRACTIONAL segment's pixel counts.

    Raises:
        InputError: the source names no structure, or one that is not there.
        GeometryError: the label lies in another frame of reference, or the image is refused.
    """
    where = Source.parse(source)
    image = image_of(where)
    threshold = threshold_of(where)
    classes = {name: int(_number(where, name)) for name in where.options if name not in ("on", "threshold")}
    if not classes:
        raise InputError(f"{source}: names no structure; give FILE#on=IMAGE&NAME=VALUE")
    series = find_series(image)
    header = series_header(series)
    frame = str((header.verdict or {}).get("frame_of_reference", ""))
    found = label_map(where.path, header.grid, frame, classes, threshold, image_places(series))
    return Volume(found.array[None], header.grid, {**(header.verdict or {}), "label_notes": list(found.notes)})


def threshold_of(where: Source) -> float:
    """From which share of the maximum a FRACTIONAL segment's pixel counts.

    Raises:
        InputError: the source says something that is no number.
    """
    return _number(where, "threshold", 0.5)


def image_of(where: Source) -> str:
    """The image source that a label source lies on."""
    return str(Path(where.path.parent, where.options["on"]))


def _number(where: Source, option: str, default: float = 0.0) -> float:
    text = where.options.get(option)
    try:
        return default if text is None else float(text)
    except ValueError as error:
        raise InputError(f"{where}: {option} is '{text}'; give a number") from error
