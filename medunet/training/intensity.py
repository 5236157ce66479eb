"""Changes of intensity, in place on float32 channels; each with few passes, in blocks that stay in the cache.

A channel is a contiguous tensor (*patch). Sums are taken per block and added up in Python's floats: they do not depend
on the number of threads. A constant channel stays constant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medunet.training.deform import BLOCK
from medunet.training.draws import Draw, Noise


def change(draw: Draw, image: Tensor) -> None:
    """Do all that `draw` asks of the intensities of `image` (C, *patch), contiguous float32, in nnU-Net's order."""
    if draw.noise:
        add_noise(image, draw.noise)
    for number, channel in enumerate(image):
        if draw.blur:
            blur(channel, draw.blur[number])
        if draw.brightness:
            brighten(channel, draw.brightness[number])
        if draw.contrast:
            stretch(channel, draw.contrast[number])
        if draw.low_resolution:
            coarsen(channel, draw.low_resolution[number], draw.full_resolution)
        if draw.gamma_inverted:
            bend(channel, draw.gamma_inverted[number], inverted=True)
        if draw.gamma:
            bend(channel, draw.gamma[number])


def add_noise(image: Tensor, noise: Noise) -> None:
    """Add independent Gaussian noise."""
    generator = torch.Generator(image.device).manual_seed(noise.seed)
    for block in _blocks(image):
        block.add_(torch.empty_like(block).normal_(generator=generator), alpha=noise.std)


def brighten(channel: Tensor, factor: float) -> None:
    """Multiply."""
    for block in _blocks(channel):
        block.mul_(factor)


def stretch(channel: Tensor, factor: float) -> None:
    """Scale the distance from the mean; values stay within the range they had (nnU-Net's contrast)."""
    mean, low, high = _survey(channel)
    for block in _blocks(channel):
        block.sub_(mean).mul_(factor).add_(mean).clamp_(low, high)


def bend(channel: Tensor, gamma: float, inverted: bool = False) -> None:
    """Raise the channel, scaled to 0..1, to the power `gamma`; then give it its mean and deviation back.

    `inverted` counts from the brightest value down.
    """
    mean, low, high = _survey(channel)
    if not high > low:
        return
    sign, start = (-1.0, high) if inverted else (1.0, low)
    squares = total = after = 0.0
    for block in _blocks(channel):
        block.sub_(mean)
        squares += _squares(block)
        block.add_(mean - start).mul_(sign / (high - low)).clamp_(0, 1).log_().mul_(gamma).exp_()
        total += float(block.sum())
    middle = total / channel.numel()
    for block in _blocks(channel):
        after += _squares(block.sub_(middle))
    ratio = sign * math.sqrt(squares / after) if after else 0.0
    for block in _blocks(channel):
        block.mul_(ratio).add_(mean)


def blur(channel: Tensor, sigmas: tuple[float, ...]) -> None:
    """Gaussian smoothing axis by axis, `sigmas` in voxels, cut at three sigmas; the border is mirrored."""
    for axis, sigma in enumerate(sigmas):
        radius = min(int(3 * sigma + 0.5), channel.shape[axis] - 1)
        if radius > 0:
            _blur_axis(channel, axis, [math.exp(-0.5 * (r / sigma) ** 2) for r in range(radius + 1)])


def _blur_axis(channel: Tensor, axis: int, weights: list[float]) -> None:
    """`weights` from the middle outwards, not yet of sum one."""
    count, radius = channel.shape[axis], len(weights) - 1
    total = 2 * sum(weights) - weights[0]
    head, foot = channel.narrow(axis, 1, radius), channel.narrow(axis, count - 1 - radius, radius)
    wide = torch.cat([head.flip(axis), channel, foot.flip(axis)], axis)
    views = [wide.narrow(axis, r, count) for r in range(2 * radius + 1)]
    for part in _slabs(channel):
        target = channel[part]
        torch.mul(views[radius][part], weights[0] / total, out=target)
        for r in range(1, radius + 1):
            target.add_(views[radius - r][part] + views[radius + r][part], alpha=weights[r] / total)


def coarsen(channel: Tensor, factor: float, whole: Sequence[int] = ()) -> None:
    """Keep the nearest voxel of a grid with `factor` as many voxels per axis, and interpolate linearly between them.

    The axes `whole` keep all of theirs.
    """
    small = channel
    ways: list[tuple[Tensor, Tensor, Tensor] | None] = []
    for axis, count in enumerate(channel.shape):
        kept = count if axis in whole else max(1, round(count * factor))
        if kept == count:
            ways.append(None)
            continue
        places = torch.arange(kept, dtype=torch.float64)  # which not every device computes
        nearest = ((places + 0.5) * (count / kept)).long().clamp_(max=count - 1)
        small = small.index_select(axis, nearest.to(channel.device))
        back = ((torch.arange(count, dtype=torch.float64) + 0.5) * (kept / count) - 0.5).clamp_(0, kept - 1)
        low = back.long().clamp_(max=max(0, kept - 2))
        high, share = (low + 1).clamp_(max=kept - 1), (back - low).float()
        ways.append((low.to(channel.device), high.to(channel.device), share.to(channel.device)))
    if all(way is None for way in ways):
        return
    for axis in reversed(range(channel.ndim)):
        if (way := ways[axis]) is not None:
            small = _between(small, axis, *way)
    channel.copy_(small)


def _between(small: Tensor, axis: int, low: Tensor, high: Tensor, way: Tensor) -> Tensor:
    """Linear interpolation along one axis."""
    below, above = small.index_select(axis, low), small.index_select(axis, high)
    way = way.view(-1, *(1,) * (small.ndim - 1 - axis)) if axis else way.view(-1, *(1,) * (small.ndim - 1))
    for part in _slabs(below):
        below[part].lerp_(above[part], way[part] if axis == 0 else way)
    return below


def _survey(channel: Tensor) -> tuple[float, float, float]:
    """Mean, lowest and highest value."""
    total, lows, highs = 0.0, [], []
    for block in _blocks(channel):
        low, high = torch.aminmax(block)
        total += float(block.sum())
        lows.append(float(low))
        highs.append(float(high))
    return total / channel.numel(), min(lows), max(highs)


def _squares(block: Tensor) -> float:
    return float(torch.linalg.vector_norm(block)) ** 2


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Flat views of at most `BLOCK` elements; one on an accelerator."""
    flat = tensor.view(-1)
    yield from torch.split(flat, BLOCK if tensor.device.type == "cpu" else flat.numel())


def _slabs(tensor: Tensor) -> Iterator[slice]:
    """Slices of the first axis with at most `BLOCK` elements each (or one entry)."""
    step = max(1, BLOCK * len(tensor) // tensor.numel()) if tensor.device.type == "cpu" else len(tensor)
    for start in range(0, len(tensor), step):
        yield slice(start, start + step)
