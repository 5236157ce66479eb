"""Stages of residual blocks: what a block computes is added to what came in.

`ResidualBlock` after He et al. 2016 (doi:10.1109/CVPR.2016.90) with the shortcut of He et al. 2019
(doi:10.1109/CVPR.2019.00065, "ResNet-D"), as in nnU-Net's residual encoder (Isensee et al. 2024,
doi:10.1007/978-3-031-72114-4_47). `PreactivatedBlock` after Zhang et al. 2018, "Road Extraction by Deep Residual U-Net"
(doi:10.1109/LGRS.2018.2802944), whose units are those of He et al. 2016 (doi:10.1007/978-3-319-46493-0_38).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from medunet.networks.blocks import ConvBlock, Size, activation, averaging, convolution, dropping, normalization


class ResidualBlock(nn.Module):
    """act(shortcut(x) + norm(conv(act(norm(conv x))))); with zero weights and an empty shortcut act(x).

    The shortcut averages over the stride and, where the channels change, has a 1x1 convolution with normalisation.
    """

    def __init__(
        self, dims: int, inputs: int, outputs: int, kernel: Size, stride: Size, *, norm: str, act: str, dropout: float
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(dims, inputs, outputs, kernel, stride), *dropping(dims, dropout),
            normalization(norm, dims, outputs), activation(act),
            convolution(dims, outputs, outputs, kernel), normalization(norm, dims, outputs),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if max(stride) > 1:
            self.shortcut.append(averaging(dims, stride))
        if inputs != outputs:
            self.shortcut.append(convolution(dims, inputs, outputs, (1,) * dims, bias=False))
            self.shortcut.append(normalization(norm, dims, outputs))
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.layers(x) + self.shortcut(x))
        return result


class PreactivatedBlock(nn.Module):
    """shortcut(x) + conv(act(norm(conv(act(norm x))))); with zero weights and an empty shortcut the identity.

    The first block of a network sees an image and begins with a convolution.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        kernel: Size,
        stride: Size,
        *,
        norm: str,
        act: str,
        dropout: float,
        sees_image: bool = False,
    ) -> None:
        super().__init__()
        before = [] if sees_image else [normalization(norm, dims, inputs), _kept(act)]
        self.layers = nn.Sequential(
            *before, convolution(dims, inputs, outputs, kernel, stride), *dropping(dims, dropout),
            normalization(norm, dims, outputs), activation(act), convolution(dims, outputs, outputs, kernel),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if inputs != outputs or max(stride) > 1:
            self.shortcut.append(convolution(dims, inputs, outputs, (1,) * dims, stride))
            self.shortcut.append(normalization(norm, dims, outputs))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x) + self.shortcut(x)
        return result


def _kept(act: str) -> nn.Module:
    """An activation that leaves its input as it is, which the shortcut still needs (norm none passes it on)."""
    layer = activation(act)
    if hasattr(layer, "inplace"):
        setattr(layer, "inplace", False)  # noqa: B010
    return layer


def residual_stage(
    dims: int, inputs: int, outputs: int, kernel: Size, stride: Size, *, convs: int, place: str, **options: Any
) -> nn.Sequential:
    """`convs` residual blocks, the first with the stride; at the ``top`` of the network after a convolution."""
    stage = nn.Sequential()
    if place == "top":
        stage.append(ConvBlock(dims, inputs, outputs, kernel, stride, convs=1, **options))
        inputs, stride = outputs, (1,) * dims
    for number in range(convs):
        width, step = (outputs, (1,) * dims) if number else (inputs, stride)
        stage.append(ResidualBlock(dims, width, outputs, kernel, step, **options))
    return stage


def preactivated_stage(
    dims: int, inputs: int, outputs: int, kernel: Size, stride: Size, *, convs: int, place: str, **options: Any
) -> nn.Sequential:
    """`convs` pre-activated blocks, the first with the stride."""
    stage = nn.Sequential()
    for number in range(convs):
        width, step = (outputs, (1,) * dims) if number else (inputs, stride)
        image = place == "top" and number == 0
        stage.append(PreactivatedBlock(dims, width, outputs, kernel, step, sees_image=image, **options))
    return stage
