"""What a training step takes in memory, by arithmetic on the network's layers.

Training keeps, for every convolution, its input and its output (the normalisation needs it) until the backward pass;
the estimate adds weights, gradients, the two Adam moments and the loss. A test compares it to a step's real peak.
Networks other than the plain U-Net are surveyed instead (`medunet.networks.survey`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medunet.planning.sizes import Axis, axes_of, level_sizes
from medunet.planning.surveyed import Surveyed

_FLOAT = 4  # bytes
_OPTIMIZER_COPIES = 4  # weight, gradient, two Adam moments
_LOSS_COPIES = 12  # soft-max, one-hot, products of the Dice and the cross-entropy, each classes x patch
_ALLOCATOR = 1.1  # what allocators lose to rounding and fragments
_RUNTIME = {"cpu": 0, "cuda": 600_000_000}  # CUDA context and cuDNN workspaces


@dataclass(frozen=True)
class NetworkShape:
    """The numbers of a U-Net that decide its memory: lists per level, as in `medunet.networks.UNet`."""

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    convs_per_level: int = 2
    deep_supervision: int = 0
    dropout: float = 0.0
    checkpointing: bool = False
    norm: str = "instance"
    downsample: str = "strided"
    padding: str = "same"

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Which sizes pass along each axis."""
        return axes_of(self.strides, self.kernel_sizes, self.convs_per_level, self.padding)


def parameter_count(net: NetworkShape | Surveyed) -> int:
    """Learnt numbers of the network with biases and affine normalisation, if any (exact for transposed up-sampling)."""
    if isinstance(net, Surveyed):
        return net.parameters
    total, widths = 0, (net.in_channels, *net.channels)
    each = 1 if net.norm == "none" else 3  # bias, normalisation scale and shift
    for level, kernel in enumerate(net.kernel_sizes):
        taps, width = math.prod(kernel), net.channels[level]
        total += _block_parameters(widths[level], width, taps, net.convs_per_level, each)
        if level + 1 < len(net.channels):
            total += net.channels[level + 1] * width * math.prod(net.strides[level + 1]) + width
            total += _block_parameters(2 * width, width, taps, net.convs_per_level, each)
    return total + sum(net.out_channels * (width + 1) for width in net.channels[: net.deep_supervision + 1])


def training_bytes(net: NetworkShape | Surveyed, patch: Sequence[int], batch: int, device: str) -> int:
    """Peak bytes of one training step in float32, beyond the interpreter and its libraries."""
    return fixed_bytes(net, device) + batch * sample_bytes(net, patch)


def fixed_bytes(net: NetworkShape | Surveyed, device: str) -> int:
    """Bytes that do not depend on the batch: weights, gradients, optimizer moments, runtime."""
    return _OPTIMIZER_COPIES * _FLOAT * parameter_count(net) + _RUNTIME.get(device, 0)


def sample_bytes(net: NetworkShape | Surveyed, patch: Sequence[int]) -> int:
    """Bytes that one patch of a batch adds to a training step."""
    if isinstance(net, Surveyed):
        held, logits = net.held(patch)
        return int(_ALLOCATOR * (held + _LOSS_COPIES * _FLOAT * logits))
    stored, transient = 0, 0
    down, up = level_sizes(patch, net.strides, net.kernel_sizes, net.convs_per_level, net.padding)
    for level, width in enumerate(net.channels):
        voxels = math.prod(down[level])
        above = math.prod(up[level]) if level < len(up) else 0
        kept = net.convs_per_level * 2 * width * (voxels + above)
        if net.checkpointing:
            transient = max(transient, net.convs_per_level * 2 * width * voxels)
            kept = width * (voxels + above)
        stored += kept + 2 * width * above  # the concatenation
        if level == 0:
            stored += net.in_channels * voxels
            transient += 4 * width * voxels  # gradients in flight at full resolution
        if level <= net.deep_supervision:
            stored += _LOSS_COPIES * net.out_channels * voxels
    return int(_ALLOCATOR * _FLOAT * (stored + transient))


def _block_parameters(inputs: int, outputs: int, taps: int, convs: int, each: int) -> int:
    weights = inputs * outputs * taps + (convs - 1) * outputs * outputs * taps
    return weights + convs * each * outputs
