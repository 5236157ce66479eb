"""medunet's readers behind MONAI's interface, for ``LoadImaged(reader=...)``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys

from medunet.data.spill import slabs
from medunet.data.volume import Volume, read_case, read_label
from medunet.errors import InputError

GEOMETRY = "geometry"
"""Where the meta data of a DICOM volume keeps its geometry verdict."""
STATED = "stated"
"""Whether the meta data's grid is what the file says; not so of pictures without a size of their pixels."""
SOURCES = "sources"
"""Where the meta data keeps the source of each channel; ``filename_or_obj`` is for messages."""


class VolumeReader(ImageReader):
    """Read one file or DICOM series, or one per channel, as (channels, x, y, z) in RAS, in the file's own type.

    MONAI falls back to other readers when ``read`` raises; so errors are collected there and raised by ``get_data``.

    Args:
        label: read label maps (`medunet.data.volume.read_label`).
    """

    def __init__(self, label: bool = False) -> None:
        self.label = bool(label)

    def verify_suffix(self, filename: Any) -> bool:
        """Take every file: what cannot be read is refused here and not guessed elsewhere."""
        return True

    def read(self, data: Any, **kwargs: Any) -> Any:
        """A Volume and its file names, or the error that reading raised."""
        paths = [str(p) for p in data] if isinstance(data, Sequence) and not isinstance(data, str) else [str(data)]
        try:
            volume = read_label(paths[0]) if self.label else read_case(paths)
            require_finite(volume, paths)
            return volume, paths
        except Exception as error:
            return error, paths

    def get_data(self, img: Any) -> tuple[Any, dict[str, Any]]:
        """Array and meta data.

        Raises:
            InputError: the file cannot be used; other errors that `read` met are raised as they were.
        """
        content, paths = img
        if isinstance(content, Exception):
            raise content
        affine = np.array(content.grid.affine)
        meta = {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(content.grid.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
            MetaKeys.SPACE: SpaceKeys.RAS,
            "filename_or_obj": ";".join(paths),
            STATED: content.stated,
            SOURCES: json.dumps(paths),  # a text: collating would take lists apart
        }
        if content.verdict is not None:
            meta[GEOMETRY] = json.dumps(content.verdict)
        return content.array, meta


def require_finite(volume: Volume, paths: Sequence[str]) -> None:
    """Raise an InputError when a voxel is NaN or infinite."""
    if not np.issubdtype(volume.array.dtype, np.floating):
        return
    bad = sum(part.size - int(np.count_nonzero(np.isfinite(part))) for part in slabs(volume.array))
    if bad:
        raise InputError(
            f"{', '.join(paths)}: {bad} of {volume.array.size} voxels are NaN or infinite; "
            f"replace them or remove the case"
        )


def sources_of(image: Any) -> list[str]:
    """What a loaded tensor was read from: one source, or one per channel."""
    text = image.meta.get(SOURCES)
    return [str(image.meta["filename_or_obj"])] if text is None else [str(source) for source in json.loads(text)]


def geometry_of(image: Any) -> dict[str, Any] | None:
    """The geometry verdict of a loaded tensor that came from DICOM."""
    text = image.meta.get(GEOMETRY)
    return None if text is None else dict(json.loads(text))
