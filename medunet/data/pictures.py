"""PNG, JPEG, BMP and TIFF pictures as volumes of one slice: (components, columns, rows, pages).

What is decided here: a palette becomes its colours (in a label map: stays numbers), opaque or constant alpha is left
out and alpha that varies is refused, one bit becomes 0 and 255. Large TIFF is unpacked a band at a time.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data import spill
from medunet.data.atomic import atomic_path
from medunet.data.tiff import ORIENTATION, Tiff, require_upright, write_tiff
from medunet.errors import InputError
from medunet.types import AnyArray, IntArray, Shape

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
GREY = ("grey",)
"""Channels that mean: colours become their luma."""

_BY_MAGIC = {
    b"\x89PNG": ("PngImagePlugin", "PngImageFile"), b"\xff\xd8": ("JpegImagePlugin", "JpegImageFile"),
    b"BM": ("BmpImagePlugin", "BmpImageFile"),
}  # fmt: skip
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_EXIF = 1 << 20  # bytes
_X_RESOLUTION, _RESOLUTION_UNIT = 282, 296
_MOST_PACKED = 5_000  # times smaller than its pixels can no compressed file be
_LUMA = (19595, 38470, 7471)  # of 65536: 0.299, 0.587, 0.114 (ITU-R BT.601)
_PLAIN = {"1": 1, "L": 1, "I;16": 1, "I": 1, "F": 1, "RGB": 3}
"""Components of Pillow's modes of which nothing more has to be looked at."""
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


@dataclass(frozen=True)
class Picture:
    """Pixels (components, columns, rows, pages), and mm per column and row where the file states it."""

    array: AnyArray
    spacing: tuple[float, float] | None


@dataclass(frozen=True)
class PictureHeader:
    """What a file says of itself: (columns, rows, pages), components as they are read, and mm per column and row."""

    shape: Shape
    components: int
    spacing: tuple[float, float] | None


def read_picture(path: Path, *, indices: bool = False, grey: bool = False) -> Picture:
    """Read a picture, or the pages of one size of a TIFF as slices.

    Args:
        indices: a palette's numbers instead of its colours, as label maps have them.
        grey: the luma of colours instead of three channels.

    Raises:
        InputError: it is corrupt, of another kind, claims more pixels than it can hold, or its alpha varies.
    """
    if _is_tiff(path):
        return _read_tiff(path, indices, grey)
    with _opened(path) as image:
        columns, rows = image.size
        _require_plausible(path, columns, rows, len(image.getbands()) * (2 if "16" in image.mode else 1))
        spacing = _dots(image)
        pixels = _pixels(image, path, indices)
    array = _without_alpha(pixels, path) if image.mode in _ALPHA_MODES or pixels.shape[-1] in (2, 4) else pixels
    array = luma(array) if grey and array.shape[-1] == 3 else array
    return Picture(np.ascontiguousarray(array.transpose(2, 1, 0))[..., None], spacing)


def read_header(path: Path) -> PictureHeader:
    """Size, components and spacing; pixels are read only where alpha or a palette has to be looked at.

    Raises:
        InputError: as `read_picture`.
    """
    if _is_tiff(path):
        tiff = Tiff(path)
        if tiff.banded and tiff.hyperstack is None and not tiff.alpha:
            components = 3 if tiff.palette is not None else tiff.samples
            pages = 1 if tiff.page_is_channel else len(tiff.pages)
            components *= len(tiff.pages) if tiff.page_is_channel else 1
            return PictureHeader((tiff.columns, tiff.rows, pages), components, tiff.spacing)
    else:
        with _opened(path) as image:
            columns, rows = image.size
            _require_plausible(path, columns, rows, len(image.getbands()))
            if image.mode in _PLAIN and getattr(image, "n_frames", 1) == 1:
                return PictureHeader((columns, rows, 1), _PLAIN[image.mode], _dots(image))
    picture = read_picture(path)
    return PictureHeader(picture.array.shape[1:], picture.array.shape[0], picture.spacing)


def luma(colours: AnyArray) -> AnyArray:
    """(..., 3) -> (..., 1): 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601), in the same type, rounded.

    >>> luma(np.array([[10, 20, 30]], np.uint8)).tolist()
    [[18]]
    """
    if colours.dtype.kind == "f":
        weights = np.array(_LUMA, np.float64) / 65536
        return (colours @ weights)[..., None].astype(colours.dtype)
    total = np.full(colours.shape[:-1], 32768, np.int64)
    for number, weight in enumerate(_LUMA):
        total += colours[..., number].astype(np.int64) * weight
    return (total >> 16).astype(colours.dtype)[..., None]


