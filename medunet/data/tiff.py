"""TIFF pictures read a band of rows at a time, and label maps written tile by tile.

Source: TIFF revision 6.0 (Adobe 1992); technical note 3 (floating-point predictor). tifffile reads the tags; what it
cannot decompress without its large companion is handed to Pillow's libtiff, a segment at a time.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data.atomic import atomic_path
from medunet.data.spill import free_memory
from medunet.errors import InputError
from medunet.types import AnyArray, IntArray

TILE = 512
"""Rows and columns of a tile of a label map."""

ORIENTATION = 274
"""The tag, in TIFF and EXIF, of how pixels are to be turned for viewing."""

_REDUCED_OR_MASK = 5  # bits of NewSubfileType
_WHITE_IS_ZERO, _PALETTE, _YCBCR = 0, 3, 6
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
_NONE, _JPEG = 1, 7
_DEFLATE = (8, 32946)
_BY_LIBTIFF = (5, 32773, 34925, 50000)  # LZW, PackBits, LZMA, Zstandard: codes of bytes
_MM = {2: 25.4, 3: 10.0}  # of ResolutionUnit
_IMAGEJ_MM = {"nm": 1e-6, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "\\u00b5m": 1e-3, "mm": 1.0, "cm": 10.0, "inch": 25.4}


@dataclass(frozen=True)
class Band:
    """Rows `first` on of a page: (rows, columns, components) as stored."""

    page: int
    first: int
    values: AnyArray


class Tiff:
    """The picture of a TIFF file, or its stack of pages of one size; reduced versions and masks are left out.

    `components` of (pages, rows, columns) are colours, bands or, where ImageJ says so, pages. `spacing` is (mm per
    column, mm per row) where the file states a unit. `alpha` says that the last component is one.

    Raises:
        InputError: pages differ, or it is stored in a way that is not read.
    """

    def __init__(self, path: Path) -> None:
        import tifffile

        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is told in one sentence
        self.path = path
        with tifffile.TiffFile(path) as file:
            pages = [page for page in _pages(file, path) if not page.subfiletype & _REDUCED_OR_MASK]
            if not pages:
                raise InputError(
                    f"{path}: cannot be read, it is truncated or holds no picture; copy it again from its source"
                )
            self.spacing = _spacing(pages[0], file.imagej_metadata or {})
            orientation = pages[0].tags.get(ORIENTATION)
            require_upright(path, orientation.value if orientation else None)
            self.byteorder = file.byteorder
            series = file.series[0]
            _require_one_page_axis(path, series)
            self.palette = _palette(pages[0]) if int(pages[0].photometric) == _PALETTE else None
            self._hyperstack = series.asarray() if _in_one(file, series, pages) else None
        self.pages, first = pages, pages[0]
        kinds = sorted({(int(p.imagelength), int(p.imagewidth), int(p.samplesperpixel), str(p.dtype)) for p in pages})
        if len(kinds) > 1:
            sizes = " and ".join(f"{columns} x {rows}" for rows, columns, *_ in kinds[:3])
            raise InputError(f"{path}: has pages of different kinds ({sizes} pixels); save the one you mean alone")
        self.rows, self.columns = int(first.imagelength), int(first.imagewidth)
        self.samples = int(first.samplesperpixel)
        self.page_is_channel = series.axes == "CYX" and len(pages) > 1
        self.alpha = bool(first.extrasamples) and first.extrasamples[-1] in _ALPHA

    @property
    def hyperstack(self) -> AnyArray | None:
        """(pages, rows, columns) of a stack that ImageJ keeps under one page, read whole."""
        return self._hyperstack

    @property
    def dtype(self) -> Any:
        """Of the stored samples; None where they are not whole bytes."""
        page = self.pages[0]
        return None if page.dtype is None or page.bitspersample % 8 else np.dtype(page.dtype)

    @property
    def banded(self) -> bool:
        """Whether bands can be decoded here; else Pillow has to read the picture whole."""
        known = (_NONE, _JPEG, *_DEFLATE, *_BY_LIBTIFF)
        return all(
            p.dtype is not None and p.bitspersample in (8, 16, 32, 64) and int(p.compression) in known
            and p.fillorder == 1 and int(p.predictor) in (1, 2, 3)
            and (int(p.photometric) != _YCBCR or int(p.compression) == _JPEG)
            for p in self.pages
        )  # fmt: skip

    def bands(self) -> Iterator[Band]:
        """All rows of all pages, a row of tiles or strips at a time, in their order.

        Raises:
            InputError: the file is cut short.
        """
        with self.path.open("rb") as file:
            for number, page in enumerate(self.pages):
                for first, values in _Page(page, self.byteorder, self.path).bands(file):
                    inverted = int(page.photometric) == _WHITE_IS_ZERO and values.dtype.kind == "u"
                    yield Band(number, first, np.iinfo(values.dtype).max - values if inverted else values)


def require_upright(path: Path, orientation: object) -> None:
    """Raise an InputError if a picture is to be turned or mirrored for viewing: its mask may be of either view."""
    if orientation in range(2, 9):
        raise InputError(
            f"{path}: is to be turned or mirrored for viewing (orientation {orientation}), which not all programs do; "
            f"save it upright"
        )


class _Page:
    """The strips or tiles of a page."""

    def __init__(self, page: Any, byteorder: str, path: Path) -> None:
        self.page, self.path = page, path
        self.rows, self.columns = int(page.imagelength), int(page.imagewidth)
        tiled = bool(page.is_tiled)
        self.high = int(page.tilelength) if tiled else min(int(page.rowsperstrip or self.rows), self.rows)
        self.wide = int(page.tilewidth) if tiled else self.columns
        self.tiled, self.across = tiled, -(-self.columns // self.wide)
        samples = int(page.samplesperpixel)
        self.planes, self.inside = (samples, 1) if int(page.planarconfig) == 2 and samples > 1 else (1, samples)
        self.dtype = np.dtype(page.dtype).newbyteorder(byteorder)
        self.count = -(-self.rows // self.high)
        held = self.high * self.columns * samples * self.dtype.itemsize
        if 3 * held > free_memory():
            raise InputError(f"{path}: its strips take {held / 1e9:.1f} GB each, too much memory; save it with tiles")
        wanted, got = self.planes * self.count * self.across, len(page.dataoffsets)
        if got < wanted or len(page.databytecounts) < wanted:
            raise InputError(f"{path}: lists {got} segments of {wanted}, the file is corrupt; copy it again")

    def bands(self, file: Any) -> Iterator[tuple[int, AnyArray]]:
        """The first row and the values (rows, columns, components) of each row of segments."""
        for number in range(self.count):
            first = number * self.high
            rows = min(self.high, self.rows - first)
            held = self.high if self.tiled else rows
            band = np.empty((rows, self.columns, self.planes * self.inside), self.dtype.newbyteorder("="))
            for plane in range(self.planes):
                for column in range(self.across):
                    segment = self._segment(file, (plane * self.count + number) * self.across + column, held)
                    left = column * self.wide
                    width = min(self.wide, self.columns - left)
                    part = slice(plane, plane + 1) if self.planes > 1 else slice(None)
                    band[:, left : left + width, part] = segment[:rows, :width]
            yield first, band

    def _segment(self, file: Any, index: int, rows: int) -> AnyArray:
        offset, size = int(self.page.dataoffsets[index]), int(self.page.databytecounts[index])
        if offset == 0 or size == 0:  # GDAL leaves out tiles that hold nothing
            return np.zeros((rows, self.wide, self.inside), self.dtype)
        file.seek(offset)
        content = file.read(size)
        if len(content) < size:
            raise self._cut_short()
        if int(self.page.compression) == _JPEG:
            return _by_libtiff(content, self.wide, rows, self._tags(_JPEG)).reshape(rows, self.wide, self.inside)
        raw = self._unpacked(content, rows * self.wide * self.inside * self.dtype.itemsize)
        return self._unpredicted(raw, rows)

    def _unpacked(self, content: bytes, size: int) -> bytes | AnyArray:
        """`size` bytes, never more."""
        code = int(self.page.compression)
        if code in _DEFLATE:
            content = zlib.decompressobj().decompress(content, size)
        elif code != _NONE:
            line = self.wide * self.inside * self.dtype.itemsize
            return _by_libtiff(content, line, size // line, {259: code}).reshape(-1)
        if len(content) < size:
            raise self._cut_short()
        return content[:size]

    def _unpredicted(self, raw: bytes | AnyArray, rows: int) -> AnyArray:
        shape = (rows, self.wide, self.inside)
        if int(self.page.predictor) == 3:
            size = self.dtype.itemsize
            line = np.frombuffer(raw, np.uint8).reshape(rows, self.wide * size, self.inside)
            planes = np.cumsum(line, axis=1, dtype=np.uint8).reshape(rows, size, self.wide * self.inside)
            joined = np.ascontiguousarray(planes.transpose(0, 2, 1))
            floats: AnyArray = joined.view(self.dtype.newbyteorder(">")).reshape(shape)
            return floats
        values = np.frombuffer(raw, self.dtype).reshape(shape)
        if int(self.page.predictor) == 2:
            whole = np.dtype(f"u{self.dtype.itemsize}")
            native = values.astype(self.dtype.newbyteorder("="), copy=False).view(whole)
            summed: AnyArray = np.cumsum(native, axis=1, dtype=whole).view(self.dtype.newbyteorder("="))
            return summed
        return values

    def _tags(self, code: int) -> dict[int, Any]:
        tags: dict[int, Any] = {259: code, 262: int(self.page.photometric), 277: self.inside}
        if self.page.jpegtables:
            tags[347] = bytes(self.page.jpegtables)
        if int(self.page.photometric) == _YCBCR and self.page.subsampling:
            tags[530] = tuple(self.page.subsampling)
        return tags

    def _cut_short(self) -> InputError:
        return InputError(
            f"{self.path}: cannot be read, the file is truncated or corrupt; copy it again from its source"
        )


def _by_libtiff(content: bytes, columns: int, rows: int, tags: dict[int, Any]) -> AnyArray:
    """A segment of 8-bit samples, wrapped as a picture of one strip and read by Pillow."""
    from PIL import TiffImagePlugin

    samples = int(tags.get(277, 1))
    every: dict[int, Any] = {
        256: columns, 257: rows, 258: (8,) * samples, 262: 1, 277: samples, 278: rows, 279: len(content), **tags
    }  # fmt: skip
    with TiffImagePlugin.TiffImageFile(io.BytesIO(_wrapped(content, every))) as image:
        return np.asarray(image)


def _wrapped(content: bytes, tags: dict[int, Any]) -> bytes:
    """A little-endian TIFF file of one directory and one strip."""
    entries, behind = [], b""
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    values = {tag: _packed(tag, value) for tag, value in tags.items()}
    size = sum(len(packed) + len(packed) % 2 for _, _, packed in values.values() if len(packed) > 4)
    values[273] = (4, 1, struct.pack("<I", start + size))
    for tag, (kind, count, packed) in sorted(values.items()):
        if len(packed) > 4:
            place = struct.pack("<I", start + len(behind))
            behind += packed + b"\0" * (len(packed) % 2)
            packed = place
        entries.append(struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0"))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8) + directory + behind + content


def _packed(tag: int, value: Any) -> tuple[int, int, bytes]:
    if isinstance(value, bytes):
        return 7, len(value), value
    if isinstance(value, tuple):
        return 3, len(value), struct.pack(f"<{len(value)}H", *value)
    return (4, 1, struct.pack("<I", value)) if tag in (256, 257, 278, 279) else (3, 1, struct.pack("<H", value))


def _pages(file: Any, path: Path) -> Iterator[Any]:
    """All pages; a directory that refers back to an earlier one would go on for ever."""
    seen: set[int] = set()
    for page in file.pages:
        if page.offset in seen:
            raise InputError(f"{path}: cannot be read, its pages refer to each other in a circle; copy it again")
        seen.add(page.offset)
        yield page.aspage()


def _require_one_page_axis(path: Path, series: Any) -> None:
    """Pages are slices or channels, in one order; a hyperstack's pages are both, or points in time too."""
    axes = [(axis, count) for axis, count in zip(series.axes, series.shape, strict=True) if axis not in "YXS"]
    if sum(count > 1 for _, count in axes) > 1:
        counts = ", ".join(f"{count} along {axis}" for axis, count in axes)
        raise InputError(f"{path}: is a hyperstack, its pages are {counts}; save a file for each stack or channel")


