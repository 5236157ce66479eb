"""Maps of objects (0: background, 1 to N) and the classes that a network is trained on, in both directions."""

from __future__ import annotations

import cc3d
import numpy as np
from scipy import ndimage

from medunet.errors import InputError
from medunet.types import IntArray

KINDS = ("apart", "border")
"""How touching objects are kept apart: by a gap of background, or by a class of its own."""

_NEAR = 2.0  # voxels that a border may be away from the object that it is given to


def classes_of(instances: IntArray, kind: str, name: str = "instances") -> IntArray:
    """The classes of a map of objects: ``apart``: 1 in objects; ``border``: 2 where two objects touch as well.

    Shapes: (x, y, z) -> uint8, the same. `name` is what an error calls the map.

    Raises:
        InputError: the kind is not known, or an object has a number below 0.
    """
    if kind not in KINDS:
        raise InputError(f"{name}: instances={kind} is not known; give {' or '.join(KINDS)}")
    if instances.size and instances.min() < 0:
        raise InputError(f"{name}: an instance map holds {instances.min()}; give 0 for background and positive numbers")
    return separate(instances) if kind == "apart" else bordered(instances)


def separate(instances: IntArray) -> IntArray:
    """1 in cells, 0 elsewhere, with at least a voxel of background between any two cells, diagonals included.

    Where two cells touch, the larger gives up the voxels that touch the smaller one (of equal ones: the lower number),
    so that the gap is one voxel wide. A cell all of whose voxels touch smaller ones is lost.

    Shapes: (*n), 0 for background and one number per cell -> uint8 (*n).
    """
    names, places, sizes = np.unique(instances, return_inverse=True, return_counts=True)
    order = np.lexsort((names, -sizes))  # from the largest
    ranks = np.empty(len(names), dtype=np.int32)
    ranks[order] = np.arange(1, len(names) + 1)
    ranks[names == 0] = 0
    ranked = ranks[places].reshape(instances.shape)
    gives_way = ndimage.maximum_filter(ranked, size=3, mode="nearest") > ranked
    separated: IntArray = ((ranked > 0) & ~gives_way).astype(np.uint8)
    return separated


def bordered(instances: IntArray) -> IntArray:
    """1 in objects, 2 where the 3 x 3 (x 3) neighbourhood of a voxel holds two of them, 0 elsewhere.

    Two objects that touch have a border of two voxels between them, one of each; a gap of one voxel between objects is
    border as well.

    Shapes: (*n) -> uint8 (*n).
    """
    numbers = instances.astype(np.int64)
    largest = ndimage.maximum_filter(numbers, size=3, mode="nearest")
    without_background = np.where(numbers == 0, numbers.max(initial=0) + 1, numbers)
    touching = ndimage.minimum_filter(without_background, size=3, mode="nearest") < largest
    return np.where(touching, 2, instances > 0).astype(np.uint8)


def numbered(labels: IntArray, cell: int, border: int | None = None) -> IntArray:
    """A map of objects: the connected parts (faces) of the label `cell`, from 1 on.

    Voxels of the label `border` go to the nearest object, where one is within two voxels.

    Shapes: (x, y, z) -> uint32, the same.
    """
    flat = labels.shape[-1] == 1
    mask = np.ascontiguousarray(labels[..., 0] == cell if flat else labels == cell)
    parts = cc3d.connected_components(mask, connectivity=4 if flat else 6).astype(np.uint32)
    if border is not None:
        wanted = np.asarray(labels[..., 0] == border if flat else labels == border)
        if wanted.any() and mask.any():
            away, nearest = ndimage.distance_transform_edt(~mask, return_indices=True)
            chosen = wanted & (away <= _NEAR)
            parts[chosen] = parts[tuple(places[chosen] for places in nearest)]
    result: IntArray = parts[..., None] if flat else parts
    return result
