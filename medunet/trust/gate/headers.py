"""Free text in the headers of volumes, pictures, documents and arrays; voxels, pixels and tensors are not read.

Layouts: NIfTI-1/2 (nifti.nimh.nih.gov), Analyze 7.5, PNG (W3C), JPEG/Exif (ITU-T T.81, CIPA DC-008), TIFF 6.0,
PDF (ISO 32000), NPY (numpy.lib.format), safetensors.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from medunet.trust.gate.pieces import Found, Piece, Remark, as_text, printable_runs
from medunet.trust.gate.texts import json_pieces

MEGABYTE = 1_000_000
_NIFTI1 = {
    "data_type": (4, 10),
    "db_name": (14, 18),
    "descrip": (148, 80),
    "aux_file": (228, 24),
    "intent_name": (328, 16),
}
_NIFTI2 = {"descrip": (240, 80), "aux_file": (320, 24), "intent_name": (508, 16)}
_ANALYZE = {
    "data_type": (4, 10), "db_name": (14, 18), "descrip": (148, 80), "aux_file": (228, 24), "generated": (263, 10),
    "scannum": (273, 10), "patient_id": (283, 10), "exp_date": (293, 10), "exp_time": (303, 10),
}  # fmt: skip
_TIFF_TEXT = {
    269: "DocumentName", 270: "ImageDescription", 271: "Make", 272: "Model", 285: "PageName", 305: "Software",
    306: "DateTime", 315: "Artist", 316: "HostComputer", 700: "XMP", 33432: "Copyright", 33723: "IPTC",
    36867: "DateTimeOriginal", 36868: "DateTimeDigitized", 37510: "UserComment", 42016: "ImageUniqueID",
    42032: "CameraOwnerName", 42033: "BodySerialNumber", 40091: "XPTitle", 40092: "XPComment", 40093: "XPAuthor",
    40094: "XPKeywords", 40095: "XPSubject",
}  # fmt: skip
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_PDF_INFO = re.compile(
    rb"/(Author|Title|Subject|Keywords|Creator|Producer|CreationDate|ModDate)"
    rb"\s*(?:\(((?:[^()\\]|\\.)*)\)|<([0-9A-Fa-f\s]*)>)"
)
_HARMLESS = {"Software", "Producer", "Creator"}


def nifti_fields(head: bytes) -> tuple[dict[str, tuple[int, int]], str, int] | None:
    """Text fields (offset, size), byte order and the offset of the extension flag of a header; None if it is none."""
    for order in "<>":
        size = struct.unpack(order + "i", head[:4])[0] if len(head) >= 348 else 0
        if size == 348 and head[344:347] in (b"n+1", b"ni1"):
            return _NIFTI1, order, 348
        if size == 348 and head[38:39] in (b"r", b"\0") and head[344:348] == b"\0\0\0\0":
            return _ANALYZE, order, 0
        if size == 540 and head[4:7] in (b"n+2", b"ni2"):
            return _NIFTI2, order, 540
    return None


def nifti(stream: BinaryIO) -> Iterator[Found]:
    """The text fields and extensions of a volume's header."""
    head = stream.read(544)
    known = nifti_fields(head)
    if known is None:
        return
    fields, order, flag = known
    yield Remark("note", "image-volume")
    for name, (start, size) in fields.items():
        text = head[start : start + size].split(b"\0")[0].decode("latin-1").strip()
        rest = head[start : start + size].replace(b"\0", b" ").decode("latin-1").strip()
        if rest and name != "data_type":
            yield from _free_text(f"header {name}", rest, name)
        elif text:
            yield Piece(f"header {name}", text)
    stream.seek(flag)
    if flag and stream.read(4)[:1] not in (b"", b"\0"):
        yield from _nifti_extensions(stream, order)


def _nifti_extensions(stream: BinaryIO, order: str) -> Iterator[Found]:
    for number in range(100):
        head = stream.read(8)
        if len(head) < 8:
            return
        size, code = struct.unpack(order + "ii", head)
        if size < 16 or size > 16 * MEGABYTE or size % 16:
            return
        content = stream.read(size - 8)
        text = as_text(content.rstrip(b"\0")) or " ".join(run for _, run in printable_runs(content, 4))
        yield Remark("danger", "header-text", f"header extension {number}", f"{size} bytes, code {code}")
        yield Piece(f"header extension {number}", text)


def _free_text(key: str, text: str, name: str, rule: str = "header-text") -> Iterator[Found]:
    """A field that anybody may have filled: scanned, and reported whatever it says."""
    if text.strip():
        yield Piece(key, text, name=name)
        yield Remark("note" if name in _HARMLESS else "danger", rule, key, quoted=text)


