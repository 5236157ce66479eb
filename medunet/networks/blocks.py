"""The parts that a U-Net is made of: convolution, normalisation, activation, dropout; down and up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medunet.errors import NetworkError

Size: TypeAlias = tuple[int, ...]
Upsampling: TypeAlias = Literal["transposed", "interpolated"]
Downsampling: TypeAlias = Literal["strided", "pooled"]
Padding: TypeAlias = Literal["same", "valid"]

_CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_INSTANCE: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_BATCH: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVERAGE: dict[int, type[nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
_DROPOUT: dict[int, type[nn.Module]] = {2: nn.Dropout2d, 3: nn.Dropout3d}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "silu": lambda: nn.SiLU(inplace=True),
}
NORMS = ("instance", "batch", "group", "none")
ACTIVATIONS = tuple(_ACTIVATIONS)


def convolution(
    dims: int,
    inputs: int,
    outputs: int,
    kernel: Size,
    stride: Size | None = None,
    padding: Padding = "same",
    *,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
) -> nn.Module:
    """A convolution: spatial size n -> ceil(n / stride) for odd kernels with ``same`` padding; ``valid`` has none."""
    around = tuple(dilation * (k // 2) if padding == "same" else 0 for k in kernel)
    return _CONV[dims](inputs, outputs, kernel, stride or (1,) * dims, around, dilation, groups, bias)


def dropping(dims: int, dropout: float) -> list[nn.Module]:
    """A layer that drops whole feature channels, or none."""
    return [_DROPOUT[dims](dropout)] if dropout else []


def pooling(dims: int, stride: Size) -> nn.Module:
    """Max-pooling of the size of its stride."""
    return _POOL[dims](stride)


def averaging(dims: int, stride: Size) -> nn.Module:
    """Average-pooling of the size of its stride."""
    return _AVERAGE[dims](stride)


def transposed(dims: int, inputs: int, outputs: int, kernel: Size, stride: Size, groups: int = 1) -> nn.Module:
    """A transposed convolution: n -> (n - 1) * stride + 1 voxels along an axis of an odd kernel."""
    around = tuple(k // 2 for k in kernel)
    return _TRANSPOSED[dims](inputs, outputs, kernel, stride, around, groups=groups)


def normalization(name: str, dims: int, channels: int) -> nn.Module:
    """The normalisation layer called `name` (one of NORMS) with learnt scale and shift."""
    if name == "instance":
        return _INSTANCE[dims](channels, affine=True)
    if name == "batch":
        return _BATCH[dims](channels)
    if name == "group":
        groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
        return nn.GroupNorm(groups, channels)
    if name == "none":
        return nn.Identity()
    raise NetworkError(f"norm '{name}' is not known; take one of {', '.join(NORMS)}")


def activation(name: str) -> nn.Module:
    """The activation called `name` (one of ACTIVATIONS)."""
    if name not in _ACTIVATIONS:
        raise NetworkError(f"activation '{name}' is not known; take one of {', '.join(ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


class ConvBlock(nn.Sequential):
    """`convs` times convolution -> dropout -> normalisation -> activation.

    The first convolution has the stride, or, ``pooled``, there is max-pooling before it. All but the last have `first`
    channels where it is given.

    Shapes: (batch, inputs, *n) -> (batch, outputs, *ceil(n / stride)), less the margins with ``valid`` padding.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        kernel: Size,
        stride: Size,
        *,
        convs: int = 2,
        first: int | None = None,
        norm: str = "instance",
        act: str = "leaky_relu",
        dropout: float = 0.0,
        padding: Padding = "same",
        downsample: Downsampling = "strided",
    ) -> None:
        layers: list[nn.Module] = []
        if downsample not in ("strided", "pooled"):
            raise NetworkError(f"downsample '{downsample}' is not known; take strided or pooled")
        if downsample == "pooled" and max(stride) > 1:
            layers.append(_POOL[dims](stride))
            stride = (1,) * dims
        for number in range(convs):
            width = outputs if number == convs - 1 else first or outputs
            layers.append(convolution(dims, inputs, width, kernel, None if number else stride, padding))
            layers += [*dropping(dims, dropout), normalization(norm, dims, width), activation(act)]
            inputs = width
        super().__init__(*layers)


