"""Volumes from files and label maps to files; every image is (channels, x, y, z) on a Grid in RAS mm.

A 2D picture is a volume with one slice (columns, rows, 1), of 1 mm pixels where it states no size of them, so that
nothing else knows a special case.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data import instances, pictures
from medunet.data.atomic import atomic_path
from medunet.data.channels import onto, require_one_frame
from medunet.data.grid import Grid
from medunet.errors import GeometryError, InputError
from medunet.types import AnyArray, FloatArray, IntArray, Shape, StrPath

_NIFTI = (".nii.gz", ".nii", ".hdr", ".hdr.gz", ".img", ".img.gz")
_GEOMETRY = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_NIBABEL = (*_NIFTI, ".mgz", ".mgh")
_ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = (*_NIBABEL, *_ITK, *pictures.SUFFIXES)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_NIFTI = 32767  # voxels along an axis: NIfTI-1 counts them in 16 bits
_LABEL_TYPES = (np.uint8, np.int16, np.uint16, np.int32)
_CUT_SHORT = re.compile(
    r"expected \d+ bytes|not read completely|failed to read|truncated|empty file|end of file|cannot be read: ", re.I
)


@dataclass(frozen=True)
class Volume:
    """Voxels (channels, x, y, z) and where they lie; `verdict` is what DICOM geometry was found to be.

    `stated` is false for pictures whose file does not say how large a pixel is.
    """

    array: AnyArray
    grid: Grid
    verdict: Mapping[str, Any] | None = None
    stated: bool = True


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its voxels are read."""

    grid: Grid
    channels: int
    verdict: Mapping[str, Any] | None = None


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
    """Read a NIfTI, Analyze pair, MGH, NRRD, MetaImage, PNG, TIFF, BMP, JPEG or DICOM file, or a folder of DICOM.

    DICOM sources may choose among several series (`medunet.data.dicom.source`); their geometry is checked, not guessed.

    Integers stay integers unless the file scales them, floating point becomes float32; a fourth axis, vector and colour
    components become channels.

    Raises:
        InputError: the file is missing, of another kind, truncated or corrupt (gzip checksums are compared).
        GeometryError: its affine is singular or not finite, or the geometry of a DICOM series is refused.
    """
    if _is_dicom(path):
        from medunet.data.dicom.volumes import read_source

        return read_source(path)
    path, options = _source(path)
    with _readable(path):
        volume = _read_picture(path, grey=_grey(path, options)) if options else _reader(path)(path)
        return replace(volume, array=_plain(volume.array))


def _source(text: StrPath) -> tuple[Path, dict[str, str]]:
    """A file and what stands behind the ``#`` of its source."""
    from medunet.data.dicom.source import Source

    source = Source.parse(text)
    return source.path, dict(source.options)


def _grey(path: Path, options: Mapping[str, str]) -> bool:
    """Whether the only thing asked of an image is the one that can be asked, of a picture: grey."""
    if dict(options) != {"channels": "grey"} or suffix_of(path) not in pictures.SUFFIXES:
        asked = "&".join(f"{key}={value}" for key, value in options.items())
        raise InputError(
            f"{path}: '{asked}' cannot be asked of it; a picture has channels=grey, a label map instances=..."
        )
    return True


def read_header(path: StrPath) -> Header:
    """Grid and number of channels, without reading the voxels where the format allows.

    Raises:
        InputError: as `read_volume`.
    """
    if _is_dicom(path):
        from medunet.data.dicom.volumes import read_series_header

        return read_series_header(path)
    path, options = _source(path)
    with _readable(path):
        suffix = suffix_of(path)
        if suffix in pictures.SUFFIXES:
            header = pictures.read_header(path)
            components = 1 if options and header.components == 3 and _grey(path, options) else header.components
            return Header(_picture_grid(header.shape, header.spacing), components)
        if suffix in _NIBABEL:
            return _nibabel_header(_open_nibabel(path))
        if suffix in _ITK:
            return _itk_header(path)
        raise _unknown(path)


