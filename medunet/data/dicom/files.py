"""The files of a folder, zip or DICOMDIR, and the headers of those that are DICOM (PS3.10)."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom import config

from medunet.data.dicom.header import TAGS, Header
from medunet.data.dicom.location import BoundedFile, Location, one_line
from medunet.errors import InputError
from medunet.types import StrPath

_MAGIC = b"DICM"
_BARE_STARTS = (b"\x08\x00", b"\x02\x00", b"\x00\x08", b"\x00\x02")  # group 0008 or 0002, either byte order
_FLOATS = (0x7FE00008, 0x7FE00009)  # Float and Double Float Pixel Data: parametric maps (PS3.3 C.7.6.24)
_PIXELS = (*_FLOATS, 0x7FE00010)
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"UC", b"UR", b"UT", b"SQ")
_UNDEFINED = 0xFFFFFFFF
_MOST_WHOLE = 1 << 31
_MOST_FRAGMENTS = 1_000_000
_MEDIA_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class PixelSpan:
    """Where the value of the pixel data element lies; `length` None for `fragments` of encapsulated (compressed) data.

    `size` is the number of bytes of all fragments together.
    """

    offset: int
    length: int | None
    problem: str = ""
    fragments: int = 0
    size: int = 0


@dataclass(frozen=True)
class DicomFile:
    """A header (the elements that geometry and meaning need) and where its pixels lie."""

    location: Location
    header: Header
    syntax: str
    pixels: PixelSpan | None


@dataclass(frozen=True)
class NotRead:
    """A file that is set aside, and why; `damaged` when it may have been an image."""

    location: str
    reason: str
    damaged: bool = False


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
        return NotRead(str(location), f"cannot be read ({_words(error)})", damaged=True)
    except MemoryError:
        return NotRead(str(location), "cannot be read (a header element is larger than the memory)", damaged=True)
    except Exception as error:  # pydicom raises many kinds on broken headers
        reason = f"its DICOM header is broken ({type(error).__name__}: {_words(error)})"
        return NotRead(str(location), reason, damaged=True)


def read_whole(location: Location) -> Any:
    """The whole data set with its pixel data."""
    with quiet(), location.open(_MOST_WHOLE) as file:
        return pydicom.dcmread(file, force=True)


def read_full_header(location: Location) -> Any:
    """Every element but the pixel data."""
    with quiet(), location.open(_MOST_WHOLE) as file:
        return pydicom.dcmread(file, stop_before_pixels=True, force=True)


def _header(location: Location, file: BoundedFile) -> DicomFile | NotRead:
    start = file.read(132)
    file.seek(0)
    if start[128:132] != _MAGIC and not _looks_bare(start):
        return _no_dicom(location, start)
    header = Header(pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS, force=True))
    if not any(key in header for key in ("SOPClassUID", "SeriesInstanceUID", "Rows", "DirectoryRecordSequence")):
        return NotRead(str(location), "is not DICOM, or its header was cut off", damaged=True)
    syntax = str(header.file_meta.get("TransferSyntaxUID", "")) or "1.2.840.10008.1.2"
    return DicomFile(location, header, syntax, _pixel_span(file, syntax))


def _no_dicom(location: Location, start: bytes) -> NotRead:
    if not start:
        return NotRead(str(location), "is empty", damaged=True)
    numbered = location.suffix[1:].isdigit()  # IM.12, or a UID
    return NotRead(str(location), "is not DICOM", damaged=numbered or location.suffix in _MEDIA_SUFFIXES)


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
    if (group << 16 | element) in _FLOATS:
        return PixelSpan(file.tell(), 0, "has floating point pixels (a parametric map), which are not read; convert it")
    if syntax == "1.2.840.10008.1.2":
        length = struct.unpack("<I", head[4:8])[0]
        offset = file.tell() - len(head) + 8
    elif head[4:6] in _LONG_VRS:
        length = struct.unpack(order + "I", head[8:12])[0] if len(head) == 12 else 0
        offset = file.tell()
    else:
        return PixelSpan(file.tell(), 0, "its pixel data has an unknown value representation")
    if length == _UNDEFINED:
        return _fragments(file, offset)
    missing = offset + length - file.size
    return PixelSpan(
        offset, length, f"its pixel data is cut off, {missing} of {length} bytes are missing" if missing > 0 else ""
    )


def _fragments(file: BoundedFile, offset: int) -> PixelSpan:
    """Walk the items of encapsulated pixel data (PS3.5 annex A.4) to see that none passes the end of the file.

    The first item is the table of offsets and no fragment.
    """
    file.seek(offset)
    size, problem = 0, "its compressed pixel data is cut off or broken"
    for number in range(_MOST_FRAGMENTS):
        head = file.read(8)
        if len(head) < 8:
            return PixelSpan(offset, None, "its compressed pixel data is cut off")
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return PixelSpan(offset, None, "", max(0, number - 1), size)
        if (group, element) != (0xFFFE, 0xE000) or file.tell() + length > file.size:
            break
        size += length
        file.seek(length, io.SEEK_CUR)
    return PixelSpan(offset, None, problem)


def _locations(source: Path, aside: list[NotRead]) -> Iterator[Location]:
    if os.path.isdir(source):
        for path in sorted(p for p in source.rglob("*") if os.path.isfile(p) and not p.name.startswith(".")):
            yield Location(path)
    elif not os.path.exists(source):
        raise InputError(f"{source}: is missing; give a DICOM file, a folder, a DICOMDIR or a zip")
    elif not os.path.isfile(source):
        raise InputError(f"{source}: is not a file or folder; give a DICOM file, a folder, a DICOMDIR or a zip")
    elif zipfile.is_zipfile(source):
        yield from _members(source, aside)
    elif source.name.upper() == "DICOMDIR":
        yield from _locations(source.parent, aside)
    elif source.name.lower().endswith(".zip"):
        raise InputError(f"{source}: is a zip that is cut off or broken; copy it again")
    else:
        yield Location(source)


def _members(source: Path, aside: list[NotRead]) -> Iterator[Location]:
    """Members of a zip, none of them unpacked to disk; those that grow a thousandfold are refused as bombs."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise InputError(f"{source}: is not a zip that can be opened ({_words(error)}); copy it again") from error
    for info in sorted(members, key=lambda info: info.filename):
        location, problem = Location(source, info.filename), _packing_problem(info)
        if problem:
            aside.append(NotRead(str(location), problem, damaged=True))
        elif not os.path.basename(info.filename).startswith("."):
            yield location


