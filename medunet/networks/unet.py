"""The U-Net in 2D and 3D with configurable depth.

Architecture after Ronneberger et al. 2015 (doi:10.1007/978-3-319-24574-4_28) and Çiçek et al. 2016
(doi:10.1007/978-3-319-46723-8_49), with the changes that nnU-Net's plain network made standard: padded and strided
convolutions, instance normalisation, leaky ReLU, deep supervision
(Isensee et al. 2021, doi:10.1038/s41592-020-01008-z). `UNet.of_2015` is the network of 2015 without them. Its
descendants differ in the blocks of a level (`block`), in what crosses from encoder to decoder (`skip`) and in what lies
at the bottom (`bottleneck`); the modules `residual`, `mednext`, `skips` and `dilated` name their sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from medunet.errors import NetworkError
from medunet.networks.blocks import (
    Downsampling,
    Padding,
    Size,
    Upsampling,
    convolution,
    init_he,
    init_incoming,
    per_axis,
    per_level,
    run_block,
)
from medunet.networks.dilated import DilatedBottom
from medunet.networks.fitting import Sized, require_fit
from medunet.networks.skips import joined_channels, make_skip
from medunet.networks.stages import make_stage, make_up
from medunet.planning.sizes import axes_of

PerLevel = Sequence[int | Sequence[int]]


class UNet(Sized):
    """U-Net with one entry per level in `channels`, `strides` and `kernel_sizes`; depth = number of levels.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: 1 (read with a sigmoid) or one per class including background (read with a softmax).
        channels: feature channels per level, from full resolution down.
        strides: stride on entering each level, a number or one per axis; the first is usually 1.
        kernel_sizes: odd kernel size per level, a number or one per axis; 3 everywhere when not given.
        convs_per_level: convolutions (or blocks) per level in encoder and decoder, a number or one per level.
        norm: instance, batch, group or none.
        activation: leaky_relu, relu, gelu or silu.
        dropout: probability of dropping a feature channel.
        dropout_in: ``all`` blocks, the ``encoder`` only, or the ``end`` of the contracting path: single values instead
            of channels, after its last two levels, as in the model that the authors of 2015 published.
        upsample: ``transposed`` convolution or ``interpolated``.
        downsample: ``strided`` convolution or ``pooled`` by the maximum.
        padding: ``same``, or ``valid``: only pixels whose surroundings are all in the input come out, skip connections
            are cropped to their middle. It needs ``pooled``, and no deep supervision.
        deep_supervision: number of lower-resolution outputs beside the full one; in training mode the forward pass
            then returns a list, highest resolution first; in evaluation mode always one tensor.
        checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        decoder_convs: convolutions (or blocks) per level of the decoder, a number or one per level but the deepest; as
            many as in the encoder when not given.
        block: ``plain``, ``residual``, ``preactivated`` or ``mednext``.
        decoder_block: the same for the decoder; `block` when not given.
        expansion: of MedNeXt's blocks, how many times wider their middle is; a number or one per level.
        skip: ``concat``, ``attention``, ``sum`` or ``none``.
        bottleneck: ``plain``, or ``dilated``: parallel dilated convolutions behind the deepest level.
        widening: channels grow on ``entering`` a level (2015), or on ``leaving`` it: its last convolution has twice the
            channels of the others, and up-sampling keeps them (2016).

    Shapes: (batch, in_channels, *n) -> (batch, out_channels, *n), each n divisible by ``spatial_divisor``. With
        ``valid`` padding `margin` fewer on either side, and n a size that `fitting_size` gives.

    Raises:
        NetworkError: lists of different lengths, even kernels, unknown names, or an input size that does not fit.
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
        convs_per_level: int | Sequence[int] = 2,
        norm: str = "instance",
        activation: str = "leaky_relu",
        dropout: float = 0.0,
        dropout_in: str = "all",
        upsample: Upsampling = "transposed",
        downsample: Downsampling = "strided",
        padding: Padding = "same",
        deep_supervision: int = 0,
        checkpointing: bool = False,
        decoder_convs: int | Sequence[int] | None = None,
        block: str = "plain",
        decoder_block: str | None = None,
        expansion: int | Sequence[int] = 2,
        skip: str = "concat",
        bottleneck: str = "plain",
        widening: str = "entering",
    ) -> None:
        super().__init__()
        self.spatial_dims, self.checkpointing = spatial_dims, checkpointing
        self.strides, kernels = levels_of(spatial_dims, channels, strides, kernel_sizes)
        depth, decoder_block = len(channels), decoder_block or block
        down_convs = per_level(convs_per_level, depth, "convs_per_level")
        up_convs = down_convs[:-1] if decoder_convs is None else per_level(decoder_convs, depth - 1, "decoder_convs")
        wider = per_level(expansion, depth, "expansion")
        check_options(depth, deep_supervision, dropout, dropout_in)
        _check_kind(bottleneck, widening, skip, {block, decoder_block})
        if padding != "same":
            _check_valid(padding, downsample, upsample, deep_supervision)
            _check_valid_kind({block, decoder_block}, skip, bottleneck, {*down_convs, *up_convs})
        self.axes = axes_of(self.strides, kernels, down_convs[0], padding)
        options: dict[str, Any] = {"norm": norm, "act": activation, "padding": padding}
        along, inside = (0.0 if dropout_in == "end" else dropout), (dropout if dropout_in == "all" else 0.0)
        late, ones = widening == "leaving", (1,) * spatial_dims
        widths = [in_channels, *channels]
        self.encoder = nn.ModuleList()
        for level, (kernel, stride) in enumerate(zip(kernels, self.strides, strict=True)):
            before, width = widths[level], widths[level + 1]
            stage = make_stage(
                block, spatial_dims, before, width, kernel, stride, convs=down_convs[level], dropout=along,
                downsample=downsample, place="down" if level else "top", first=width // 2 if late else None,
                expansion=wider[level], **options,
            )  # fmt: skip
            if dropout_in == "end" and dropout and level >= depth - 2:
                stage.append(nn.Dropout(dropout))
            self.encoder.append(stage)
        self.bottom: nn.Module = nn.Identity()
        if bottleneck == "dilated":
            self.bottom = DilatedBottom(spatial_dims, channels[-1], kernels[-1], norm, activation)
        self.ups, self.skips, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(depth - 1)):
            width, below, stride = channels[level], channels[level + 1], self.strides[level + 1]
            up = below if late else width
            self.ups.append(
                make_up(
                    decoder_block, spatial_dims, below, up, kernels[level], stride,
                    upsample=upsample, expansion=wider[level], norm=norm, act=activation,
                )
            )  # fmt: skip
            self.skips.append(make_skip(skip, spatial_dims, width, below, stride))
            stage = make_stage(
                decoder_block, spatial_dims, joined_channels(skip, width, up), width, kernels[level], ones,
                convs=up_convs[level], dropout=inside, place="up", expansion=wider[level], **options,
            )  # fmt: skip
            self.decoder.append(stage)
        self.heads = nn.ModuleList(
            convolution(spatial_dims, channels[level], out_channels, ones) for level in range(deep_supervision + 1)
        )
        self.apply(init_incoming if padding == "valid" else init_he)

    @classmethod
    def of_depth(
        cls,
        depth: int,
        base_channels: int = 32,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        max_channels: int | None = None,
        **options: Any,
    ) -> UNet:
        """A U-Net with `depth` levels: channels double and size halves from level to level.

        `max_channels` caps the channels (nnU-Net: 320 in 3D, 512 in 2D).
        """
        if depth < 1:
            raise NetworkError(f"depth is {depth}; give at least 1 level")
        cap = max_channels or (320 if spatial_dims == 3 else 512)
        channels = [min(base_channels * 2**level, cap) for level in range(depth)]
        return cls(spatial_dims, in_channels, out_channels, channels, [1] + [2] * (depth - 1), **options)

    @classmethod
    def of_2015(
        cls,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 2,
        base_channels: int = 64,
        depth: int = 5,
        dropout: float = 0.5,
    ) -> UNet:
        """The network of Ronneberger et al. 2015, figure 1: 572 x 572 -> 388 x 388, 31,030,658 parameters.

        3x3 convolutions without padding, each with a ReLU; 2x2 max-pooling, 2x2 up-convolutions, 64 to 1024 channels,
        a 1x1 head; dropout at the end of the contracting path; no normalisation; normal weights of deviation
        sqrt(2 / N). In 3D the same with cubes.
        """
        channels = [base_channels * 2**level for level in range(depth)]
        return cls(
            spatial_dims, in_channels, out_channels, channels, [1] + [2] * (depth - 1),
            norm="none", activation="relu", dropout=dropout, dropout_in="end", downsample="pooled", padding="valid",
        )  # fmt: skip

    @classmethod
    def of_2016(
        cls, spatial_dims: int = 3, in_channels: int = 3, out_channels: int = 3, base_channels: int = 64
    ) -> UNet:
        """The 3D U-Net of Çiçek et al. 2016, figure 2: 132 x 132 x 116 -> 44 x 44 x 28, four levels of 64 to 512.

        Channels double before each pooling; batch normalisation before each ReLU; no padding.
        """
        channels = [base_channels * 2**level for level in range(4)]
        return cls(
            spatial_dims, in_channels, out_channels, channels, [1, 2, 2, 2],
            norm="batch", activation="relu", downsample="pooled", padding="valid", widening="leaving",
        )  # fmt: skip

    @property
    def auxiliary_outputs(self) -> int:
        """How many lower-resolution outputs follow the full one in training mode."""
        return len(self.heads) - 1

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        require_fit(self.axes, tuple(x.shape[2:]))
        skips: list[Tensor] = []
        recompute = self.checkpointing and self.training
        for block in self.encoder:
            x = run_block(block, x, recompute)
            skips.append(x)
        features = [run_block(self.bottom, skips.pop(), recompute)]
        for up, join, block in zip(self.ups, self.skips, self.decoder, strict=True):
            features.append(run_block(block, join(up(features[-1]), skips.pop(), features[-1]), recompute))
        if self.training and self.auxiliary_outputs:
            return [head(feature) for head, feature in zip(self.heads, reversed(features), strict=False)]
        full: Tensor = self.heads[0](features[-1])
        return full


def levels_of(
    dims: int, channels: Sequence[int], strides: PerLevel, kernels: PerLevel | None
) -> tuple[list[Size], list[Size]]:
    """Strides and kernel sizes per level and axis, checked against `channels`."""
    if dims not in (2, 3):
        raise NetworkError(f"spatial_dims is {dims}; give 2 or 3")
    kernels = [3] * len(channels) if kernels is None else kernels
    for name, values in (("strides", strides), ("kernel_sizes", kernels)):
        if len(values) != len(channels) or not channels:
            raise NetworkError(f"{name} has {len(values)} levels, channels has {len(channels)}; give one per level")
    stride_sizes = [per_axis(stride, dims, f"strides[{i}]") for i, stride in enumerate(strides)]
    kernel_sizes = [per_axis(kernel, dims, f"kernel_sizes[{i}]") for i, kernel in enumerate(kernels)]
    if any(k % 2 == 0 for kernel in kernel_sizes for k in kernel):
        raise NetworkError(f"kernel_sizes {[list(k) for k in kernel_sizes]} has an even number; padding needs odd ones")
    if max(stride_sizes[0]) > 1:
        raise NetworkError(f"strides[0] is {list(stride_sizes[0])}; the first level keeps the full resolution, give 1")
    return stride_sizes, kernel_sizes