def _palette(page: Any) -> AnyArray:
    """(colours, 3) uint8; the file's are of 16 bits, though some write 8."""
    colours = np.asarray(page.colormap).T
    return (colours >> 8 if colours.max(initial=0) > 255 else colours).astype(np.uint8)


def _in_one(file: Any, series: Any, pages: Sequence[Any]) -> bool:
    """Whether ImageJ keeps several planes behind one page."""
    return bool(file.is_imagej) and len(pages) == 1 and series.size > pages[0].size


def _spacing(page: Any, imagej: dict[str, Any]) -> tuple[float, float] | None:
    unit = page.tags.get(296)
    factor = _IMAGEJ_MM.get(str(imagej.get("unit", "")).lower()) or _MM.get(int(unit.value) if unit else 0)
    found = [page.tags.get(tag) for tag in (282, 283)]
    if factor is None or not all(found):
        return None
    pairs = [tag.value for tag in found]
    if not all(len(pair) == 2 and min(pair) > 0 for pair in pairs):
        return None
    return factor * pairs[0][1] / pairs[0][0], factor * pairs[1][1] / pairs[1][0]


def write_tiff(path: Path, labels: IntArray, spacing: Sequence[float] | None) -> None:
    """Write labels (x, y, z) as tiles compressed with deflate, a page per slice, whole or not at all.

    Args:
        spacing: mm per column and row, which the file then states; null: none is stated.

    Raises:
        ResourceError: the disk is full.
    """
    import tifffile

    columns, rows, pages = labels.shape
    stated: dict[str, Any] = (
        {} if spacing is None else {"resolution": tuple(10 / s for s in spacing[:2]), "resolutionunit": 3}
    )
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary, _tiles(labels), shape=(pages, rows, columns), dtype=labels.dtype, tile=(TILE, TILE),
            compression="zlib", photometric="minisblack", metadata=None, software="medunet",
            bigtiff=labels.nbytes > 2**31, maxworkers=1, **stated,
        )  # fmt: skip


def _tiles(labels: IntArray) -> Iterator[AnyArray]:
    columns, rows, pages = labels.shape
    for page in range(pages):
        for top in range(0, rows, TILE):
            for left in range(0, columns, TILE):
                part = labels[left : left + TILE, top : top + TILE, page].T
                whole = np.zeros((TILE, TILE), labels.dtype)
                whole[: part.shape[0], : part.shape[1]] = part
                yield whole