def _packing_problem(info: zipfile.ZipInfo) -> str:
    """Why a member is not unpacked. Only deflate can be inflated piece by piece, and DICOM allows no other (PS3.12 V).

    What a member claims to grow to is only a claim: reading stops there.
    """
    if info.flag_bits & 1:
        return "is encrypted; unpack the archive with its password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is packed with method {info.compress_type}; pack the archive with deflate"
    if info.file_size > 1000 * max(info.compress_size, 1000):
        return f"claims to grow to {info.file_size} bytes; not unpacked"
    return ""


def _absent(directory: DicomFile) -> list[NotRead]:
    """Files that a DICOMDIR lists and that are not there (PS3.3 F.3). Its paths are compared and never followed.

    One that it calls an image may be a slice of a series that is there.
    """
    if directory.location.member:
        return []
    try:
        records = [record for record in directory.header.DirectoryRecordSequence if record.get("ReferencedFileID")]
        listed = [(record.ReferencedFileID, record.get("DirectoryRecordType") == "IMAGE") for record in records]
        paths = [([id_] if isinstance(id_, str) else list(map(str, id_)), image) for id_, image in listed]
    except Exception as error:  # pydicom raises many kinds on broken values
        return [NotRead(str(directory.location), f"its records cannot be read ({type(error).__name__})")]
    root = directory.location.path.parent
    return [
        NotRead(one_line(root.joinpath(*path), 300), reason, image)
        for path, image in paths
        if (reason := _absence(root, path))
    ]


def _absence(root: Path, parts: list[str]) -> str:
    """Why a file of a DICOMDIR is not there; media keep upper-case names in DICOMDIR and lower-case names on disk."""
    if any(part in ("", "..", ".") or set(part) & set("/\\\0") for part in parts):
        return "is listed in DICOMDIR and lies outside of its medium"
    path = root.joinpath(*parts)
    places = (path, Path(str(path).lower()), path.parent / path.name.lower())
    return "" if any(map(os.path.exists, places)) else "is listed in DICOMDIR and missing"


def _words(error: BaseException) -> str:
    return one_line(" ".join(str(error).split()), 160) or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom without its warnings: what matters here is checked here."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield
