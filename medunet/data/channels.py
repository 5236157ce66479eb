"""Channels of a case that lie in files of their own, brought onto the first one's grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medunet.data.grid import Grid
from medunet.errors import GeometryError
from medunet.types import AnyArray

if TYPE_CHECKING:
    from medunet.data.volume import Volume


def require_one_frame(first: Volume, other: Volume, name: str, first_name: str) -> None:
    """Refuse DICOM channels of two frames of reference: coordinates of another one mean nothing here (PS3.3 C.7.4.1).

    Raises:
        GeometryError: they differ.
    """
    frames = [v.verdict.get("frame_of_reference") for v in (first, other) if v.verdict is not None]
    if len(set(frames)) > 1:
        raise GeometryError(
            f"{name}: frame of reference {frames[1] or '(none)'} differs from {frames[0] or '(none)'} of {first_name}; "
            f"channels of a case need one; register the series first"
        )


def onto(volume: Volume, grid: Grid, name: str, first: str, stated: bool) -> AnyArray:
    """Resample a channel linearly through world coordinates; outside its field of view it takes its border's values.

    `stated`: both grids are what the files say; else they have to have one shape.

    Raises:
        GeometryError: the grids do not overlap, or how they lie on each other is not known.
    """
    if volume.grid.agrees_with(grid) or (not stated and volume.grid.shape == grid.shape):
        return volume.array
    if not stated:
        raise GeometryError(
            f"{name}: has {volume.grid.shape} pixels and {first} {grid.shape}, and not both say how large these are; "
            f"save the channels of a case with one number of pixels"
        )
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