def png(stream: BinaryIO) -> Iterator[Found]:
    """The text chunks of a PNG, its Exif, and what stands after its end."""
    stream.seek(8)
    while True:
        head = stream.read(8)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head)
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME") or not kind.isalpha() or kind[0:1].islower():
            content = stream.read(min(size, 16 * MEGABYTE))
            stream.seek(max(0, size - 16 * MEGABYTE) + 4, 1)
            yield from _png_chunk(kind.decode("latin-1"), content)
        else:
            stream.seek(size + 4, 1)
        if kind == b"IEND":
            yield from _trailing(stream)
            return


def _png_chunk(kind: str, content: bytes) -> Iterator[Found]:
    if kind in ("tEXt", "zTXt", "iTXt"):
        word, _, rest = content.partition(b"\0")
        name = word.decode("latin-1")
        yield from _free_text(f"chunk {kind} {name}", _png_text(kind, rest), name, "image-text")
    elif kind == "eXIf":
        yield from tiff(content, "chunk eXIf")
    elif kind == "tIME":
        yield Remark("note", "image-text", "chunk tIME", "the time of the last change")
    elif kind not in (
        "pHYs",
        "sRGB",
        "gAMA",
        "cHRM",
        "iCCP",
        "bKGD",
        "tRNS",
        "sBIT",
        "hIST",
        "cICP",
        "acTL",
        "fcTL",
        "fdAT",
    ):
        yield from _free_text(
            f"chunk {kind}", " ".join(run for _, run in printable_runs(content, 4)), kind, "image-text"
        )


def _png_text(kind: str, rest: bytes) -> str:
    try:
        if kind == "zTXt":
            return _inflate(rest[1:]).decode("latin-1")
        if kind == "iTXt":
            compressed, (language, _, tail) = rest[0:1] == b"\1", rest[2:].partition(b"\0")
            translated, _, text = tail.partition(b"\0")
            text = _inflate(text) if compressed else text
            return " ".join(part.decode("utf-8", "replace") for part in (language, translated, text) if part)
    except zlib.error:
        return "(cannot be decompressed)"
    return rest.decode("latin-1")


def _inflate(data: bytes, limit: int = 16 * MEGABYTE) -> bytes:
    return zlib.decompressobj().decompress(data, limit)


def _trailing(stream: BinaryIO) -> Iterator[Found]:
    rest = stream.read(MEGABYTE)
    if rest.strip(b"\0"):
        yield Remark("danger", "image-text", "after the end", f"{len(rest)} bytes")
        yield Piece("after the end", as_text(rest) or " ".join(run for _, run in printable_runs(rest, 6)))


def jpeg(stream: BinaryIO) -> Iterator[Found]:
    """The Exif, XMP, IPTC and comment segments of a JPEG, and what stands after its end."""
    data = stream.read(64 * MEGABYTE)
    for marker, start, end in jpeg_segments(data):
        content = data[start:end]
        if marker == 0xE1 and content.startswith(b"Exif\0\0"):
            yield from tiff(content[6:], "EXIF")
        elif marker == 0xE0 and (content.startswith(b"JFXX") or (content.startswith(b"JFIF") and any(content[12:14]))):
            yield Remark("danger", "thumbnail", "APP0")
        elif marker == 0xFE:
            yield from _free_text("COM", content.decode("utf-8", "replace"), "comment", "image-text")
        elif 0xE1 <= marker <= 0xEF and not content.startswith((b"ICC_PROFILE", b"Adobe", b"MPF")):
            text = " ".join(run for _, run in printable_runs(content, 4))
            yield from _free_text(f"APP{marker - 0xE0}", text, "", "image-text")
    end = data.rfind(b"\xff\xd9")
    rest = data[end + 2 :] if end >= 0 else b""
    if rest.strip(b"\0"):
        yield Remark("danger", "image-text", "after the end", f"{len(rest)} bytes")
        yield Piece("after the end", as_text(rest) or " ".join(run for _, run in printable_runs(rest, 6)))


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end of the content) of each segment before the scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (0xDA, 0xD9):
            return
        size = struct.unpack(">H", data[position + 2 : position + 4])[0]
        yield marker, position + 4, position + 2 + size
        position += 2 + size


