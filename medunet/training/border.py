"""Cells that touch: the weight map of the U-Net paper, and targets with a gap between neighbours.

Source: Ronneberger, Fischer, Brox 2015 (doi:10.1007/978-3-319-24574-4_28), section 3, equation 2.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import cc3d
import edt
import numpy as np
import torch
from monai.transforms import MapTransform
from scipy import ndimage

from medunet.data.instances import separate as separate
from medunet.errors import InputError
from medunet.training.losses import OF_REGIONS
from medunet.types import AnyArray, FloatArray, IntArray

_NEGLIGIBLE = 1e-7  # of a weight


def border_weights(
    instances: IntArray,
    w0: float = 10.0,
    sigma: float = 5.0,
    spacing: Sequence[float] | None = None,
    class_weights: Sequence[float] | None = None,
) -> FloatArray:
    """w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)): high in narrow gaps between cells.

    d1 and d2 are the distances from a background voxel to the nearest voxel of the nearest and of the second-nearest
    cell, centre to centre. Inside cells, and where there are fewer than two cells, the second term is 0. Each cell's
    distances are computed in a box around it: beyond, the term is below 1e-7.

    Args:
        instances: 0 for background, one number per cell; 2D or 3D.
        w0: weight in the limit of no gap (the paper: 10).
        sigma: width in the unit of `spacing` (the paper: 5 pixels).
        spacing: distance between voxels per axis; 1 everywhere when not given, so that sigma is in voxels.
        class_weights: w_c of background and of cells; balanced by `balance` when not given.

    Shapes: (*n) -> float32 (*n).

    Raises:
        InputError: another number of axes or spacings, or sigma or a spacing that is not positive.
    """
    steps = _spacing(instances, sigma, spacing)
    cells = instances != 0
    background, foreground = balance(cells) if class_weights is None else (float(w) for w in class_weights)
    weights: FloatArray = np.where(cells, foreground, background).astype(np.float32)
    if w0 > _NEGLIGIBLE:
        reach = sigma * math.sqrt(2 * math.log(w0 / _NEGLIGIBLE))
        first, second = _nearest_two(instances, steps, reach)
        extra = w0 * np.exp(-np.square(first + second) / (2 * sigma**2))
        weights += np.where(cells, 0, extra).astype(np.float32)
    return weights


def balance(cells: AnyArray) -> tuple[float, float]:
    """w_c of background and of cells: half the voxels over those of the class, so that the mean over voxels is 1.

    Where one of the two is absent, both are 1.
    """
    inside = int(np.count_nonzero(cells))
    if inside in (0, cells.size):
        return 1.0, 1.0
    return cells.size / (2 * (cells.size - inside)), cells.size / (2 * inside)


class BorderWeightsd(MapTransform):
    """Append the weight map to a label as its second channel: what `WeightedCE` reads.

    Cells are the connected components (faces) of each class but 0. The weights are computed on the patch as it is after
    augmentation: distances stay true and nothing has to be interpolated.

    Args:
        keys: labels, classes 0..K-1.
        w0: see `border_weights`.
        sigma: see `border_weights`; in voxels.
        class_weights: w_c of background and of cells; balanced in each patch when not given.
        classes: the network's outputs; numbers from this one on (of a single region's mask from 2 on) are voxels nobody
            annotated, which belong to no cell; null: there are none.

    Shapes: (1, *n) -> (2, *n) float32: classes, weights.

    Raises:
        InputError: (at call) the label has regions, of which cells are not known.
    """

    def __init__(
        self,
        keys: str | Sequence[str] = "label",
        w0: float = 10.0,
        sigma: float = 5.0,
        class_weights: Sequence[float] | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__(keys)
        self.w0, self.sigma, self.class_weights = float(w0), float(sigma), class_weights
        self._first_unknown = math.inf if classes is None else max(2, int(classes))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            label = torch.as_tensor(item[key]).float()
            if len(label) != 1:
                raise InputError(
                    f"the label has {len(label)} regions that may overlap, border weights are of classes; "
                    f"take {OF_REGIONS}"
                )
            classes = np.ascontiguousarray(label[0].numpy().astype(np.int32))
            annotated = classes < self._first_unknown
            cells = cc3d.connected_components(classes * annotated, connectivity=4 if classes.ndim == 2 else 6)
            own = self.class_weights or balance(cells[annotated])
            weights = border_weights(cells, self.w0, self.sigma, class_weights=own)
            item[key] = torch.cat((label, torch.from_numpy(weights)[None]))
        return item


def _nearest_two(instances: IntArray, steps: Sequence[float], reach: float) -> tuple[FloatArray, FloatArray]:
    """Distances to the nearest and second-nearest cell, exact up to `reach`; infinite where there is none so near."""
    names, places = np.unique(instances, return_inverse=True)
    compact = places.reshape(instances.shape) + (0 if names[0] == 0 else 1)
    first = np.full(instances.shape, np.inf, dtype=np.float32)
    second = first.copy()
    margins = [math.ceil(reach / step) for step in steps]
    for number, own in enumerate(ndimage.find_objects(compact), 1):
        box = tuple(slice(max(0, s.start - m), s.stop + m) for s, m in zip(own, margins, strict=True))
        distance = edt.edt(np.ascontiguousarray(compact[box] != number), anisotropy=tuple(steps), parallel=1)
        np.minimum(second[box], np.maximum(first[box], distance), out=second[box])
        np.minimum(first[box], distance, out=first[box])
    return first, second


def _spacing(instances: IntArray, sigma: float, spacing: Sequence[float] | None) -> tuple[float, ...]:
    steps = (1.0,) * instances.ndim if spacing is None else tuple(float(s) for s in spacing)
    if instances.ndim not in (2, 3) or len(steps) != instances.ndim:
        raise InputError(f"an instance map has {instances.ndim} axes and {len(steps)} spacings; give 2 or 3 of both")
    if not (sigma > 0 and min(steps) > 0):
        raise InputError(f"sigma is {sigma:g} and spacing {list(steps)}; give lengths above 0")
    if instances.size and instances.min() < 0:
        raise InputError(
            f"an instance map holds {instances.min()}; give 0 for background and positive numbers for cells"
        )
    return steps
