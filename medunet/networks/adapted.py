"""MONAI's descendants of the U-Net behind our protocol: plain values in, lists of logits out, checked sizes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, ClassVar

from monai.networks import nets
from torch import Tensor, nn

from medunet.errors import NetworkError
from medunet.networks.blocks import Size
from medunet.networks.fitting import Sized, require_fit
from medunet.networks.unet import PerLevel, check_options, levels_of
from medunet.planning.sizes import Axis, axes_of, nearest


class Adapted(Sized):
    """A network `net` whose inputs are multiples of `divisor`, `least` voxels remaining at its bottom.

    Shapes: (batch, in_channels, *n) -> (batch, out_channels, *n)
    """

    unbounded: ClassVar[bool] = True
    """An output voxel depends on the whole input: attention, squeeze-and-excitation, normalisation over an image."""

    def __init__(self, net: nn.Module, spatial_dims: int, divisor: int, least: int = 1) -> None:
        super().__init__()
        self.net = net
        self.axes = (Axis(divisor, 0, 0, least),) * spatial_dims

    @property
    def auxiliary_outputs(self) -> int:
        """How many further outputs follow the first in training mode."""
        return 0

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        require_fit(self.axes, tuple(x.shape[2:]), type(self).__name__)
        result: Tensor = self.net(x)
        return result


class VNet(Adapted):
    """V-Net: residual levels of 5x5x5 convolutions, 16 to 256 channels; sizes are multiples of 16.

    Source: Milletari et al. 2016 (doi:10.1109/3DV.2016.79), with MONAI's batch normalisation and ELU.

    Args:
        dropout: probability of dropping a feature channel of the two deepest levels and of the skip connections.
    """

    unbounded = False

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, dropout: float = 0.5) -> None:
        _require_dims(spatial_dims)
        if 16 % in_channels:
            raise NetworkError(
                f"V-Net repeats its image to 16 channels and cannot with in_channels={in_channels}; give 1, 2, 4, 8 or "
                f"16 channels, or take the overlay resenc"
            )
        net = nets.VNet(
            spatial_dims, in_channels, out_channels, dropout_prob_down=dropout, dropout_prob_up=(dropout, dropout),
            dropout_dim=spatial_dims,
        )  # fmt: skip
        super().__init__(net, spatial_dims, 16)


class UNETR(Adapted):
    """A transformer over patches of 16 voxels per axis, and a convolutional decoder; one size of input alone.

    Source: Hatamizadeh et al. 2022 (doi:10.1109/WACV51458.2022.00181).

    Args:
        img_size: the size of every input, since each place has its own learnt embedding; multiples of 16.
        base_channels: channels at full resolution (the paper's feature size).
        hidden_size, mlp_dim, num_heads: of the transformer; the paper's are those of ViT-B/16.
    """

    step: ClassVar[int] = 16
    """What `img_size` must be divisible by: one patch."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        img_size: Sequence[int],
        base_channels: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        dropout: float = 0.0,
    ) -> None:
        _require_dims(spatial_dims)
        _require_einops("UNETR")
        axes = (Axis(self.step, 0, 0, 1),) * spatial_dims
        require_fit(axes, tuple(img_size), "UNETR")
        if hidden_size % num_heads:
            raise NetworkError(f"hidden_size={hidden_size} is not divisible by num_heads={num_heads}")
        net = nets.UNETR(
            in_channels, out_channels, tuple(img_size), base_channels, hidden_size, mlp_dim, num_heads,
            dropout_rate=dropout, spatial_dims=spatial_dims,
        )  # fmt: skip
        for block in net.vit.blocks:
            block.norm_cross_attn = nn.Identity()  # its weights are never used
        super().__init__(net, spatial_dims, self.step)
        self.img_size = tuple(int(n) for n in img_size)

    def fitting_size(self, size: Sequence[int]) -> Size:
        """The one size that passes.

        Raises:
            NetworkError: `size` is larger.
        """
        if any(n > own for n, own in zip(size, self.img_size, strict=True)):
            raise NetworkError(f"UNETR takes inputs of {list(self.img_size)} alone, not {list(size)}")
        return self.img_size

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if tuple(x.shape[2:]) != self.img_size:
            raise NetworkError(
                f"input size {list(x.shape[2:])} does not pass; this UNETR was made for {list(self.img_size)}, the "
                f"only size that fits"
            )
        return super().forward(x)