def write_picture(path: Path, labels: IntArray, spacing: tuple[float, float] | None) -> None:
    """Write labels (x, y, z) as PNG or TIFF by the name's suffix, in the smallest unsigned type, whole or not at all.

    Raises:
        InputError: a value does not fit the format, or a PNG would have several slices.
        ResourceError: the disk is full.
    """
    low, high = int(labels.min()), int(labels.max())
    kinds = (np.uint8, np.uint16) if path.suffix == ".png" else (np.uint8, np.uint16, np.uint32)
    kind = next((k for k in kinds if high <= np.iinfo(k).max), None)
    if low < 0 or kind is None:
        raise InputError(f"{path}: label values {low} to {high} do not fit {path.suffix[1:]}; write nifti")
    typed = labels if labels.dtype == kind else _converted(labels, kind)
    if path.suffix != ".png":
        write_tiff(path, typed, spacing)
        return
    if labels.shape[2] != 1:
        raise InputError(f"{path}: has {labels.shape[2]} slices and a PNG one; write tiff")
    from PIL import Image

    stated = {} if spacing is None else {"dpi": tuple(25.4 / s for s in spacing)}
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(typed[..., 0].T)).save(temporary, format="PNG", **stated)


def _converted(labels: IntArray, kind: Any) -> IntArray:
    result = spill.zeros(labels.shape, kind)
    result[...] = labels
    return result


# ---- TIFF


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in _TIFF


def _read_tiff(path: Path, indices: bool, grey: bool) -> Picture:
    tiff = Tiff(path)
    if tiff.hyperstack is not None:
        if tiff.hyperstack.ndim != 3:
            raise InputError(f"{path}: is an ImageJ stack {tiff.hyperstack.shape}; save a picture or a stack of pages")
        return Picture(tiff.hyperstack.transpose(2, 1, 0)[None], tiff.spacing)
    if not tiff.banded:
        return _by_pillow(tiff, indices, grey)
    claimed = tiff.rows * tiff.columns * tiff.samples * len(tiff.pages) * int(tiff.dtype.itemsize)
    if claimed > _MOST_PACKED * path.stat().st_size + 1_000_000:
        raise _implausible(path, tiff.columns, tiff.rows)
    return Picture(_filled(tiff, _change(tiff, indices, grey)), tiff.spacing)


def _change(tiff: Tiff, indices: bool, grey: bool) -> Callable[[AnyArray], AnyArray]:
    """What becomes of a band (rows, columns, samples)."""

    def change(band: AnyArray) -> AnyArray:
        if tiff.palette is not None and not indices:
            band = tiff.palette[band[..., 0]]
        return luma(band) if grey and band.shape[-1] == 3 else band

    return change


def _filled(tiff: Tiff, change: Callable[[AnyArray], AnyArray]) -> AnyArray:
    """(components, columns, rows, pages): a view of what lies as (pages, rows, columns, components) in memory or file.

    Alpha is compared with its first value on the way and left out.
    """
    result: AnyArray | None = None
    alpha: Any = None
    for band in tiff.bands():
        values = band.values
        if tiff.alpha:
            values, last = values[..., :-1], values[..., -1]
            alpha = last[0, 0] if alpha is None else alpha
            if (last != alpha).any():
                raise _varying_alpha(tiff.path)
        values = change(values)
        if result is None:
            result = spill.zeros((len(tiff.pages), tiff.rows, tiff.columns, values.shape[-1]), values.dtype)
        result[band.page, band.first : band.first + len(values)] = values
    if result is None:
        raise InputError(f"{tiff.path}: has no pixels; give a picture")
    if tiff.page_is_channel:
        return np.moveaxis(result, 0, 3).reshape(1, tiff.rows, tiff.columns, -1).transpose(3, 2, 1, 0)
    return result.transpose(3, 2, 1, 0)


def _by_pillow(tiff: Tiff, indices: bool, grey: bool) -> Picture:
    """Bits, and compressions of bits, of a single page."""
    from PIL import TiffImagePlugin

    path = tiff.path
    if len(tiff.pages) > 1:
        raise InputError(f"{path}: pages of {tiff.pages[0].bitspersample} bits are not read as a stack; save 8 or 16")
    _require_plausible(path, tiff.columns, tiff.rows, tiff.samples)
    with TiffImagePlugin.TiffImageFile(path) as image:
        pixels = _pixels(image, path, indices)
    pixels = luma(pixels) if grey and pixels.shape[-1] == 3 else pixels
    return Picture(pixels.transpose(2, 1, 0)[..., None], tiff.spacing)


