"""Volumes from files and label maps to files; every image is (channels, x, y, z) on a Grid in RAS mm.

A 2D picture is a volume with one slice (columns, rows, 1) and 1 mm pixels, so that nothing else knows a special case.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data.atomic import atomic_path
from medunet.data.grid import Grid
from medunet.errors import GeometryError, InputError
from medunet.types import AnyArray, FloatArray, IntArray, StrPath

_NIBABEL = (".nii.gz", ".nii", ".hdr", ".hdr.gz", ".img", ".img.gz", ".mgz", ".mgh")
_ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
_PICTURES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
VOLUME_SUFFIXES = (*_NIBABEL, *_ITK, *_PICTURES)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Volume:
    """Voxels (channels, x, y, z) and where they lie."""

    array: AnyArray
    grid: Grid


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its voxels are read."""

    grid: Grid
    channels: int


def suffix_of(path: StrPath) -> str:
    """The recognised suffix of a file name in lower case, ``.nii.gz`` as one; empty when there is none."""
    name = Path(path).name.lower()
    return max((s for s in VOLUME_SUFFIXES if name.endswith(s)), key=len, default="")


def stem_of(path: StrPath) -> str:
    """The file name without its recognised suffix.

    >>> stem_of("a/scan.v2.nii.gz")
    'scan.v2'
    """
    name = Path(path).name
    suffix = suffix_of(path)
    return name[: len(name) - len(suffix)] if suffix else Path(name).stem


def read_volume(path: StrPath) -> Volume:
    """Read a NIfTI, Analyze pair, MGH, NRRD, MetaImage, PNG, TIFF, BMP or JPEG file.

    Integers stay integers unless the file scales them; a fourth NIfTI axis becomes channels.

    Raises:
        InputError: the file is missing, of another kind, truncated or corrupt.
    """
    path = Path(path)
    with _readable(path):
        return _reader(path)(path)


def read_header(path: StrPath) -> Header:
    """Grid and number of channels, without reading the voxels where the format allows.

    Raises:
        InputError: as `read_volume`.
    """
    path = Path(path)
    with _readable(path):
        suffix = suffix_of(path)
        if suffix in _NIBABEL:
            return _nibabel_header(_open_nibabel(path))
        if suffix in _ITK:
            return _itk_header(path)
        volume = _reader(path)(path)
        return Header(volume.grid, volume.array.shape[0])


def read_case(paths: Sequence[StrPath]) -> Volume:
    """Several files as channels; those on another grid are resampled (linear) onto the first one's.

    Raises:
        GeometryError: a channel's grid does not overlap the first one's.
        InputError: as `read_volume`.
    """
    first = read_volume(paths[0])
    if len(paths) == 1:
        return first
    arrays = [first.array]
    for path in paths[1:]:
        volume = read_volume(path)
        arrays.append(_onto(volume, first.grid, str(path), str(paths[0])))
    return Volume(np.concatenate([a.astype(np.float32, copy=False) for a in arrays]), first.grid)


def read_label(path: StrPath) -> Volume:
    """A label map as integers (1, x, y, z).

    Raises:
        InputError: as `read_volume`, or several channels, or values that are not whole numbers.
    """
    volume = read_volume(path)
    array = volume.array
    if array.shape[0] != 1:
        raise InputError(f"{path}: has {array.shape[0]} channels, a label map has one; give one value per voxel")
    if np.issubdtype(array.dtype, np.floating):
        wrong = ~np.isfinite(array) | (array != np.round(array))
        if wrong.any():
            raise InputError(f"{path}: label value {array[wrong][0]:g} is not a whole number; store class numbers")
        array = array.astype(np.int32)
    return Volume(array, volume.grid)


def write_label(path: StrPath, array: IntArray, grid: Grid) -> None:
    """Write (x, y, z) labels as NIfTI in the smallest integer type, whole or not at all.

    The affine is stored in float32 (NIfTI-1 srow); one that was read from a NIfTI file comes back bit-equal.
    """
    if array.shape != grid.shape:
        raise GeometryError(f"{path}: label shape {array.shape} differs from its grid {grid.describe()}")
    low, high = int(array.min()), int(array.max())
    dtype = next(
        t for t in (np.uint8, np.int16, np.uint16, np.int32) if np.iinfo(t).min <= low <= high <= np.iinfo(t).max
    )
    _write_nifti(path, array.astype(dtype), grid)


def write_image(path: StrPath, array: FloatArray, grid: Grid) -> None:
    """Write (x, y, z) or (channels, x, y, z) as NIfTI, whole or not at all."""
    _write_nifti(path, np.moveaxis(array, 0, -1) if array.ndim == 4 else array, grid)