class SwinUNETR(Adapted):
    """Attention within shifted windows in the encoder, a convolutional decoder; multiples of 32, at least 64.

    Source: Hatamizadeh et al. 2022 (doi:10.1007/978-3-031-08999-2_22), after Liu et al. 2021
    (doi:10.1109/ICCV48922.2021.00986). The deepest level is normalised over the image and needs more than one voxel.

    Args:
        base_channels: channels at full resolution, a multiple of 12 (the paper's feature size is 48).
        window_size: edge of the windows within which attention looks, in tokens of two voxels and coarser.
        checkpointing: recompute the encoder's activations in the backward pass.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        base_channels: int = 24,
        window_size: int = 7,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        _require_dims(spatial_dims)
        _require_einops("Swin UNETR")
        _require_multiple("Swin UNETR", base_channels, 12)
        net = nets.SwinUNETR(
            in_channels, out_channels, window_size=window_size, feature_size=base_channels, drop_rate=dropout,
            use_checkpoint=checkpointing, spatial_dims=spatial_dims,
        )  # fmt: skip
        super().__init__(net, spatial_dims, 32, least=2)


class SegResNet(Adapted):
    """A residual encoder, deeper than its decoder, with group normalisation and linear up-sampling.

    Source: Myronenko 2019 (doi:10.1007/978-3-030-11726-9_28), without the auto-encoder that regularises it.

    Args:
        base_channels: channels at full resolution, a multiple of 8; they double from level to level.
        blocks_down, blocks_up: residual blocks per level of the encoder, and of the decoder from the deepest up.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        base_channels: int = 16,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        dropout: float = 0.0,
    ) -> None:
        _require_dims(spatial_dims)
        _require_multiple("SegResNet", base_channels, 8)
        if len(blocks_up) != len(blocks_down) - 1:
            raise NetworkError(f"blocks_up has {len(blocks_up)} levels; give one fewer than blocks_down has")
        net = nets.SegResNet(
            spatial_dims, base_channels, in_channels, out_channels, dropout_prob=dropout or None,
            blocks_down=tuple(blocks_down), blocks_up=tuple(blocks_up),
        )  # fmt: skip
        super().__init__(net, spatial_dims, 2 ** (len(blocks_down) - 1))


class DynUNet(Adapted):
    """MONAI's own nnU-Net: levels from lists, as `medunet.networks.UNet`; at least three of them.

    Source: Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z). The outputs of deep supervision are interpolated to
    full resolution, the deepest decoder's last.

    Args:
        residual: residual blocks in the encoder.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        strides: PerLevel,
        kernel_sizes: PerLevel | None = None,
        deep_supervision: int = 0,
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        sizes, kernels = levels_of(spatial_dims, channels, strides, kernel_sizes)
        check_options(len(channels), deep_supervision, dropout, "all")
        if len(channels) < 3:
            raise NetworkError(f"DynUNet has at least 3 levels, got {len(channels)}; give a larger patch or max_levels")
        net = nets.DynUNet(
            spatial_dims, in_channels, out_channels, kernels, sizes, sizes[1:], list(channels),
            dropout=dropout or None, deep_supervision=deep_supervision > 0, deep_supr_num=max(1, deep_supervision),
            res_block=residual,
        )  # fmt: skip
        super().__init__(net, spatial_dims, 1)
        self.axes = axes_of(sizes, kernels, 2, "same")
        self._further = deep_supervision

    @property
    def auxiliary_outputs(self) -> int:
        """How many further outputs follow the first in training mode."""
        return self._further

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """One tensor, or in training mode the list of all outputs: MONAI stacks them."""
        made = super().forward(x)
        heads: Any = self.net.heads
        heads[:] = [x.new_empty(1)] * len(heads)  # MONAI would keep the graph until the next step
        if self.training and self._further and isinstance(made, Tensor):
            return list(made.unbind(1))
        return made


class EfficientUNet(Adapted):
    """A U-Net whose encoder is an EfficientNet, not pre-trained; multiples of 32, at least 64.

    Source: Tan and Le 2019 (arXiv:1905.11946), in MONAI's FlexibleUNet.

    Args:
        backbone: ``efficientnet-b0`` to ``efficientnet-b8``, each larger than the one before.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        backbone: str = "efficientnet-b0",
        dropout: float = 0.0,
    ) -> None:
        _require_dims(spatial_dims)
        known = [f"efficientnet-b{number}" for number in range(9)]
        if backbone not in known:
            raise NetworkError(f"backbone '{backbone}' is not known; take one of {', '.join(known)}")
        net = nets.FlexibleUNet(
            in_channels, out_channels, backbone, pretrained=False, spatial_dims=spatial_dims, dropout=dropout,
            is_pad=False,
        )  # fmt: skip
        for name in ("_conv_head", "_bn1", "_fc"):  # of a classifier, never used
            setattr(net.encoder, name, nn.Identity())
        super().__init__(net, spatial_dims, 32, least=2)


def _require_dims(dims: int) -> None:
    if dims not in (2, 3):
        raise NetworkError(f"spatial_dims is {dims}; give 2 or 3")


def _require_einops(name: str) -> None:
    if importlib.util.find_spec("einops") is None:
        raise NetworkError(f"{name} needs the package einops; install it with: pip install 'medunet[transformers]'")


def _require_multiple(name: str, channels: int, step: int) -> None:
    if channels % step or channels < step:
        near = nearest((Axis(step, 0, 0, 1),), [channels])[0]
        raise NetworkError(f"{name} takes base_channels in multiples of {step}, not {channels}; the nearest is {near}")


__all__ = ["UNETR", "Adapted", "DynUNet", "EfficientUNet", "SegResNet", "SwinUNETR", "VNet"]
