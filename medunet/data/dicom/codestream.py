"""What a compressed picture says of its own size, before a decoder takes the memory for it."""

from __future__ import annotations

import struct

_NO_LENGTH = (0x01, *range(0xD0, 0xD9))  # JPEG markers that stand alone (ISO 10918-1 table B.1)
_FRAME_STARTS = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)


def picture_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG, JPEG-LS or JPEG 2000 stream; None where it does not say."""
    start = stream.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0 and not stream.startswith(b"\xff\xd8"):
        return _jpeg_2000_size(stream[start + 4 :])
    return _jpeg_size(stream) if stream.startswith(b"\xff\xd8") else None


def _jpeg_2000_size(siz: bytes) -> tuple[int, int] | None:
    """ISO 15444-1 A.5.1: the image lies in its reference grid from an offset to an end."""
    if len(siz) < 20:
        return None
    right, bottom, left, top = struct.unpack(">4I", siz[4:20])
    return bottom - top, right - left


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    """ISO 10918-1 B.2.2 and ISO 14495-1 C.2.2: the first frame header."""
    place = 2
    while place + 9 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker in _FRAME_STARTS:
            rows, columns = struct.unpack(">HH", stream[place + 5 : place + 9])
            return rows, columns
        alone = marker in _NO_LENGTH or marker == 0xFF
        place += (1 if marker == 0xFF else 2) if alone else 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return None
