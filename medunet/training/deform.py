"""One resample for rotation, zoom, elastic deformation, mirroring and crop, with its geometry in millimetres.

Everything runs in blocks of at most 2^15 voxels: they stay in the processor's cache, and PyTorch does not share a block
between threads, so that the voxels are the same bits whatever the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medunet.training.draws import Draw, Elastic
from medunet.types import FloatArray

BLOCK = 2**15
"""Elements; PyTorch works on so many in one thread (``at::internal::GRAIN_SIZE``)."""
_COARSE = 3  # nnU-Net's threshold of anisotropy
_FREE_OF_FOLDS = 0.4  # of the control distance; Choi and Lee 2000: 1 / 2.48 in 3D, 1 / 2.05 in 2D
_EXACT = 2**24  # integers that float32 can hold
_ROUNDING = 1e-6  # voxels


def free_axes(patch: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """The axes that may be rotated into each other, zoomed and bent; the others are kept as they are.

    Kept is an axis whose voxels are more than three times as long as the shortest, or (3D) along which the patch has
    less than a third of the voxels of the longest axis, as nnU-Net's "dummy 2D" augmentation: slices are not smeared.
    Nothing is free when fewer than two axes are left.
    """
    kept = kept_axes(patch, spacing)
    free = tuple(axis for axis in range(len(patch)) if axis not in kept)
    return free if len(free) > 1 else ()


def kept_axes(patch: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """The axes along which voxels are few or far apart: see `free_axes`."""
    coarse = {axis for axis, s in enumerate(spacing) if s / min(spacing) > _COARSE}
    flat = {axis for axis, n in enumerate(patch) if n == 1 or (len(patch) == 3 and max(patch) / n > _COARSE)}
    return tuple(sorted(coarse | flat))


def rotation_matrix(angles: Sequence[float]) -> FloatArray:
    """(d, d) from one angle in the plane, or three: about the third axis first, then the second, then the first."""
    if len(angles) == 1:
        c, s = math.cos(angles[0]), math.sin(angles[0])
        return np.array([[c, -s], [s, c]])
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        one, two = (a for a in range(3) if a != axis)
        turn = np.eye(3)
        turn[one, one] = turn[two, two] = math.cos(angle)
        turn[one, two], turn[two, one] = -math.sin(angle), math.sin(angle)
        result = result @ turn
    return result


def bspline(count: int, step: float) -> FloatArray:
    """(count, controls): weights of the uniform cubic B-spline at `count` voxels, `step` control distances apart.

    Voxels and control points have the same middle, so that turning the axis round turns the weights round.
    """
    controls = math.ceil((count - 1) * step) + 4
    places = (np.arange(count) - (count - 1) / 2) * step
    away = np.abs(places[:, None] - (np.arange(controls) - (controls - 1) / 2))
    near, far = 2 / 3 - away**2 + away**3 / 2, np.clip(2 - away, 0, None) ** 3 / 6
    weights: FloatArray = np.where(away < 1, near, far)
    return weights


@dataclass(frozen=True)
class Warp:
    """Where the voxels of a patch lie in its region, along the free axes; lengths in voxels.

    ``position = middle of the region + matrix @ (voxel - middle of the patch) + bend``; `bend` is a B-spline with the
    weights `basis` per axis ((patch, controls) each) and the displacements `controls` (d, controls...).
    """

    free: tuple[int, ...]
    patch: tuple[int, ...]
    mirrored: tuple[bool, ...]
    matrix: FloatArray
    controls: FloatArray | None = None
    basis: tuple[FloatArray, ...] = ()

    @classmethod
    def of(cls, draw: Draw, spacing: Sequence[float]) -> Warp:
        """The warp of a draw; `spacing` in millimetres per axis of the patch."""
        free = free_axes(draw.patch, spacing)
        patch, scale = tuple(draw.patch[a] for a in free), np.array([spacing[a] for a in free])
        turn = rotation_matrix(draw.rotation or (0.0,) * (3 if len(draw.patch) == 3 else 1))
        turn = turn if len(draw.patch) == 2 else turn[np.ix_(free, free)]
        matrix = turn * scale / scale[:, None] / draw.zoom
        mirrored = tuple(a in draw.mirror for a in free)
        if draw.elastic is None:
            return cls(free, patch, mirrored, matrix)
        basis = tuple(bspline(n, s / draw.elastic.distance) for n, s in zip(patch, scale, strict=True))
        points = control_points(draw.elastic, [b.shape[1] for b in basis])
        bend = np.einsum("ij,j...->i...", matrix / scale, points)
        return cls(free, patch, mirrored, matrix, bend, basis)

    def extent(self) -> tuple[int, ...]:
        """Voxels of the region that holds every position, at least the patch; the difference is even.

        A B-spline never leaves the hull of its control points, so their largest displacement bounds the bend.
        """
        half = (np.array(self.patch) - 1) / 2
        reach = np.abs(self.matrix) @ half
        if self.controls is not None:
            reach = reach + np.abs(self.controls).reshape(len(half), -1).max(axis=1)
        margin = np.ceil(np.clip(reach - half - _ROUNDING, 0, None)).astype(int)
        return tuple(int(n + 2 * m) for n, m in zip(self.patch, margin, strict=True))

    def positions(
        self, region: Sequence[int], device: torch.device, row: int = 1
    ) -> Iterator[tuple[Box, list[Tensor]]]:
        """For each block of the patch: the slices, and the position along each axis, (block...) float32.

        `row`: voxels that are handled at each position, to size the blocks.
        """
        steps = [self._steps(axis, region, device) for axis in range(len(self.patch))]
        bend = _Bend(self, device) if self.controls is not None else None
        for box in _boxes(self.patch, row, device):
            found = []
            for axis, parts in enumerate(steps):
                place = _outer_sum([part[piece] for part, piece in zip(parts, box, strict=True)])
                found.append(place if bend is None else bend.add(place, axis, box))
            yield box, found

    def _steps(self, axis: int, region: Sequence[int], device: torch.device) -> list[Tensor]:
        """The position along `axis` is a sum of one term per axis of the patch; the first holds the middle."""
        terms = []
        for other, count in enumerate(self.patch):
            offsets = np.arange(count) - (count - 1) / 2
            terms.append(self.matrix[axis, other] * (offsets[::-1] if self.mirrored[other] else offsets))
        terms[0] = terms[0] + (region[axis] - 1) / 2
        return [torch.from_numpy(term.astype(np.float32)).to(device) for term in terms]


Box = tuple[slice, ...]


class _Bend:
    """The displacement of a warp, block by block: contracted along the first axes, then summed along the last."""

    def __init__(self, warp: Warp, device: torch.device) -> None:
        basis = [b[::-1] if turned else b for b, turned in zip(warp.basis, warp.mirrored, strict=True)]
        field = np.asarray(warp.controls, dtype=np.float32)
        for axis, weights in enumerate(basis[:-1], 1):
            field = _contracted(field, axis, weights.astype(np.float32))
        self.lines = torch.from_numpy(np.ascontiguousarray(field)).to(device)
        self.last = torch.from_numpy(np.ascontiguousarray(basis[-1].T, dtype=np.float32)).to(device)

    def add(self, place: Tensor, axis: int, box: Box) -> Tensor:
        """Add the displacement along `axis` to `place`, in place."""
        lines = self.lines[axis][box[:-1]]
        for number, weights in enumerate(self.last[:, box[-1]]):
            place.addcmul_(lines[..., number, None], weights)
        return place


def _contracted(field: FloatArray, axis: int, weights: FloatArray) -> FloatArray:
    """``weights @ field`` along `axis`, by sums of products: a BLAS may round differently with other threads."""
    lines = np.ascontiguousarray(np.moveaxis(field, axis, 0))
    columns = weights.T.reshape(*weights.T.shape, *(1,) * (field.ndim - 1))
    total = columns[0] * lines[0]
    for column, line in zip(columns[1:], lines[1:], strict=True):
        total += column * line
    return np.moveaxis(total, 0, axis)


def control_points(elastic: Elastic, shape: Sequence[int]) -> FloatArray:
    """(d, *shape) displacements in millimetres, cut at 0.4 of the control distance per axis.

    Within that bound a cubic B-spline deformation cannot fold (Choi and Lee 2000, doi:10.1006/gmod.2000.0531).
    """
    normal = np.random.default_rng(elastic.seed).standard_normal((len(shape), *shape))
    limit = _FREE_OF_FOLDS * elastic.distance
    return np.clip(elastic.sigma * normal, -limit, limit)


def resample(warp: Warp, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """(C, *region) and (1, *region) to the patch: the image trilinear, the label by the class of largest weight.

    Kept axes stand last while this runs: a voxel is then a row, all of it moved alike.
    """
    kept = [axis for axis in range(image.ndim - 1) if axis not in warp.free]
    order = [0, *(a + 1 for a in warp.free), *(a + 1 for a in kept)]
    back = [order.index(axis) for axis in range(image.ndim)]
    image, label = image.permute(order), label.permute(order)
    region, tail = image.shape[1 : len(warp.free) + 1], image.shape[len(warp.free) + 1 :]
    row = math.prod(tail)
    out = image.new_empty((len(image), *warp.patch, *tail))
    lowest, highest = torch.aminmax(label)
    uniform = bool(lowest == highest)
    out_label = label.new_empty((1, *warp.patch, *tail)).fill_(lowest)
    source, classes = _Source(image, len(region)), _Source(label, len(region))
    for box, places in warp.positions(region, image.device, row):
        weights = _split(places, region)
        where = source.index(places)
        for channel, target in enumerate(out):
            target[box] = source.linear(channel, where, weights).view(target[box].shape)
        if not uniform:
            where = where if classes.strides == source.strides else classes.index(places)
            out_label[0][box] = classes.vote(where, weights).view(out_label[0][box].shape)
    return out.permute(back).contiguous(), out_label.permute(back).contiguous()


def _split(places: list[Tensor], region: Sequence[int]) -> list[Tensor]:
    """Leave in `places` the voxel before each position and return the way to the next one, 0 to 1, flat."""
    weights = []
    for axis, (place, count) in enumerate(zip(places, region, strict=True)):
        place = place.clamp_(0, count - 1)
        before = place.floor().clamp_(max=count - 2)
        weights.append(place.sub_(before).reshape(-1))
        places[axis] = before.reshape(-1)
    return weights


class _Source:
    """A region to gather from, as flat lines or rows; `axes` of it are interpolated, the rest is a row."""

    def __init__(self, region: Tensor, axes: int) -> None:
        self.row = math.prod(region.shape[axes + 1 :])
        span = 1 + sum((n - 1) * s for n, s in zip(region.shape[1:], region.stride()[1:], strict=True))
        if self.row > 1 or span >= _EXACT:
            region = region.contiguous()
            span = math.prod(region.shape[1:])
        self.strides = [s // self.row for s in region.stride()[1 : axes + 1]]
        self.exact = torch.float32 if span // self.row < _EXACT else torch.float64
        flat = [torch.as_strided(c, (span,), (1,), c.storage_offset()) for c in region]
        self.lines = flat if self.row == 1 else [line.view(-1, self.row) for line in flat]

    def index(self, before: list[Tensor]) -> Tensor:
        """Flat int32 (int64 for huge regions) index of the voxel before each position."""
        total = before[0].to(self.exact) * self.strides[0]
        for place, stride in zip(before[1:], self.strides[1:], strict=True):
            total.add_(place, alpha=stride)
        return total.to(torch.int32 if self.exact == torch.float32 else torch.int64)

    def linear(self, channel: int, where: Tensor, weights: list[Tensor]) -> Tensor:
        """(n,) or (n, row): linear interpolation between the 2^d neighbours."""
        if self.row > 1:
            weights = [w[:, None] for w in weights]
        return self._between(self.lines[channel], where, weights, self.strides)

    def _between(self, line: Tensor, where: Tensor, weights: list[Tensor], strides: list[int]) -> Tensor:
        if not strides:
            return line.index_select(0, where)
        low = self._between(line, where, weights[1:], strides[1:])
        high = self._between(line[strides[0] :], where, weights[1:], strides[1:])
        return low.lerp_(high, weights[0])

    def vote(self, where: Tensor, weights: list[Tensor]) -> Tensor:
        """(n,) or (n, row): the class with the largest sum of linear weights among the 2^d neighbours.

        The same as interpolating every class's mask linearly and taking the largest, at no cost per class: where all
        neighbours agree (nearly everywhere) there is nothing to weigh. Equal sums: the class of the nearest neighbour.
        """
        corners = [0]
        for stride in self.strides:
            corners = [c + o for c in corners for o in (0, stride)]
        line = self.lines[0]
        near = line.new_empty((len(corners), len(where), *line.shape[1:]))
        for corner, found in zip(corners, near, strict=True):
            torch.index_select(line[corner:], 0, where, out=found)
        border = (near.amax(0) != near.amin(0)).view(-1).nonzero()[:, 0]
        result = near[0].clone()
        if len(border):
            place = border if self.row == 1 else border // self.row
            around = near.view(len(corners), -1).index_select(1, border)
            result.view(-1)[border] = _heaviest(around, [w.index_select(0, place) for w in weights])
        return result


def _heaviest(near: Tensor, weights: list[Tensor]) -> Tensor:
    """`near` (2^d, n) classes and the ways along each axis -> (n,) the class of the largest weight.

    Nearly everywhere it is one of the lowest and highest class, which is seen at once; the rest is weighed in full.
    """
    shares = [torch.ones_like(weights[0])]
    for way in weights:
        rest = 1 - way
        shares = [share * part for share in shares for part in (rest, way)]
    share = torch.stack(shares)
    low, high = near.amin(0), near.amax(0)
    mask = torch.empty_like(share)
    first = torch.eq(near, low, out=mask).mul_(share).sum(0)
    second = torch.eq(near, high, out=mask).mul_(share).sum(0)
    best = torch.where(first > second, low, high)
    clear = (first - second).abs_() > _ROUNDING
    others = torch.maximum(first, second) < 1 - first - second + _ROUNDING
    doubt = clear.logical_not_().logical_or_(others).nonzero()[:, 0]
    if len(doubt):
        best[doubt] = _weighed(near.index_select(1, doubt), share.index_select(1, doubt))
    return best


def _weighed(near: Tensor, share: Tensor) -> Tensor:
    """(2^d, n) classes and weights -> (n,) the heaviest class; of equals, that of the heaviest neighbour."""
    best, most = near[0], torch.full_like(share[0], -1)
    for one, own in zip(near, share, strict=True):
        mass = ((near == one) * share).sum(0).add_(own, alpha=_ROUNDING)
        best = torch.where(mass > most, one, best)
        most = torch.maximum(mass, most)
    return best


def _outer_sum(terms: list[Tensor]) -> Tensor:
    """(a,), (b,), (c,) -> (a, b, c)."""
    total = terms[0]
    for term in terms[1:]:
        total = total[..., None] + term
    return total


def _boxes(shape: Sequence[int], row: int, device: torch.device) -> Iterator[Box]:
    """Cut `shape` along its first two axes into boxes of at most `BLOCK` elements; one box on an accelerator."""
    inner = math.prod(shape[2:]) * row
    room = BLOCK if device.type == "cpu" else math.prod(shape) * row
    second = min(shape[1], max(1, room // inner))
    first = min(shape[0], max(1, room // (inner * second)))
    rest = tuple(slice(0, n) for n in shape[2:])
    for i in range(0, shape[0], first):
        for j in range(0, shape[1], second):
            yield (slice(i, min(i + first, shape[0])), slice(j, min(j + second, shape[1])), *rest)