def tiff(data: bytes, prefix: str = "") -> Iterator[Found]:
    """The text tags of a TIFF or an Exif block; a second directory of an Exif block is a thumbnail."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    if not order or len(data) < 8:
        return
    big = struct.unpack(order + "H", data[2:4])[0] == 43
    first = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    if prefix:
        yield Remark("danger", "image-text", prefix, "Exif data")
    pending, number = [(first, "")], 0
    seen: set[int] = set()
    while pending and len(seen) < 200:
        offset, label = pending.pop(0)
        if offset in seen or not 0 < offset < len(data) - 2:
            continue
        seen.add(offset)
        if prefix and not label and number == 1:
            yield Remark("danger", "thumbnail", prefix)
        number += not label
        for tag, value, target in _entries(data, offset, order, big):
            if tag in (34665, 34853) or tag == 0:
                pending.append((target, "" if tag == 0 else "sub"))
                if tag == 34853:
                    yield Remark("danger", "image-text", f"{prefix} GPS".strip(), "a position")
            elif value:
                name = _TIFF_TEXT.get(tag, str(tag))
                yield from _free_text(f"{prefix} tag {name}".strip(), value, name, "image-text")


def _entries(data: bytes, offset: int, order: str, big: bool) -> Iterator[tuple[int, str, int]]:
    """(tag, text or "", value or offset) of a directory; tag 0 is the next directory."""
    head, width, field = ("Q", 20, "HHQQ") if big else ("H", 12, "HHII")
    try:
        count = struct.unpack_from(order + head, data, offset)[0]
        start = offset + struct.calcsize(order + head)
        for entry in range(min(count, 4096)):
            at = start + entry * width
            tag, kind, length, value = struct.unpack_from(order + field, data, at)
            size = length * _TIFF_SIZES.get(kind, 1)
            where = at + (12 if big else 8) if size <= (8 if big else 4) else value
            textual = kind == 2 or tag in _TIFF_TEXT
            yield tag, _tiff_text(data[where : where + min(size, MEGABYTE)], tag) if textual else "", value
        yield 0, "", struct.unpack_from(order + ("Q" if big else "I"), data, start + count * width)[0]
    except struct.error:
        return


def _tiff_text(content: bytes, tag: int) -> str:
    if 40091 <= tag <= 40095:
        return content.decode("utf-16-le", "replace").strip("\0 ")
    text = content.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return text if tag != 37510 else text[8:] if text[:5] in ("ASCII", "UNICO") else text


def pdf(stream: BinaryIO) -> Iterator[Found]:
    """The information dictionary, XMP and readable streams of a PDF."""
    data = stream.read(64 * MEGABYTE)
    for match in _PDF_INFO.finditer(data):
        name = match.group(1).decode()
        content = match.group(2) if match.group(2) is not None else bytes.fromhex(match.group(3).decode()[: 1 << 16])
        text = (
            content.decode("utf-16", "replace")
            if content[:2] in (b"\xfe\xff", b"\xff\xfe")
            else content.decode("latin-1")
        )
        if name in ("CreationDate", "ModDate"):
            yield Remark("note", "document-info", f"document {name}", quoted=text)
        else:
            yield from _free_text(f"document {name}", text, name, "document-info")
    for number, match in enumerate(re.finditer(rb"stream\r?\n(.*?)endstream", data, re.S)):
        content = match.group(1)
        with contextlib.suppress(zlib.error):
            content = _inflate(content)
        for _, run in printable_runs(content, 6):
            yield Piece(f"stream {number}", run, careful=True)


def npy(stream: BinaryIO) -> Iterator[Found]:
    """The header of an array, and its values where they are text."""
    head = stream.read(12)
    wide = head[6:7] != b"\x01"
    size = struct.unpack("<I" if wide else "<H", head[8 : 12 if wide else 10])[0]
    stream.seek(12 if wide else 10)
    header = stream.read(min(size, MEGABYTE)).decode("latin-1").strip()
    yield Piece("header", header)
    kind = re.search(r"'descr':\s*'[<>|=]?([A-Za-z])", header)
    if kind and kind.group(1) in "US":
        content = stream.read(16 * MEGABYTE)
        text = content.decode("utf-32" if kind.group(1) == "U" else "latin-1", "replace")
        for number, value in enumerate(re.split("\0+", text)[:100_000]):
            yield Piece(f"value {number}", value)
    elif re.search(r"'[<>|=]?[SU]\d", header):
        for offset, run in printable_runs(stream.read(16 * MEGABYTE), 5):
            yield Piece(f"byte {offset}", run, careful=True)


def safetensors(stream: BinaryIO, length: int) -> Iterator[Found]:
    """The names and ``__metadata__`` of a safetensors file."""
    stream.seek(8)
    header = stream.read(length).decode("utf-8", "replace")
    for found in json_pieces(header):
        if isinstance(found, Piece):
            yield Piece(f"header {found.key}", found.text, name=found.name)


def volume_text(stream: BinaryIO) -> Iterator[Found]:
    """The readable header of an NRRD or MetaImage volume."""
    yield Remark("note", "image-volume")
    head = stream.read(MEGABYTE).split(b"\n\n")[0]
    for number, line in enumerate(head.split(b"\n"), 1):
        text = line.decode("latin-1").strip()
        if not text.isprintable():
            return
        name, _, value = text.partition("=") if "=" in text else text.partition(":")
        yield Piece(f"header {name.strip(' :=')}", value.strip("= "), number, name.strip())
        if name.strip() == "ElementDataFile":
            return
