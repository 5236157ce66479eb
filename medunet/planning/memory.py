"""What a training step takes in memory, by arithmetic on the network's layers.

Training keeps, for every convolution, its input and its output (the normalisation needs it) until the backward pass;
the estimate adds weights, gradients, the two Adam moments and the loss. A test compares it to a step's real peak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def parameter_count(net: NetworkShape) -> int:
    """Learnt numbers of the network with affine normalisation and biases (exact for transposed up-sampling)."""
    total, widths = 0, (net.in_channels, *net.channels)
    for level, kernel in enumerate(net.kernel_sizes):
        taps, width = math.prod(kernel), net.channels[level]
        total += _block_parameters(widths[level], width, taps, net.convs_per_level)
        if level + 1 < len(net.channels):
            total += net.channels[level + 1] * width * math.prod(net.strides[level + 1]) + width
            total += _block_parameters(2 * width, width, taps, net.convs_per_level)
    return total + sum(net.out_channels * (width + 1) for width in net.channels[: net.deep_supervision + 1])


def training_bytes(net: NetworkShape, patch: Sequence[int], batch: int, device: str) -> int:
    """Peak bytes of one training step in float32, beyond the interpreter and its libraries."""
    return fixed_bytes(net, device) + batch * sample_bytes(net, patch)


def fixed_bytes(net: NetworkShape, device: str) -> int:
    """Bytes that do not depend on the batch: weights, gradients, optimizer moments, runtime."""
    return _OPTIMIZER_COPIES * _FLOAT * parameter_count(net) + _RUNTIME.get(device, 0)


def sample_bytes(net: NetworkShape, patch: Sequence[int]) -> int:
    """Bytes that one patch of a batch adds to a training step."""
    stored, transient = 0, 0
    size = [int(n) for n in patch]
    for level, width in enumerate(net.channels):
        size = [math.ceil(n / s) for n, s in zip(size, net.strides[level], strict=True)]
        voxels = math.prod(size)
        blocks = 1 if level == len(net.channels) - 1 else 2
        kept = blocks * net.convs_per_level * 2 * width * voxels
        if net.checkpointing:
            transient = max(transient, kept // blocks)
            kept = blocks * width * voxels
        stored += kept
        if blocks == 2:
            stored += 2 * width * voxels  # the concatenation
        if level == 0:
            stored += net.in_channels * voxels
            transient += 4 * width * voxels  # gradients in flight at full resolution
        if level <= net.deep_supervision:
            stored += _LOSS_COPIES * net.out_channels * voxels
    return int(_ALLOCATOR * _FLOAT * (stored + transient))


def _block_parameters(inputs: int, outputs: int, taps: int, convs: int) -> int:
    weights = inputs * outputs * taps + (convs - 1) * outputs * outputs * taps
    return weights + convs * 3 * outputs  # bias, normalisation scale and shift
