"""From class probabilities on the network's grid to a label map on the input's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from medunet.data.grid import Grid
from medunet.types import IntArray


def native_grid(image: MetaTensor) -> Grid:
    """The grid that the file was read on, before any preprocessing."""
    return Grid(tuple(int(n) for n in image.meta["spatial_shape"]), np.asarray(image.meta["original_affine"]))


def current_grid(image: MetaTensor) -> Grid:
    """The grid that the tensor (channels, x, y, z) lies on now."""
    return Grid(tuple(image.shape[1:]), image.affine.numpy())


def restore_probabilities(probabilities: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resample (classes, *source.shape) linearly onto `target`; voxels outside the source take its border's values.

    Grids that differ by flips and permutations only are rearranged exactly.
    """
    if not _axis_aligned(source, target):
        return _sample(probabilities, source, target)
    return torch.stack([_sample(channel[None], source, target)[0] for channel in probabilities])


def restore_labels(probabilities: Tensor, source: Grid, target: Grid, values: Sequence[int]) -> IntArray:
    """The most probable class of every voxel of `target` as its stored label value.

    Classes are resampled one at a time and compared as they come: memory holds two maps, not all classes.
    One channel is a foreground probability with threshold 0.5. Ties go to the lower class.

    Shapes: (classes, *source.shape) -> target.shape
    """
    stored = np.asarray(values)
    dtype = np.result_type(np.min_scalar_type(int(stored.min())), np.min_scalar_type(int(stored.max())))
    best = _sample(probabilities[:1], source, target)[0]
    winner = torch.zeros(target.shape, dtype=torch.int16)
    if probabilities.shape[0] == 1:
        winner[best > 0.5] = 1
    for number in range(1, probabilities.shape[0]):
        candidate = _sample(probabilities[number : number + 1], source, target)[0]
        better = candidate > best
        winner[better] = number
        best = torch.where(better, candidate, best)
    labels: IntArray = stored.astype(dtype)[winner.numpy()]
    return labels


def _axis_aligned(source: Grid, target: Grid) -> bool:
    matrix = _target_to_source(source, target)[:3, :3]
    return bool(np.all(np.sum(np.abs(matrix) > 1e-4, axis=0) == 1))


def _target_to_source(source: Grid, target: Grid) -> Any:
    return np.linalg.inv(source.affine) @ target.affine


def _sample(volume: Tensor, source: Grid, target: Grid) -> Tensor:
    """Linear interpolation of (channels, *source.shape) at the voxel centres of `target`."""
    matrix = _target_to_source(source, target)
    rearranged = _rearrange(volume, matrix, target)
    if rearranged is not None:
        return rearranged
    if _axis_aligned(source, target):
        return _separable(volume, matrix, target)
    return _general(volume, matrix, target)


def _rearrange(volume: Tensor, matrix: Any, target: Grid) -> Tensor | None:
    """Flips and permutations only: the same voxels in another order, or None when it is more than that."""
    rounded = np.round(matrix)
    if np.abs(matrix - rounded).max() > 1e-3 or not np.all(np.abs(rounded[:3, :3]).sum(axis=0) == 1):
        return None
    axes = [int(np.argmax(np.abs(rounded[:3, column]))) for column in range(3)]
    flips = [column for column in range(3) if rounded[axes[column], column] < 0]
    starts = [rounded[axes[c], 3] for c in range(3)]
    moved = volume.permute(0, *(a + 1 for a in axes))
    whole = all(s == (moved.shape[c + 1] - 1 if c in flips else 0) for c, s in enumerate(starts))
    if not whole or tuple(moved.shape[1:]) != target.shape:
        return None
    return moved.flip([c + 1 for c in flips]) if flips else moved


def _separable(volume: Tensor, matrix: Any, target: Grid) -> Tensor:
    """Axis-aligned grids: one linear interpolation per axis, exact and without a coordinate field."""
    axes = [int(np.argmax(np.abs(matrix[:3, column]))) for column in range(3)]
    result = volume.permute(0, *(a + 1 for a in axes))
    for column, axis in enumerate(axes):
        positions = matrix[axis, column] * np.arange(target.shape[column]) + matrix[axis, 3]
        result = _interpolate(result, positions, column + 1)
    return result


def _interpolate(volume: Tensor, positions: Any, dim: int) -> Tensor:
    last = volume.shape[dim] - 1
    clipped = np.clip(positions, 0, last)
    low = np.minimum(np.floor(clipped).astype(np.int64), max(last - 1, 0))
    weight = torch.from_numpy((clipped - low).astype(np.float32)).to(volume.device)
    shape = [1] * volume.ndim
    shape[dim] = -1
    below = volume.index_select(dim, torch.from_numpy(low).to(volume.device))
    above = volume.index_select(dim, torch.from_numpy(np.minimum(low + 1, last)).to(volume.device))
    return torch.lerp(below, above, weight.reshape(shape))


def _general(volume: Tensor, matrix: Any, target: Grid) -> Tensor:
    """Oblique grids: trilinear sampling, a slab of the target at a time."""
    size = np.array(volume.shape[1:])
    result = torch.empty((volume.shape[0], *target.shape), dtype=volume.dtype)
    plane = np.stack(np.meshgrid(np.arange(target.shape[0]), np.arange(target.shape[1]), indexing="ij"), axis=-1)
    for z in range(target.shape[2]):
        points = plane @ matrix[:3, :2].T + matrix[:3, 2] * z + matrix[:3, 3]
        scaled = np.where(size > 1, 2 * points / np.maximum(size - 1, 1) - 1, 0.0)[..., ::-1]
        field = torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float32))[None, :, :, None]
        sampled = torch.nn.functional.grid_sample(
            volume[None].cpu(), field, mode="bilinear", padding_mode="border", align_corners=True
        )
        result[..., z] = sampled[0, ..., 0]
    return result


class RestoreLabeld(MapTransform):
    """Replace `pred` (classes, x, y, z) by its label map (1, X, Y, Z) on the grid that `image` was read on."""

    def __init__(self, labels: Mapping[str, int], keys: Sequence[str] = ("pred",), image_key: str = "image") -> None:
        super().__init__(keys)
        self.values, self.image_key = list(labels.values()), image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item[self.image_key]
        source, target = current_grid(image), native_grid(image)
        for key in self.keys:
            prediction = item[key]
            plain = prediction.as_tensor() if isinstance(prediction, MetaTensor) else prediction
            labels = restore_labels(plain.cpu(), source, target, self.values)
            item[key] = MetaTensor(torch.from_numpy(labels.astype(np.int32))[None], affine=target.affine.copy())
        return item
