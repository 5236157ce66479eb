"""U-Net++: between encoder and decoder a pyramid of nodes, each joined to all before it on its level.

Source: Zhou et al. 2018, "UNet++: A Nested U-Net Architecture for Medical Image Segmentation"
(doi:10.1007/978-3-030-00889-5_1); longer in IEEE TMI 2020 (doi:10.1109/TMI.2019.2959609).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medunet.networks.blocks import Downsampling, Upsampling, convolution, init_he, run_block
from medunet.networks.fitting import Sized, require_fit
from medunet.networks.stages import make_stage, make_up
from medunet.networks.unet import PerLevel, check_options, levels_of
from medunet.planning.sizes import axes_of


class NestedUNet(Sized):
    """U-Net++: node (i, j) of level i sees nodes (i, 0) to (i, j - 1) and, up-sampled, node (i + 1, j - 1).

    Arguments as of `medunet.networks.UNet`. The outputs of deep supervision are those of the nodes of level 0, the
    deepest first: all have full resolution (in evaluation mode the deepest alone, which is the paper's L^4).

    Shapes: (batch, in_channels, *n) -> (batch, out_channels, *n), each n divisible by ``spatial_divisor``.

    Raises:
        NetworkError: as `medunet.networks.UNet`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        strides: PerLevel,
        kernel_sizes: PerLevel | None = None,
        *,
        convs_per_level: int = 2,
        block: str = "plain",
        expansion: int = 2,
        norm: str = "instance",
        activation: str = "leaky_relu",
        dropout: float = 0.0,
        upsample: Upsampling = "transposed",
        downsample: Downsampling = "strided",
        deep_supervision: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        strides, kernels = levels_of(spatial_dims, channels, strides, kernel_sizes)
        depth, ones = len(channels), (1,) * spatial_dims
        check_options(depth, deep_supervision, dropout, "all")
        self.axes = axes_of(strides, kernels, convs_per_level, "same")
        options: dict[str, Any] = {
            "convs": convs_per_level, "norm": norm, "act": activation, "dropout": dropout, "expansion": expansion
        }  # fmt: skip
        self.nodes, self.ups = nn.ModuleDict(), nn.ModuleDict()
        for level, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
            before = channels[level - 1] if level else in_channels
            self.nodes[f"{level}_0"] = make_stage(
                block, spatial_dims, before, channels[level], kernel, stride,
                place="down" if level else "top", downsample=downsample, **options,
            )  # fmt: skip
            for column in range(1, depth - level):
                name, width = f"{level}_{column}", channels[level]
                self.ups[name] = make_up(
                    block, spatial_dims, channels[level + 1], width, kernel, strides[level + 1],
                    upsample=upsample, expansion=expansion, norm=norm, act=activation,
                )  # fmt: skip
                seen = (column + 1) * width
                self.nodes[name] = make_stage(block, spatial_dims, seen, width, kernel, ones, place="up", **options)
        self.depth = depth
        self.heads = nn.ModuleList(
            convolution(spatial_dims, channels[0], out_channels, ones) for _ in range(deep_supervision + 1)
        )
        self.apply(init_he)

    @property
    def auxiliary_outputs(self) -> int:
        """How many outputs of shallower nodes follow the deepest one in training mode."""
        return len(self.heads) - 1

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        require_fit(self.axes, tuple(x.shape[2:]), "U-Net++")
        rows: list[list[Tensor]] = []
        recompute = self.checkpointing and self.training
        for level in range(self.depth):
            x = run_block(self.nodes[f"{level}_0"], x, recompute)
            rows.append([x])
        for column in range(1, self.depth):
            for level in range(self.depth - column):
                name = f"{level}_{column}"
                up = self.ups[name](rows[level + 1][column - 1])
                rows[level].append(run_block(self.nodes[name], torch.cat([*rows[level], up], dim=1), recompute))
        if self.training and self.auxiliary_outputs:
            return [head(feature) for head, feature in zip(self.heads, reversed(rows[0]), strict=False)]
        full: Tensor = self.heads[0](rows[0][-1])
        return full
