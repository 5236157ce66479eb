"""Stored pixel values of a plane: native data straight from the file, compressed data through pydicom's decoders."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from medunet.data.dicom.codestream import picture_size
from medunet.data.dicom.files import quiet, read_whole
from medunet.data.dicom.frames import Frame, bits_of
from medunet.data.dicom.location import BoundedFile, Location, one_line
from medunet.errors import InputError
from medunet.types import AnyArray

_BIG_ENDIAN = "1.2.840.10008.1.2.2"


def stored_type(frame: Frame) -> np.dtype[Any]:
    """The native integer type of a frame's stored values (PS3.5 section 8.1.1)."""
    header = frame.file.header
    return np.dtype(f"{'i' if int(header.get('PixelRepresentation') or 0) else 'u'}{int(header.BitsAllocated) // 8}")


class PlaneReader:
    """Reads planes one after the other; keeps the last compressed file, so that one of many frames is read once."""

    def __init__(self) -> None:
        self._location: Location | None = None
        self._dataset: Any = None

    def read(self, frame: Frame) -> AnyArray:
        """Stored values (rows, columns) of a frame, before rescaling.

        Raises:
            InputError: the pixel data is cut off, the file cannot be read any more, or no decoder for its transfer
                syntax is installed.
        """
        span = frame.file.pixels
        try:
            native = span is not None and span.length is not None
            plane = _native(frame) if native else _decoded(frame, self._whole)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            reason = one_line(error, 160) or type(error).__name__
            raise InputError(f"{frame.file.location}: cannot be read ({reason}); copy it again") from error
        return _significant(plane, frame)

    def _whole(self, location: Location) -> Any:
        if location != self._location:
            self._location, self._dataset = None, None
            self._dataset = read_whole(location)
            self._location = location
        return self._dataset


def pixel_digest(frame: Frame, reader: PlaneReader) -> bytes:
    """sha256 of a plane's stored values and what scales them: equal for copies of one image."""
    digest = hashlib.sha256(repr((frame.slope, frame.intercept)).encode())
    digest.update(np.ascontiguousarray(reader.read(frame)).data)
    return digest.digest()


def _native(frame: Frame) -> AnyArray:
    dtype = stored_type(frame)
    plane = np.empty((frame.rows, frame.columns), dtype)
    with frame.file.location.open() as file:
        _fill(file, plane, frame)
    return plane.byteswap() if frame.file.syntax == _BIG_ENDIAN else plane


def _fill(file: BoundedFile, plane: AnyArray, frame: Frame) -> None:
    span = frame.file.pixels
    if span is None:
        raise InputError(f"{frame.file.location}: has no pixel data; copy it again")
    file.seek(span.offset + frame.number * plane.nbytes)
    got = file.readinto(plane.data.cast("B"))
    if got != plane.nbytes:
        raise InputError(f"{frame.file.location}: pixel data is cut off ({got} of {plane.nbytes} bytes); copy it again")


def _decoded(frame: Frame, open_whole: Callable[[Location], Any]) -> AnyArray:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    name = frame.file.location
    with quiet():
        try:
            decoder = get_decoder(UID(frame.file.syntax))
        except NotImplementedError as error:
            raise InputError(
                f"{name}: is compressed as {_syntax_name(frame)}, which is not read; convert it"
            ) from error
        if not decoder.is_available:
            raise InputError(
                f"{name}: is compressed as {_syntax_name(frame)}; install its decoder: pip install 'medunet[dicom]'"
            )
        try:
            dataset = open_whole(name)
            _require_size(dataset, frame)
            array, _ = decoder.as_array(dataset, index=frame.number, raw=True)
        except (InputError, MemoryError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # decoders raise many kinds; a panic of one in Rust is no Exception
            reason = one_line(error, 160)
            raise InputError(f"{name}: its compressed pixels cannot be decoded ({reason}); copy it again") from error
    return np.asarray(array, dtype=stored_type(frame))


def _require_size(dataset: Any, frame: Frame) -> None:
    """Compare the header with what the stream says: decoders take memory for the one and fill the other."""
    from pydicom.encaps import get_frame

    count = int(dataset.get("NumberOfFrames") or 1)
    size = picture_size(get_frame(dataset.PixelData, frame.number, number_of_frames=count))
    if size not in (None, (frame.rows, frame.columns)):
        raise InputError(
            f"{frame.file.location}: its compressed picture is {size}, the header says {(frame.rows, frame.columns)}; "
            f"copy it again"
        )


def _syntax_name(frame: Frame) -> str:
    from pydicom.uid import UID

    return one_line(UID(frame.file.syntax).name)


def _significant(plane: AnyArray, frame: Frame) -> AnyArray:
    """Only BitsStored bits below HighBit carry the value: old files keep overlays in the others."""
    allocated, stored, high = bits_of(frame.file.header)
    if stored == allocated:
        return plane
    unsigned = plane.view(f"u{allocated // 8}")
    if plane.dtype.kind == "u" and high == stored - 1 and not (unsigned >> stored).any():
        return plane
    shifted = unsigned << (allocated - 1 - high)
    result: AnyArray = shifted.view(plane.dtype) >> (allocated - stored)
    return result
