"""The files of a folder, zip or DICOMDIR, and the headers of those that are DICOM (PS3.10).

A hostile or broken file costs no more memory than its own size: reads never pass its end.
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom import config
from pydicom.tag import Tag

from medunet.errors import InputError
from medunet.types import StrPath

_MAGIC = b"DICM"
_BARE_STARTS = (b"\x08\x00", b"\x02\x00", b"\x00\x08", b"\x00\x02")  # group 0008 or 0002, either byte order
_KEYWORDS = (
    "AcquisitionDate", "AcquisitionDateTime", "AcquisitionNumber", "AcquisitionTime", "BitsAllocated", "BitsStored",
    "Columns", "ContentTime", "CorrectedImage", "DecayCorrection", "DiffusionBValue", "DirectoryRecordSequence",
    "EchoNumbers", "EchoTime", "FrameOfReferenceUID", "GantryDetectorTilt", "HighBit", "ImageOrientationPatient",
    "ImagePositionPatient", "ImageType", "InversionTime", "LossyImageCompression", "Manufacturer", "Modality",
    "ModalityLUTSequence", "NumberOfFrames", "PatientID", "PatientWeight", "PatientPosition",
    "PerFrameFunctionalGroupsSequence", "PhotometricInterpretation", "PixelRepresentation", "PixelSpacing",
    "RadiopharmaceuticalInformationSequence", "RescaleIntercept", "RescaleSlope", "RescaleType", "Rows",
    "SamplesPerPixel", "SeriesDate", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "SeriesTime",
    "SharedFunctionalGroupsSequence", "SliceThickness", "SOPClassUID", "SOPInstanceUID", "SpacingBetweenSlices",
    "SUVType", "StackID", "StudyInstanceUID", "TemporalPositionIdentifier", "TriggerTime", "Units",
)  # fmt: skip
_PHILIPS = (Tag(0x7053, 0x0010), Tag(0x7053, 0x1000), Tag(0x7053, 0x1009))
_GE = (Tag(0x0009, 0x0010), Tag(0x0009, 0x100D))
_TAGS: list[Any] = [*_KEYWORDS, *_PHILIPS, *_GE]
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"UC", b"UR", b"UT", b"SQ")
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Location:
    """A file, or a member of a zip archive."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @contextmanager
    def open(self) -> Iterator[BoundedFile]:
        """The bytes, for reading; never more than are there."""
        if self.member:
            content = _archive(self.path, self.path.stat().st_mtime_ns).read(self.member)
            yield BoundedFile(io.BytesIO(content), len(content))
        else:
            with self.path.open("rb", buffering=1 << 16) as file:
                yield BoundedFile(file, self.path.stat().st_size)


class BoundedFile:
    """A binary file whose reads stop at its end, whatever length was asked for.

    A header may claim an element of 4 GB: plain files would allocate that much before they notice.
    """

    def __init__(self, file: Any, size: int) -> None:
        self._file, self.size = file, size
        self.seek, self.tell, self.close, self.name = file.seek, file.tell, file.close, getattr(file, "name", "")

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes."""
        left = self.size - self._file.tell()
        content: bytes = self._file.read(max(0, left if count < 0 or count > left else count))
        return content

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; the number of bytes that were there."""
        return int(self._file.readinto(buffer))


@dataclass(frozen=True)
class PixelSpan:
    """Where the value of the pixel data element lies; `length` None for encapsulated (compressed) data."""

    offset: int
    length: int | None
    problem: str = ""


@dataclass(frozen=True)
class DicomFile:
    """A header (the elements that geometry and meaning need) and where its pixels lie."""

    location: Location
    header: Any
    syntax: str
    pixels: PixelSpan | None


@dataclass(frozen=True)
class NotRead:
    """A file that is set aside, and why."""

    location: str
    reason: str


def dicom_files(source: StrPath) -> tuple[list[DicomFile], list[NotRead]]:
    """Every DICOM file of a file, folder tree, DICOMDIR or zip; what is not DICOM is listed, not raised.

    Raises:
        InputError: the source is missing or a broken archive.
    """
    found: list[DicomFile] = []
    aside: list[NotRead] = []
    with quiet():
        for location in _locations(Path(source), aside):
            result = read_header_of(location)
            if isinstance(result, NotRead):
                aside.append(result)
            elif "DirectoryRecordSequence" in result.header:
                aside += _absent(result)
            else:
                found.append(result)
    return found, aside