def _write_nifti(path: StrPath, array: AnyArray, grid: Grid) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(array, grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(grid.affine, code=1, strip_shears=True)
    image.set_sform(grid.affine, code=1)
    content = image.to_bytes()
    with atomic_path(path) as temporary:
        if str(path).endswith(".gz"):
            content = gzip.compress(content, compresslevel=4, mtime=0)
        temporary.write_bytes(content)


def _reader(path: Path) -> Callable[[Path], Volume]:
    suffix = suffix_of(path)
    if suffix in _NIBABEL:
        return _read_nibabel
    if suffix in _ITK:
        return _read_itk
    if suffix in _PICTURES:
        return _read_picture
    raise InputError(f"{path}: is not a volume that can be read; give one of {', '.join(VOLUME_SUFFIXES)}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what readers raise on broken files into one sentence."""
    if not path.is_file():
        raise InputError(f"{path}: is missing; check the path")
    try:
        yield
    except InputError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
        raise InputError(
            f"{path}: cannot be read, the file is truncated or corrupt ({error}); copy it again from its source"
        ) from error
    except Exception as error:
        reason = re.sub(r"\s+", " ", str(error))[:160]
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}: {reason}); copy it again from its source or convert it"
        ) from error


def _open_nibabel(path: Path) -> Any:
    import nibabel as nib

    return nib.load(path)


def _nibabel_header(image: Any) -> Header:
    shape = tuple(image.shape) + (1,) * (3 - len(image.shape))
    if len(shape) > 3 and max(shape[4:], default=1) > 1:
        raise InputError(f"{image.get_filename()}: has {len(shape)} axes {shape}; give 3, or 4 with channels last")
    return Header(Grid(shape[:3], image.affine), shape[3] if len(shape) > 3 else 1)


def _read_nibabel(path: Path) -> Volume:
    image = _open_nibabel(path)
    header = _nibabel_header(image)
    raw = image.dataobj
    scaled = getattr(raw, "slope", 1) not in (1, None) or getattr(raw, "inter", 0) not in (0, None)
    array = np.asarray(raw)
    if scaled or np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
    array = array.reshape((*header.grid.shape, header.channels), order="A")
    return Volume(np.moveaxis(array, -1, 0), header.grid)


def _itk_header(path: Path) -> Header:
    import SimpleITK as sitk  # noqa: N813

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = (*reader.GetSize(), 1)[:3]
    grid = _itk_grid(size, reader.GetSpacing(), reader.GetDirection(), reader.GetOrigin())
    return Header(grid, reader.GetNumberOfComponents())


def _read_itk(path: Path) -> Volume:
    import SimpleITK as sitk  # noqa: N813

    image = sitk.ReadImage(str(path))
    size = (*image.GetSize(), 1)[:3]
    grid = _itk_grid(size, image.GetSpacing(), image.GetDirection(), image.GetOrigin())
    channels = image.GetNumberOfComponentsPerPixel()
    array = sitk.GetArrayFromImage(image).reshape((*size[::-1], channels))
    array = np.ascontiguousarray(array.transpose(3, 2, 1, 0))
    return Volume(array.astype(np.float32) if array.dtype == np.float64 else array, grid)


def _itk_grid(size: Sequence[int], spacing: Any, direction: Any, origin: Any) -> Grid:
    """SimpleITK's LPS geometry, 2D or 3D, in RAS."""
    dims = len(spacing)
    affine = np.eye(4)
    affine[:dims, :dims] = np.array(direction).reshape(dims, dims) * np.array(spacing)
    affine[:dims, 3] = origin
    return Grid(tuple(size), _LPS_TO_RAS @ affine)


def _read_picture(path: Path) -> Volume:
    array = _tiff(path) if suffix_of(path) in (".tif", ".tiff") else _pil(path)
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[-1] in (2, 4) and (array[..., -1] == array.flat[array.shape[-1] - 1]).all():
        array = array[..., :-1]  # a constant alpha channel carries nothing
    volume = np.ascontiguousarray(array.transpose(2, 1, 0)[..., None])
    return Volume(volume, Grid(volume.shape[1:], np.eye(4)))


def _tiff(path: Path) -> AnyArray:
    import tifffile

    array: AnyArray = tifffile.imread(path)
    if array.ndim == 3 and array.shape[0] <= 4 < array.shape[2]:
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3):
        raise InputError(f"{path}: has {array.ndim} axes {array.shape}; give a grey or colour picture")
    return array


def _pil(path: Path) -> AnyArray:
    from PIL import Image

    with Image.open(path) as image:
        colour = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
        colour = colour.convert("RGB") if colour.mode == "P" else colour
        return np.asarray(colour.convert("L") if colour.mode == "1" else colour)


def _onto(volume: Volume, grid: Grid, name: str, first: str) -> AnyArray:
    """Resample a channel linearly through world coordinates; outside its field of view it takes its border's values."""
    if volume.grid.agrees_with(grid):
        return volume.array
    if not volume.grid.overlaps(grid):
        raise GeometryError(
            f"{name}: grid {volume.grid.describe()} does not overlap {first} {grid.describe()}; "
            f"channels of a case must show the same place"
        )
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(volume.grid.affine) @ grid.affine
    return np.stack(
        [
            affine_transform(
                channel.astype(np.float32), matrix[:3, :3], matrix[:3, 3], grid.shape, order=1, mode="nearest"
            )
            for channel in volume.array
        ]
    )