def read_grid(path: StrPath) -> Grid:
    """The grid alone; see `read_header`."""
    return read_header(path).grid


def read_case(paths: Sequence[StrPath]) -> Volume:
    """Several files as channels; those on another grid are resampled (linear) onto the first one's.

    Pictures that do not say how large their pixels are lie on each other where they have one size.

    Raises:
        GeometryError: a channel's grid does not overlap the first one's, or its place in it is not known.
        InputError: as `read_volume`.
    """
    first = read_volume(paths[0])
    if len(paths) == 1:
        return first
    arrays = [first.array]
    for path in paths[1:]:
        volume = read_volume(path)
        require_one_frame(first, volume, str(path), str(paths[0]))
        stated = first.stated and volume.stated
        arrays.append(onto(volume, first.grid, str(path), str(paths[0]), stated))
    return replace(first, array=np.concatenate([a.astype(np.float32, copy=False) for a in arrays]))


def read_label(path: StrPath) -> Volume:
    """A label map as integers (1, x, y, z); ``PATH#instances=apart`` (or ``border``): classes of a map of objects.

    A picture with a palette holds the palette's numbers.

    Raises:
        InputError: as `read_volume`, or several channels, or values that are not whole numbers.
    """
    volume, kind = _label_volume(path)
    array = volume.array
    if array.shape[0] != 1:
        raise InputError(f"{path}: has {array.shape[0]} channels, a label map has one; give one value per voxel")
    if np.issubdtype(array.dtype, np.floating):
        wrong = ~np.isfinite(array) | (array != np.round(array))
        if wrong.any():
            raise InputError(f"{path}: label value {array[wrong][0]:g} is not a whole number; store class numbers")
        array = array.astype(np.int32 if np.abs(array).max() < 2**31 else np.int64)
    if kind is not None:
        array = instances.classes_of(array[0], kind, str(path))[None]
    return replace(volume, array=array)


def _label_volume(path: StrPath) -> tuple[Volume, str | None]:
    """The voxels of a label source, and the kind of target that its objects are to become."""
    if _is_dicom(path):
        return read_volume(path), None
    file, options = _source(path)
    kind = options.pop("instances", None)
    if suffix_of(file) not in pictures.SUFFIXES or options:
        return read_volume(file if kind else path), kind
    with _readable(file):
        volume = _read_picture(file, indices=True)
        return replace(volume, array=_plain(volume.array)), kind


def aligned(label: Volume, image: Volume) -> Volume:
    """A label map on its image's grid, where it is a picture of that size that does not say how large pixels are."""
    if label.stated or label.grid.shape != image.grid.shape:
        return label
    return replace(label, grid=image.grid)


def write_label(path: StrPath, array: IntArray, grid: Grid, like: StrPath | None = None) -> None:
    """Write (x, y, z) labels as NIfTI in the smallest integer type, whole or not at all.

    The affine is stored in float32 (NIfTI-1 srow). With `like`, the NIfTI file that `grid` was read from, its qform and
    sform are copied as they are, so that the affine comes back bit-equal whichever of them holds it.

    Raises:
        GeometryError: the array's shape is not the grid's.
        InputError: the name is not a NIfTI file's, or a value does not fit 32 bits.
        ResourceError: the disk is full.
    """
    if array.shape != grid.shape:
        raise GeometryError(f"{path}: label shape {array.shape} differs from its grid {grid.describe()}")
    low, high = int(array.min()), int(array.max())
    dtype = next((t for t in _LABEL_TYPES if np.iinfo(t).min <= low <= high <= np.iinfo(t).max), None)
    if dtype is None:
        raise InputError(f"{path}: label values {low} to {high} do not fit 32 bits; number the classes from 0")
    _write_nifti(path, array.astype(dtype, copy=False), grid, like)


def write_image(path: StrPath, array: FloatArray, grid: Grid) -> None:
    """Write (x, y, z) or (channels, x, y, z) as NIfTI, whole or not at all."""
    _write_nifti(path, np.moveaxis(array, 0, -1) if array.ndim == 4 else array, grid)


