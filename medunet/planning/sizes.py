"""Which input sizes a U-Net takes and what becomes of them: arithmetic along each axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Size = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """Sizes along one axis of a U-Net: with b voxels at the bottom, step * b + more go in and step * b - less come out.

    Example: the network of Ronneberger et al. 2015 has step 16, more 124, less 60: b = 28 gives 572 -> 388.
    """

    step: int
    more: int
    less: int
    least: int
    """The fewest voxels at the bottom with which every level keeps at least one."""

    @classmethod
    def of(cls, strides: Sequence[int], losses: Sequence[int]) -> Axis:
        """From the stride on entering each level and the voxels that the convolutions of each level take off."""
        more, less, step, least = losses[-1], 0, 1, 1
        for stride, loss in zip(reversed(strides[1:]), reversed(losses[:-1]), strict=True):
            more, less, step = more * stride + loss, less * stride + loss, step * stride
            least = max(least, math.ceil((1 + less) / step))
        return cls(step, more, less, least)

    @property
    def margin(self) -> int:
        """Voxels by which the output ends before the input, on either side."""
        return (self.more + self.less) // 2

    def fits(self, size: int) -> bool:
        """Whether an input of `size` voxels passes."""
        return size >= self.smallest and (size - self.more) % self.step == 0

    @property
    def tiling(self) -> Axis:
        """The same for windows that tile an image: at least `step` voxels come out, since tiles begin at its multiples.

        Example: of step 8 with 44 voxels lost on either side, 92 passes and gives 4; the smallest that tiles is 100.
        """
        return replace(self, least=max(self.least, math.ceil((self.step + self.less) / self.step)))

    @property
    def smallest(self) -> int:
        """The smallest input."""
        return self.step * self.least + self.more

    def above(self, size: int) -> int:
        """The smallest input of at least `size` voxels."""
        return max(self.smallest, math.ceil((size - self.more) / self.step) * self.step + self.more)

    def below(self, size: int) -> int:
        """The largest input of at most `size` voxels; the smallest of all where that is larger."""
        return max(self.smallest, (size - self.more) // self.step * self.step + self.more)


def axes_of(
    strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]], convs: int, padding: str
) -> tuple[Axis, ...]:
    """Sizes along each axis of a U-Net with `convs` convolutions per level, which take voxels off when ``valid``."""
    taken = convs if padding == "valid" else 0
    return tuple(
        Axis.of(along, [taken * (k - 1) for k in sizes])
        for along, sizes in zip(zip(*strides, strict=True), zip(*kernels, strict=True), strict=True)
    )


def level_sizes(
    size: Sequence[int], strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]], convs: int, padding: str
) -> tuple[list[Size], list[Size]]:
    """Sizes in which the convolutions of each level begin: on the way down, and on the way up (but the deepest)."""
    taken = [tuple(convs * (k - 1) if padding == "valid" else 0 for k in kernel) for kernel in kernels]
    down: list[Size] = []
    current = tuple(int(n) for n in size)
    for stride, loss in zip(strides, taken, strict=True):
        down.append(tuple(math.ceil(n / s) for n, s in zip(current, stride, strict=True)))
        current = tuple(n - t for n, t in zip(down[-1], loss, strict=True))
    up: list[Size] = []
    for level in reversed(range(len(strides) - 1)):
        up.append(tuple(n * s for n, s in zip(current, strides[level + 1], strict=True)))
        current = tuple(n - t for n, t in zip(up[-1], taken[level], strict=True))
    return down, up[::-1]


def nearest(axes: Sequence[Axis], size: Sequence[int]) -> Size:
    """The input closest to `size` that passes; a tie goes to the larger."""
    pairs = [(axis.below(n), axis.above(n), n) for axis, n in zip(axes, size, strict=True)]
    return tuple(below if n - below < above - n and below <= n else above for below, above, n in pairs)


def nearest_valid_size(size: Sequence[int], divisor: Sequence[int]) -> Size:
    """The multiples of `divisor` (at least one) closest to `size`; a tie goes to the larger.

    >>> nearest_valid_size([96, 96, 61], [16, 16, 16])
    (96, 96, 64)
    """
    return tuple(max(d, (2 * n + d) // (2 * d) * d) for n, d in zip(size, divisor, strict=True))