def is_dicom_file(path: Path) -> bool:
    """Whether the file has the preamble of PS3.10, or starts as a data set without one."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:132] == _MAGIC or _looks_bare(start)


def read_header_of(location: Location) -> DicomFile | NotRead:
    """The header of one file, or why it is none."""
    try:
        with location.open() as file:
            return _header(location, file)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        return NotRead(str(location), f"cannot be read ({_words(error)})")
    except MemoryError:
        return NotRead(str(location), "cannot be read (a header element is larger than the memory)")
    except Exception as error:  # pydicom raises many kinds on broken headers
        return NotRead(str(location), f"its DICOM header is broken ({type(error).__name__}: {_words(error)})")


def read_whole(location: Location) -> Any:
    """The whole data set with its pixel data."""
    with quiet(), location.open() as file:
        return pydicom.dcmread(file, force=True)


def read_full_header(location: Location) -> Any:
    """Every element but the pixel data."""
    with quiet(), location.open() as file:
        return pydicom.dcmread(file, stop_before_pixels=True, force=True)


def _header(location: Location, file: BoundedFile) -> DicomFile | NotRead:
    start = file.read(132)
    file.seek(0)
    if start[128:132] != _MAGIC and not _looks_bare(start):
        kind = "is empty" if not start else "is not DICOM"
        return NotRead(str(location), kind)
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=True)
    if not any(key in header for key in ("SOPClassUID", "SeriesInstanceUID", "Rows", "DirectoryRecordSequence")):
        return NotRead(str(location), "is not DICOM, or its header was cut off")
    syntax = str(header.file_meta.get("TransferSyntaxUID", "")) or "1.2.840.10008.1.2"
    pixels = None if syntax == "1.2.840.10008.1.2.1.99" else _pixel_span(file, syntax)
    return DicomFile(location, header, syntax, pixels)


def _looks_bare(start: bytes) -> bool:
    """A data set without preamble: an even group 0002 or 0008 and a small element number."""
    return (
        len(start) >= 8 and start[:2] in _BARE_STARTS and max(start[2], start[3]) < 0x80 and start[2:4] != b"\0\0\0\0"
    )


def _pixel_span(file: BoundedFile, syntax: str) -> PixelSpan | None:
    """Read the head of the pixel data element (PS3.5 section 7.1) at the file's present place."""
    order = ">" if syntax == "1.2.840.10008.1.2.2" else "<"
    head = file.read(12)
    if len(head) < 8:
        return None
    group, element = struct.unpack(order + "HH", head[:4])
    if (group << 16 | element) not in _PIXELS:
        return None
    if syntax == "1.2.840.10008.1.2":
        length = struct.unpack("<I", head[4:8])[0]
        offset = file.tell() - len(head) + 8
    elif head[4:6] in _LONG_VRS:
        length = struct.unpack(order + "I", head[8:12])[0] if len(head) == 12 else 0
        offset = file.tell()
    else:
        return PixelSpan(file.tell(), 0, "its pixel data has an unknown value representation")
    if length == _UNDEFINED:
        return PixelSpan(offset, None, _fragment_problem(file, offset))
    missing = offset + length - file.size
    return PixelSpan(
        offset, length, f"its pixel data is cut off, {missing} of {length} bytes are missing" if missing > 0 else ""
    )


def _fragment_problem(file: BoundedFile, offset: int) -> str:
    """Walk the items of encapsulated pixel data (PS3.5 annex A.4) to see that none passes the end of the file."""
    file.seek(offset)
    while True:
        head = file.read(8)
        if len(head) < 8:
            return "its compressed pixel data is cut off"
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return ""
        if (group, element) != (0xFFFE, 0xE000) or file.tell() + length > file.size:
            return "its compressed pixel data is cut off or broken"
        file.seek(length, io.SEEK_CUR)


def _locations(source: Path, aside: list[NotRead]) -> Iterator[Location]:
    if source.is_dir():
        for path in sorted(p for p in source.rglob("*") if p.is_file() and not p.name.startswith(".")):
            yield Location(path)
    elif not source.exists():
        raise InputError(f"{source}: is missing; give a DICOM file, a folder, a DICOMDIR or a zip")
    elif zipfile.is_zipfile(source):
        yield from _members(source, aside)
    elif source.name.upper() == "DICOMDIR":
        yield from _locations(source.parent, aside)
    else:
        yield Location(source)


@lru_cache(maxsize=2)
def _archive(path: Path, mtime: int) -> zipfile.ZipFile:
    """An open archive: its directory is parsed once and not for every slice."""
    return zipfile.ZipFile(path)


def _members(source: Path, aside: list[NotRead]) -> Iterator[Location]:
    """Members of a zip, none of them unpacked to disk; those that grow a thousandfold are refused as bombs."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{source}: is not a zip that can be opened ({_words(error)}); copy it again") from error
    for info in sorted(members, key=lambda info: info.filename):
        if info.flag_bits & 1:
            aside.append(NotRead(f"{source}/{info.filename}", "is encrypted; unpack the archive with its password"))
        elif info.file_size > 1000 * max(info.compress_size, 1000):
            aside.append(
                NotRead(f"{source}/{info.filename}", f"claims to grow to {info.file_size} bytes; not unpacked")
            )
        else:
            yield Location(source, info.filename)


def _absent(directory: DicomFile) -> list[NotRead]:
    """Files that a DICOMDIR lists and that are not there (PS3.3 F.3)."""
    if directory.location.member:
        return []
    root = directory.location.path.parent
    listed = []
    for record in directory.header.DirectoryRecordSequence:
        parts = record.get("ReferencedFileID")
        if parts:
            listed.append(root.joinpath(*([parts] if isinstance(parts, str) else parts)))
    return [NotRead(str(p), "is listed in DICOMDIR and missing") for p in listed if not _exists(p)]


def _exists(path: Path) -> bool:
    """Media written elsewhere keep upper-case names in DICOMDIR and lower-case names on disk."""
    return path.exists() or Path(str(path).lower()).exists() or (path.parent / path.name.lower()).exists()


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom without its warnings: what matters here is checked here."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield
