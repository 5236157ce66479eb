"""A bottom that looks far without losing resolution: parallel dilated convolutions.

Source: Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation" (arXiv:1706.05587):
atrous spatial pyramid pooling, here without its pooling over the whole image, so that no bound is lost.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medunet.networks.blocks import Size, activation, convolution, normalization

RATES = (1, 2, 4)
"""Voxels between the taps; DeepLab's 6, 12, 18 are for a bottom of 32 and more voxels, ours has 4 to 8."""


class DilatedBottom(nn.Module):
    """A 1x1 convolution and one per rate side by side, joined by a 1x1 convolution.

    Shapes: (batch, channels, *n) -> the same.
    """

    def __init__(self, dims: int, channels: int, kernel: Size, norm: str, act: str) -> None:
        super().__init__()
        ones = (1,) * dims
        convolutions = [convolution(dims, channels, channels, ones)]
        convolutions += [convolution(dims, channels, channels, kernel, dilation=rate) for rate in RATES]
        self.branches = nn.ModuleList(
            nn.Sequential(each, normalization(norm, dims, channels), activation(act)) for each in convolutions
        )
        joined = convolution(dims, len(convolutions) * channels, channels, ones)
        self.join = nn.Sequential(joined, normalization(norm, dims, channels), activation(act))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.join(torch.cat([branch(x) for branch in self.branches], dim=1))
        return result