# ---- PNG, JPEG, BMP


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A picture opened by what it begins with; Pillow's own limit of pixels is not asked, ours is."""
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise InputError(f"{path}: is an empty file; copy it again from its source")
    found = next((names for magic, names in _BY_MAGIC.items() if start.startswith(magic)), None)
    if found is None:
        raise InputError(f"{path}: does not begin as a PNG, JPEG, BMP or TIFF file; copy it again or convert it")
    with getattr(import_module(f"PIL.{found[0]}"), found[1])(path) as image:
        require_upright(path, _exif(image, path).get(ORIENTATION))
        yield image


def _exif(image: Any, path: Path) -> Any:
    """A picture's EXIF; Pillow would unpack a PNG to look behind its pixels (PNG 3 allows eXIf there)."""
    from PIL import Image

    if image.format == "PNG" and "exif" not in image.info:
        late = _chunk(path, b"eXIf")
        if late:
            image.info["exif"] = b"Exif\0\0" + late
    return Image.Image.getexif(image)


def _chunk(path: Path, wanted: bytes) -> bytes:
    """The content of a PNG's first chunk of a kind (PNG 5.3: length, kind, content, checksum); empty without one."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == wanted:
                return file.read(min(length, _MOST_EXIF))
            file.seek(length + 4, os.SEEK_CUR)
    return b""


def _pixels(image: Any, path: Path, indices: bool) -> AnyArray:
    """(rows, columns, components)."""
    if getattr(image, "n_frames", 1) > 1 and image.format == "PNG":
        raise InputError(f"{path}: is an animation of {image.n_frames} pictures; save the one you mean")
    if "LA;16" in str(image.tile):
        raise InputError(f"{path}: grey of 16 bits with transparency (alpha) is not read; save it without alpha")
    if image.mode in ("RGB", "RGBA") and ";16" in str(image.tile):
        pixels = _deep_colour(path)
    elif image.mode in ("P", "PA"):
        pixels = np.asarray(image if indices else image.convert("RGBA" if image.has_transparency_data else "RGB"))
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        pixels = np.asarray(image.convert("RGB"))
    else:
        pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _deep_colour(path: Path) -> AnyArray:
    """Colour of 16 bits per component, which Pillow would cut to 8."""
    import SimpleITK as sitk  # noqa: N813

    array: AnyArray = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array


def _without_alpha(pixels: AnyArray, path: Path) -> AnyArray:
    """(rows, columns, components) less a last component of grey + alpha or RGBA that carries nothing."""
    if pixels.shape[-1] not in (2, 4):
        return pixels
    if (pixels[..., -1] != pixels[0, 0, -1]).any():
        raise _varying_alpha(path)
    return pixels[..., :-1]


def _varying_alpha(path: Path) -> InputError:
    return InputError(
        f"{path}: its transparency (alpha) varies, so its colours are not all there; save it without alpha"
    )


def _require_plausible(path: Path, columns: int, rows: int, components: int) -> None:
    """Refuse claims that the file cannot hold, or the memory cannot, before anything is unpacked."""
    claimed, stored = columns * rows * components, path.stat().st_size
    if claimed > _MOST_PACKED * stored + 1_000_000:
        raise _implausible(path, columns, rows)
    if 2 * claimed > spill.free_memory():
        raise InputError(
            f"{path}: {columns} x {rows} pixels do not fit the memory ({claimed / 1e9:.1f} GB); "
            f"save it as tiled TIFF, which is read by region"
        )


def _implausible(path: Path, columns: int, rows: int) -> InputError:
    return InputError(
        f"{path}: claims {columns} x {rows} pixels, more than its {path.stat().st_size} bytes can hold; "
        f"the file is truncated or corrupt, copy it again from its source"
    )


def _dots(image: Any) -> tuple[float, float] | None:
    """mm per column and row, of dots per inch or per metre."""
    dots = image.info.get("dpi")
    if image.format == "JPEG" and image.info.get("jfif_unit") not in (1, 2):
        exif = image.getexif()  # where this says nothing either, Pillow makes 72 dots per inch of it
        dots = dots if exif.get(_X_RESOLUTION) and exif.get(_RESOLUTION_UNIT) in (2, 3) else None
    if dots is None or not all(math.isfinite(float(d)) and float(d) > 0 for d in dots):
        return None
    return 25.4 / float(dots[0]), 25.4 / float(dots[1])