def check_options(depth: int, deep_supervision: int, dropout: float, dropout_in: str) -> None:
    """Raise a NetworkError unless these fit a network of `depth` levels."""
    if not 0 <= deep_supervision <= max(depth - 2, 0):
        raise NetworkError(f"deep_supervision is {deep_supervision}; {depth} levels allow 0 to {max(depth - 2, 0)}")
    if not 0.0 <= dropout < 1.0:
        raise NetworkError(f"dropout is {dropout}; give a probability from 0 to below 1")
    if dropout_in not in ("all", "encoder", "end"):
        raise NetworkError(f"dropout_in is '{dropout_in}'; give all, encoder or end")


def _check_valid(padding: str, downsample: str, upsample: str, deep_supervision: int) -> None:
    if padding != "valid":
        raise NetworkError(f"padding is '{padding}'; give same or valid")
    if downsample != "pooled" or upsample != "transposed":
        raise NetworkError(
            f"padding valid with downsample {downsample} and upsample {upsample} would look beyond its input or shift "
            f"the skip connections; give pooled and transposed"
        )
    if deep_supervision:
        raise NetworkError(f"deep_supervision is {deep_supervision}; padding valid allows 0: its levels end apart")


def _check_kind(bottleneck: str, widening: str, skip: str, blocks: set[str]) -> None:
    if bottleneck not in ("plain", "dilated"):
        raise NetworkError(f"bottleneck '{bottleneck}' is not known; take plain or dilated")
    if widening not in ("entering", "leaving"):
        raise NetworkError(f"widening '{widening}' is not known; take entering or leaving")
    if widening == "leaving" and (blocks != {"plain"} or skip == "sum"):
        raise NetworkError("widening leaving needs plain blocks, and skip connections that are not summed")


def _check_valid_kind(blocks: set[str], skip: str, bottleneck: str, convs: set[int]) -> None:
    if blocks != {"plain"} or skip == "attention" or bottleneck != "plain":
        raise NetworkError(
            f"padding valid with {' and '.join(sorted(blocks))} blocks, skip {skip} and bottleneck {bottleneck} would "
            f"look beyond its input; give plain blocks, skip concat, sum or none, and a plain bottleneck"
        )
    if len(convs) > 1:
        raise NetworkError(f"padding valid takes one number of convolutions for all levels, got {sorted(convs)}")
