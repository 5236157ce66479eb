"""The geometric rules of a plan: dimensions, orientation, spacing, patch, strides and kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medunet.planning.fingerprint import Fingerprint, significant
from medunet.planning.sizes import Axis

_ANISOTROPIC = 3.0  # nnU-Net's threshold between the coarsest and the finest axis
_SMALLEST_EDGE = 4  # voxels that must remain after halving (nnU-Net)
_SMALLEST_PATCH = 16  # voxels per axis; smaller patches show too little to learn from
_CODES = "RAS"


@dataclass(frozen=True)
class Frame:
    """Dimensions of the network, axis codes, spacing (mm) and median shape (voxels, not rounded) in that order."""

    dims: int
    orientation: str
    spacing: tuple[float, ...]
    shape: tuple[float, ...]


def in_frame(values: Sequence[float], orientation: str) -> tuple[float, ...]:
    """Reorder values from R, A, S to the axes of `orientation`."""
    return tuple(values["RLAPSI".index(code) // 2] for code in orientation)


def in_world(values: Sequence[float], orientation: str) -> tuple[float, ...]:
    """The inverse of `in_frame`."""
    ordered = [0.0, 0.0, 0.0]
    for value, code in zip(values, orientation, strict=True):
        ordered["RLAPSI".index(code) // 2] = value
    return tuple(ordered)


def choose_dims(data: Fingerprint) -> tuple[int, str]:
    """3, unless half of the cases have fewer than four slices."""
    slices = sorted(min(shape) for shape in data.shapes)[len(data.shapes) // 2]
    if slices < _SMALLEST_EDGE:
        return 2, f"half of the cases have {slices} slice{'s' if slices > 1 else ''} or fewer"
    return 3, "the cases are volumes"


def target_spacing(data: Fingerprint) -> tuple[tuple[float, ...], str]:
    """Median per axis; the 10th percentile along the coarsest axis of strongly anisotropic data (nnU-Net).

    R, A, S order, with six digits. As in nnU-Net, data is strongly anisotropic when one axis is more than three
    times coarser than another, in mm per voxel as well as in voxels, and that axis never becomes finer than the rest.
    """
    spacing = list(data.median_spacing)
    shape = data.median_shape_at(spacing)
    worst = max(range(3), key=lambda axis: spacing[axis])
    others = [axis for axis in range(3) if axis != worst]
    rough = spacing[worst] > _ANISOTROPIC * max(spacing[a] for a in others)
    flat = shape[worst] * _ANISOTROPIC < min(shape[a] for a in others)
    if rough and flat:
        fine = max(data.percentile_spacing(worst, 10), max(spacing[a] for a in others))
        spacing[worst] = fine
        return significant(spacing), f"median spacing; 10th percentile along {_CODES[worst]}, which is strongly coarser"
    return significant(spacing), "median spacing of the training cases"


def choose_orientation(data: Fingerprint, spacing: Sequence[float], dims: int) -> tuple[str, str]:
    """RAS, with the coarsest axis moved last when it is over 1.5 times coarser: slices are then what was acquired.

    In 2D, cases of few slices have these last, however far apart they lie.
    """
    if data.pictures:
        return "RAS", "pictures have one slice"
    thin = _thin_axis(data) if dims == 2 else None
    last = max(range(3), key=lambda axis: spacing[axis]) if thin is None else thin
    if last == 2 or (thin is None and spacing[last] <= 1.5 * min(spacing)):
        return "RAS", "slices along S" if dims == 2 else "the neutral order"
    codes = "".join(c for i, c in enumerate(_CODES) if i != last) + _CODES[last]
    why = "is the coarsest axis" if thin is None else "has the fewest slices"
    return codes, f"{_CODES[last]} {why} and goes last"


def _thin_axis(data: Fingerprint) -> int | None:
    """The axis along which most of the cases that `choose_dims` counts have their few slices; None for volumes."""
    if choose_dims(data)[0] == 3:
        return None
    thin = [shape for shape in data.shapes if min(shape) < _SMALLEST_EDGE]
    return max(range(3), key=lambda axis: (sum(shape[axis] == min(shape) for shape in thin), axis))


def first_patch(frame: Frame, limit: int) -> tuple[int, ...]:
    """The median shape when it has at most `limit` voxels, else a box that is cubic in mm inside it."""
    shape = [max(1, math.ceil(n - 1e-6)) for n in frame.shape[: frame.dims]]
    if math.prod(shape) <= limit:
        return tuple(shape)
    spacing = frame.spacing[: frame.dims]
    low, high = 0.0, max(n * s for n, s in zip(shape, spacing, strict=True))
    for _ in range(60):  # bisection on the edge length in mm
        edge = (low + high) / 2
        voxels = math.prod(min(n, max(1.0, edge / s)) for n, s in zip(shape, spacing, strict=True))
        low, high = (edge, high) if voxels <= limit else (low, edge)
    return tuple(max(1, int(min(n, max(1.0, low / s)))) for n, s in zip(shape, spacing, strict=True))


def pooling(
    patch: Sequence[int], spacing: Sequence[float], max_levels: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Strides and kernel sizes per level.

    An axis is halved while its half has at least 4 voxels and while it is less than twice as coarse as the finest of
    the axes that can still be halved; the kernel is 3 along an axis once it is less than twice as coarse as the finest.
    """
    dims = len(patch)
    size, current = [float(n) for n in patch], list(spacing)
    kernel = [1] * dims
    strides: list[tuple[int, ...]] = [(1,) * dims]
    kernels: list[tuple[int, ...]] = []
    while True:
        kernel = [3 if k == 3 or current[a] < 2 * min(current) else 1 for a, k in enumerate(kernel)]
        kernel = [k if patch[a] > 1 else 1 for a, k in enumerate(kernel)]
        kernels.append(tuple(kernel))
        possible = [a for a in range(dims) if size[a] >= 2 * _SMALLEST_EDGE]
        finest = min((current[a] for a in possible), default=0.0)
        halved = [a for a in possible if current[a] < 2 * finest]
        if not halved or len(kernels) >= max_levels:
            return tuple(strides), tuple(kernels)
        strides.append(tuple(2 if a in halved else 1 for a in range(dims)))
        size = [math.ceil(n / 2) if a in halved else n for a, n in enumerate(size)]
        current = [c * 2 if a in halved else c for a, c in enumerate(current)]


def shrink(patch: Sequence[int], frame: Frame, axes: Sequence[Axis]) -> tuple[int, ...] | None:
    """Take one step off the axis that is largest relative to the median shape; None when nothing is left to take.

    `axes` say how large a step is, and which size is the smallest that passes the network.
    """
    steps = [axis.step for axis in axes]
    least = [max(axes[a].smallest, min(_SMALLEST_PATCH, round(frame.shape[a]))) for a in range(frame.dims)]
    ratios = [patch[a] / frame.shape[a] if patch[a] - steps[a] >= least[a] else 0.0 for a in range(frame.dims)]
    axis = max(range(frame.dims), key=lambda a: (ratios[a], patch[a]))
    if ratios[axis] == 0.0:
        return None
    return tuple(n - steps[a] if a == axis else n for a, n in enumerate(patch))