def _write_nifti(path: StrPath, array: AnyArray, grid: Grid, like: StrPath | None = None) -> None:
    import nibabel as nib

    if suffix_of(path) not in (".nii", ".nii.gz"):
        raise InputError(f"{path}: only NIfTI is written; give a name that ends in .nii or .nii.gz")
    require_nifti(str(path), grid)
    source = nib.load(like) if like is not None and suffix_of(like) in _NIFTI else None
    if isinstance(source, nib.Nifti1Pair) and np.array_equal(source.affine, grid.affine):
        header = nib.Nifti1Header()
        for name in _GEOMETRY:
            header[name] = source.header[name]
        image = nib.Nifti1Image(array, None, header)
        image.set_data_dtype(array.dtype)
    else:
        image = nib.Nifti1Image(array, grid.affine)
        image.set_qform(grid.affine, code=1, strip_shears=True)
        image.set_sform(grid.affine, code=1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if suffix_of(path) == ".nii.gz":
            packed = gzip.GzipFile("", "wb", compresslevel=4, fileobj=file, mtime=0)
            with packed, io.BufferedWriter(packed, 1 << 16) as stream:  # nibabel writes a column at a time
                image.to_stream(stream)
        else:
            image.to_stream(file)


def require_nifti(name: str, grid: Grid) -> None:
    """Raise an InputError unless NIfTI can hold a volume of this size."""
    if max(grid.shape) > _MOST_NIFTI:
        raise InputError(
            f"{name}: has {max(grid.shape)} voxels along an axis, NIfTI holds {_MOST_NIFTI}; write tiff (--format tiff)"
        )


def _is_dicom(path: StrPath) -> bool:
    from medunet.data.dicom.source import is_dicom

    return is_dicom(path)


def _reader(path: Path) -> Callable[[Path], Volume]:
    suffix = suffix_of(path)
    if suffix in _NIBABEL:
        return _read_nibabel
    if suffix in _ITK:
        return _read_itk
    if suffix in pictures.SUFFIXES:
        return _read_picture
    raise _unknown(path)


def _unknown(path: Path) -> InputError:
    return InputError(f"{path}: is not a volume that can be read; give one of {', '.join(VOLUME_SUFFIXES)}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what readers raise on broken files into one sentence that names the file."""
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder; give a file' if path.is_dir() else 'is missing; check the path'}")
    try:
        yield
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}; correct its header or convert it again") from error
    except (InputError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: the file that belongs to it, {error.filename}, is missing; copy both") from error
    except PermissionError as error:
        raise InputError(f"{path}: may not be read (permission denied); ask for access") from error
    except Exception as error:
        raise InputError(f"{path}: {_diagnosis(error)}") from error


def _diagnosis(error: Exception) -> str:
    """What an exception of a reading library says, in one line."""
    text = re.sub(r"(?s)^Exception thrown in .*?ERROR: ", "", str(error))
    reason = re.sub(r"\s+", " ", re.sub(r"\w+\(0x[0-9a-f]+\): ", "", text)).strip()[:200]
    if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile, struct.error)) or _CUT_SHORT.search(str(error)):
        return f"cannot be read, the file is truncated or corrupt ({reason}); copy it again from its source"
    return f"cannot be read ({type(error).__name__}: {reason}); copy it again from its source or convert it"


