"""The blocks of MedNeXt: a ConvNeXt made for volumes.

Source: Roy et al. 2023, "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation"
(doi:10.1007/978-3-031-43901-8_39). Its normalisation, a group per channel, is instance normalisation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from medunet.networks.blocks import Size, activation, convolution, dropping, normalization, transposed


class MedNeXtBlock(nn.Module):
    """x + compress(act(expand(norm(depthwise x)))): with zero weights the identity.

    With a stride or other channels the shortcut is a 1x1 convolution (MedNeXt's down block). `expansion` is how many
    times wider the middle is.
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
        expansion: int,
    ) -> None:
        super().__init__()
        depthwise = convolution(dims, inputs, inputs, kernel, stride, groups=inputs)
        self.layers = _layers(dims, depthwise, inputs, outputs, norm, act, dropout, expansion)
        self.shortcut = nn.Sequential()
        if inputs != outputs or max(stride) > 1:
            self.shortcut.append(convolution(dims, inputs, outputs, (1,) * dims, stride))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x) + self.shortcut(x)
        return result


class MedNeXtUp(nn.Module):
    """(batch, inputs, *n) -> (batch, outputs, *(n * stride)): transposed convolutions, and zeros before them."""

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
        expansion: int,
    ) -> None:
        super().__init__()
        depthwise = transposed(dims, inputs, inputs, kernel, stride, groups=inputs)
        self.layers = _layers(dims, depthwise, inputs, outputs, norm, act, dropout, expansion)
        self.shortcut = transposed(dims, inputs, outputs, (1,) * dims, stride)
        self.before = [lack for s in reversed(stride) for lack in (s - 1, 0)]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(self.layers(x) + self.shortcut(x), self.before)


def _layers(
    dims: int, depthwise: nn.Module, inputs: int, outputs: int, norm: str, act: str, dropout: float, expansion: int
) -> nn.Sequential:
    ones = (1,) * dims
    return nn.Sequential(
        depthwise, *dropping(dims, dropout), normalization(norm, dims, inputs),
        convolution(dims, inputs, expansion * inputs, ones), activation(act),
        convolution(dims, expansion * inputs, outputs, ones),
    )  # fmt: skip


def mednext_stage(
    dims: int, inputs: int, outputs: int, kernel: Size, stride: Size, *, convs: int, place: str, **options: Any
) -> nn.Sequential:
    """`convs` blocks; before them a 1x1 convolution at the ``top``, and a block where size or channels change."""
    stage = nn.Sequential()
    if place == "top":
        stage.append(convolution(dims, inputs, outputs, (1,) * dims, stride))
    elif inputs != outputs or max(stride) > 1:
        stage.append(MedNeXtBlock(dims, inputs, outputs, kernel, stride, **options))
    for _ in range(convs):
        stage.append(MedNeXtBlock(dims, outputs, outputs, kernel, (1,) * dims, **options))
    return stage