class UpSample(nn.Module):
    """(batch, inputs, *n) -> (batch, outputs, *(n * stride)), by a transposed convolution or linear interpolation."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: Size, mode: Upsampling) -> None:
        super().__init__()
        if mode == "transposed":
            self.layers: nn.Module = _TRANSPOSED[dims](inputs, outputs, stride, stride)
        elif mode == "interpolated":
            linear = "bilinear" if dims == 2 else "trilinear"
            scale = tuple(float(s) for s in stride)
            self.layers = nn.Sequential(
                convolution(dims, inputs, outputs, (1,) * dims),
                nn.Upsample(scale_factor=scale, mode=linear, align_corners=False),
            )
        else:
            raise NetworkError(f"upsample '{mode}' is not known; take transposed or interpolated")

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


def run_block(block: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """``block(x)``; with `recompute` its activations are computed again in the backward pass instead of kept.

    Dropout drops the same again; running statistics of batch normalisation count each pass once.
    """
    if not recompute or not torch.is_grad_enabled():
        return cast(Tensor, block(x))
    norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms or torch.compiler.is_compiling():  # a compiled pass changes running statistics apart from the rest
        return cast(Tensor, checkpoint(block, x, use_reentrant=False))
    return cast(
        Tensor, checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(norms)))
    )


@contextmanager
def _statistics_kept(norms: Sequence[Any]) -> Iterator[None]:
    """Let a pass take nothing of its batch into the running statistics, and not count it."""
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def per_axis(value: int | Sequence[int], dims: int, name: str) -> Size:
    """A length per spatial axis from one number or a list.

    Raises:
        NetworkError: the list has another length than `dims`, or a value below 1.
    """
    sizes = (value,) * dims if isinstance(value, int) else tuple(int(v) for v in value)
    if len(sizes) != dims or min(sizes) < 1:
        raise NetworkError(f"{name} is {list(sizes)}; give {dims} numbers >= 1, one per spatial axis")
    return sizes


def per_level(value: int | Sequence[int], levels: int, name: str) -> list[int]:
    """A whole number >= 1 per level from one number or a list.

    Raises:
        NetworkError: the list has another length than `levels`, or a value below 1.
    """
    numbers = [value] * levels if isinstance(value, int) else [int(v) for v in value]
    if len(numbers) != levels or min(numbers, default=1) < 1:
        raise NetworkError(f"{name} is {numbers}; give a number >= 1, or one for each of {levels} levels")
    return numbers


def init_he(module: nn.Module, negative_slope: float = 0.01) -> None:
    """He initialisation (He et al. 2015, doi:10.1109/ICCV.2015.123) of a convolution; biases are zero."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=negative_slope)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_incoming(module: nn.Module) -> None:
    """Normal weights of deviation sqrt(2 / N), N the incoming nodes of one neuron, as the U-Net paper asks for.

    A transposed convolution whose kernel is its stride has one incoming node per input channel; PyTorch's count of
    its fan-in is another. Biases are zero.
    """
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        transposed = isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d))
        taps = math.prod(module.kernel_size) // (math.prod(module.stride) if transposed else 1)
        nn.init.normal_(module.weight, std=math.sqrt(2 / (module.in_channels * taps)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def middle_of(skip: Tensor, up: Tensor) -> Tensor:
    """The middle of a skip connection, as large as the up-sampled features."""
    for axis in range(2, up.ndim):
        surplus = skip.shape[axis] - up.shape[axis]
        if surplus:
            skip = skip.narrow(axis, surplus // 2, up.shape[axis])
    return skip


def concatenate(up: Tensor, skip: Tensor) -> Tensor:
    """Join the up-sampled features and the middle of the skip connection along the channels."""
    return torch.cat((up, middle_of(skip, up)), dim=1)
