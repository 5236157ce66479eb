"""What the header of a NIfTI file leaves open about where its voxels lie (nifti1.h, methods 1 to 3)."""

from __future__ import annotations

from typing import Any

from medunet.data.dicom.source import Source
from medunet.data.grid import Grid
from medunet.data.volume import suffix_of
from medunet.errors import GeometryError
from medunet.types import Affine, Shape, StrPath

_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".hdr.gz", ".img", ".img.gz")
_SAME_PLACE = 0.1  # of a voxel: qform and sform that are closer say the same, however they were rounded


def orientation_doubt(path: StrPath) -> str:
    """One sentence without its subject; empty where the file says one thing, and for files of another kind."""
    import nibabel as nib

    file = Source.parse(path).path
    if suffix_of(file) not in _SUFFIXES or not file.is_file():
        return ""
    header = nib.load(file).header
    codes = (int(header[f"{form}_code"]) if f"{form}_code" in header else 0 for form in ("qform", "sform"))
    has_qform, has_sform = (code > 0 for code in codes)
    shape, affine = _assumed(header)
    if not (has_qform or has_sform):
        axes = Grid(shape, affine).axcodes
        return f"does not say which way its axes run (no qform, no sform): {axes} here, as in all such files"
    if not (has_qform and has_sform):
        return ""
    return _contradiction(file.name, header, Grid(shape, affine))


def _contradiction(name: str, header: Any, grid: Grid) -> str:
    from nibabel.spatialimages import HeaderDataError

    try:
        apart = grid.distance(Grid(grid.shape, header.get_qform()))
    except (HeaderDataError, GeometryError, ValueError) as error:
        return f"{name} has a qform that is none ({error}); its sform is taken"
    if apart <= _SAME_PLACE * min(grid.spacing):
        return ""
    return f"{name} has a qform and an sform that are up to {apart:.3g} mm apart; its sform is taken, check it"


def _assumed(header: Any) -> tuple[Shape, Affine]:
    """Shape and affine as nibabel takes them: the sform, else the qform, else the size of the voxels alone."""
    return (*header.get_data_shape(), 1, 1, 1)[:3], header.get_best_affine()
