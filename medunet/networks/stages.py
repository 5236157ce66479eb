"""A level of a U-Net by the name of its blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from medunet.errors import NetworkError
from medunet.networks.blocks import ConvBlock, Downsampling, Size, UpSample, Upsampling, pooling
from medunet.networks.mednext import MedNeXtUp, mednext_stage
from medunet.networks.residual import preactivated_stage, residual_stage

_STAGES: dict[str, Callable[..., nn.Sequential]] = {
    "residual": residual_stage,
    "preactivated": preactivated_stage,
    "mednext": mednext_stage,
}
BLOCKS = ("plain", *_STAGES)


def make_stage(
    block: str,
    dims: int,
    inputs: int,
    outputs: int,
    kernel: Size,
    stride: Size,
    *,
    place: str,
    downsample: Downsampling = "strided",
    first: int | None = None,
    expansion: int = 2,
    padding: Any = "same",
    **options: Any,
) -> nn.Sequential:
    """A stage of `convs` blocks called `block` (one of BLOCKS) at the ``top``, on the way ``down`` or ``up``.

    `first` and `padding` are for plain blocks, `expansion` for MedNeXt's.
    """
    if block == "plain":
        return ConvBlock(
            dims, inputs, outputs, kernel, stride, first=first, padding=padding, downsample=downsample, **options
        )
    if block not in _STAGES:
        raise NetworkError(f"block '{block}' is not known; take one of {', '.join(BLOCKS)}")
    if downsample not in ("strided", "pooled"):
        raise NetworkError(f"downsample '{downsample}' is not known; take strided or pooled")
    pooled = downsample == "pooled" and max(stride) > 1
    if block == "mednext":
        options["expansion"] = expansion
    stage = _STAGES[block](dims, inputs, outputs, kernel, (1,) * dims if pooled else stride, place=place, **options)
    return nn.Sequential(pooling(dims, stride), *stage) if pooled else stage


def make_up(
    block: str,
    dims: int,
    inputs: int,
    outputs: int,
    kernel: Size,
    stride: Size,
    *,
    upsample: Upsampling,
    expansion: int,
    norm: str,
    act: str,
) -> nn.Module:
    """Up-sampling into a level of `block`: MedNeXt has its own transposed block."""
    if block == "mednext" and upsample == "transposed":
        return MedNeXtUp(dims, inputs, outputs, kernel, stride, norm=norm, act=act, dropout=0.0, expansion=expansion)
    return UpSample(dims, inputs, outputs, stride, upsample)