def _plain(array: AnyArray) -> AnyArray:
    """Native integers or float32."""
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind not in "iu":
        raise TypeError(f"voxels of type {array.dtype} are not real numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _open_nibabel(path: Path) -> Any:
    import nibabel as nib

    return nib.load(path)


def _nibabel_header(image: Any) -> Header:
    shape = tuple(image.shape) + (1,) * (3 - len(image.shape))
    if sum(n > 1 for n in shape[3:]) > 1:
        raise InputError(f"{image.get_filename()}: has {len(shape)} axes {shape}; give 3, or 4 with channels last")
    unit = image.header.get_xyzt_units()[0] if hasattr(image.header, "get_xyzt_units") else "mm"
    if unit not in ("mm", "unknown"):
        raise GeometryError(f"states its lengths in {unit} (xyzt_units), and millimetres are read")
    components = len(image.get_data_dtype().names or ("value",))
    return Header(Grid(shape[:3], image.affine), int(np.prod(shape[3:])) * components)


def _read_nibabel(path: Path) -> Volume:
    image = _open_nibabel(path)
    header = _nibabel_header(image)
    array = _checked_voxels(image, path) if path.name.lower().endswith((".gz", ".mgz")) else _voxels(image)
    array = array.reshape((*header.grid.shape, -1), order="F")
    return Volume(np.moveaxis(array, -1, 0), header.grid)


def _voxels(image: Any) -> AnyArray:
    """Stored values with the file's scaling, x first; colour components as a last axis."""
    array: AnyArray = np.asarray(image.dataobj)
    if array.dtype.names:
        return np.stack([array[name] for name in array.dtype.names], axis=-1)
    proxy = image.dataobj
    scaled = getattr(proxy, "slope", 1) not in (1, None) or getattr(proxy, "inter", 0) not in (0, None)
    return array.astype(np.float32) if scaled else array


def _checked_voxels(image: Any, path: Path) -> AnyArray:
    """`_voxels` of a compressed file, read to its end: only there gzip compares the checksum (RFC 1952, CRC32)."""
    kind = type(image)
    holders = kind.filespec_to_file_map(path)
    with ExitStack() as stack:
        for holder in holders.values():
            holder.fileobj = stack.enter_context(holder.get_prepare_fileobj("rb"))
        array = _voxels(kind.from_file_map(holders))
        for holder in holders.values():
            while holder.fileobj.read(1 << 20):
                pass
    return array


def _itk_header(path: Path) -> Header:
    import SimpleITK as sitk  # noqa: N813

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return _itk_geometry(reader, reader.GetNumberOfComponents())


def _read_itk(path: Path) -> Volume:
    import SimpleITK as sitk  # noqa: N813

    image = sitk.ReadImage(str(path))
    components = image.GetNumberOfComponentsPerPixel()
    header = _itk_geometry(image, components)
    array = sitk.GetArrayViewFromImage(image).reshape((-1, *header.grid.shape[::-1], components))
    array = array.transpose(0, 4, 3, 2, 1).reshape((-1, *header.grid.shape))
    return Volume(np.array(array), header.grid)


def _itk_geometry(image: Any, components: int) -> Header:
    """Grid and channels of a SimpleITK image or reader; axes after the third are channels."""
    size = (*image.GetSize(), 1)
    grid = _itk_grid(size[:3], image.GetSpacing(), image.GetDirection(), image.GetOrigin())
    return Header(grid, int(np.prod(size[3:])) * components)


def _itk_grid(size: Shape, spacing: Sequence[float], direction: Sequence[float], origin: Sequence[float]) -> Grid:
    """SimpleITK's LPS geometry of two or more axes, in RAS."""
    dims = len(spacing)
    axes = min(dims, 3)
    affine = np.eye(4)
    affine[:axes, :axes] = np.array(direction).reshape(dims, dims)[:axes, :axes] * np.array(spacing)[:axes]
    affine[:axes, 3] = origin[:axes]
    return Grid(size, _LPS_TO_RAS @ affine)


def _read_picture(path: Path, indices: bool = False, grey: bool = False) -> Volume:
    picture = pictures.read_picture(path, indices=indices, grey=grey)
    return Volume(picture.array, _picture_grid(picture.array.shape[1:], picture.spacing), None, bool(picture.spacing))


def _picture_grid(shape: Shape, spacing: tuple[float, float] | None) -> Grid:
    """Columns, rows and pages; a picture that states no size of its pixels has 1 mm, as have pages among each other."""
    return Grid.from_spacing(shape, (*(spacing or (1.0, 1.0)), 1.0))
