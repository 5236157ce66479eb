"""How what comes from below meets what comes across: concatenated, gated, summed, or not at all."""

from __future__ import annotations

from torch import Tensor, nn

from medunet.errors import NetworkError
from medunet.networks.blocks import Size, concatenate, convolution, middle_of

SKIPS = ("concat", "attention", "sum", "none")


class Concatenated(nn.Module):
    """U-Net: the channels of both (Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28)."""

    def forward(self, up: Tensor, skip: Tensor, below: Tensor) -> Tensor:
        return concatenate(up, skip)


class Summed(nn.Module):
    """FCN: the sum of both (Long et al. 2015, doi:10.1109/CVPR.2015.7298965)."""

    def forward(self, up: Tensor, skip: Tensor, below: Tensor) -> Tensor:
        return up + middle_of(skip, up)


class Alone(nn.Module):
    """No skip connection, the baseline: what comes from below alone."""

    def forward(self, up: Tensor, skip: Tensor, below: Tensor) -> Tensor:
        return up


class Attended(nn.Module):
    """Attention U-Net: the skip connection weighted per voxel by an additive gate, then concatenated.

    Source: Oktay et al. 2018, "Attention U-Net: Learning Where to Look for the Pancreas" (arXiv:1804.03999), equations
    1 and 2: a = sigmoid(psi(relu(theta(skip) + phi(below)))), computed on the coarser grid and interpolated.
    """

    def __init__(self, dims: int, skip: int, below: int, stride: Size) -> None:
        super().__init__()
        ones, between = (1,) * dims, max(1, skip // 2)
        self.theta = convolution(dims, skip, between, stride, stride, "valid", bias=False)
        self.phi = convolution(dims, below, between, ones)
        self.psi = convolution(dims, between, 1, ones)
        self.grow = nn.Upsample(
            scale_factor=tuple(float(s) for s in stride), mode="bilinear" if dims == 2 else "trilinear"
        )

    def gate(self, skip: Tensor, below: Tensor) -> Tensor:
        """(batch, channels, *n) and (batch, channels, *(n / stride)) -> (batch, 1, *n) in [0, 1]."""
        coarse = self.psi(nn.functional.relu(self.theta(skip) + self.phi(below)))
        result: Tensor = self.grow(coarse.sigmoid())
        return result

    def forward(self, up: Tensor, skip: Tensor, below: Tensor) -> Tensor:
        return concatenate(up, skip * self.gate(skip, below))


def make_skip(name: str, dims: int, skip: int, below: int, stride: Size) -> nn.Module:
    """The join called `name` (one of SKIPS) of a skip connection of `skip` channels and `below` channels below it."""
    if name == "attention":
        return Attended(dims, skip, below, stride)
    kinds: dict[str, type[nn.Module]] = {"concat": Concatenated, "sum": Summed, "none": Alone}
    if name not in kinds:
        raise NetworkError(f"skip '{name}' is not known; take one of {', '.join(SKIPS)}")
    return kinds[name]()


def joined_channels(name: str, skip: int, up: int) -> int:
    """Channels that the decoder's block sees."""
    return up + skip if name in ("concat", "attention") else up
