"""Aliases for the arrays and scalars that cross module borders, with their shapes and units."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
IntArray: TypeAlias = npt.NDArray[np.integer[Any]]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
AnyArray: TypeAlias = npt.NDArray[Any]

Affine: TypeAlias = npt.NDArray[np.float64]
"""(4, 4), voxel index -> RAS millimetres."""

Shape: TypeAlias = tuple[int, ...]
"""Voxels per spatial axis, without channels."""

Spacing: TypeAlias = tuple[float, ...]
"""Millimetres per voxel and axis."""

StrPath: TypeAlias = str | os.PathLike[str]
