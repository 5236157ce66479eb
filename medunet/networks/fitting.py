"""Which inputs pass a network: the sizes along its axes, and the sentence for those that do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from medunet.errors import NetworkError
from medunet.planning.sizes import Axis, nearest


class Sized(nn.Module):
    """A network that says which inputs pass it: the part of the protocol that follows from its `axes`."""

    axes: tuple[Axis, ...]

    @property
    def spatial_divisor(self) -> tuple[int, ...]:
        """What a padded input must be divisible by, and what valid sizes differ by: the product of the strides."""
        return tuple(axis.step for axis in self.axes)

    @property
    def margin(self) -> tuple[int, ...]:
        """By how many voxels the output ends before the input, on either side; 0 with padding."""
        return tuple(axis.margin for axis in self.axes)

    def fitting_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The smallest input of at least `size` that passes."""
        return fitting(self.axes, size)


def fitting(axes: Sequence[Axis], size: Sequence[int]) -> tuple[int, ...]:
    """The smallest input of at least `size` that passes."""
    return tuple(axis.above(n) for axis, n in zip(axes, size, strict=True))


def require_fit(axes: Sequence[Axis], size: Sequence[int], name: str = "U-Net") -> None:
    """Raise a NetworkError that names the nearest sizes unless `size` passes; nothing is checked while tracing."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return
    if len(size) != len(axes):
        raise NetworkError(f"input has {len(size)} spatial axes; this is a {len(axes)}D {name}")
    if all(axis.fits(int(n)) for axis, n in zip(axes, size, strict=True)):
        return
    if any(axis.margin for axis in axes):
        below = [axis.below(n) for axis, n in zip(axes, size, strict=True)]
        raise NetworkError(
            f"input size {list(size)} does not pass a {name} without padding; the nearest that fit are {below} "
            f"below and {list(fitting(axes, size))} above; the output is {[2 * axis.margin for axis in axes]} smaller"
        )
    divisor, least = [axis.step for axis in axes], [axis.smallest for axis in axes]
    small = f" or is below {least}" if divisor != least else ""
    raise NetworkError(
        f"input size {list(size)} is not divisible by {divisor}{small}; the nearest that fits is "
        f"{list(nearest(axes, size))}"
    )
