"""Sliding-window inference over whole volumes with Gaussian blending, after MONAI's inferers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor

from medunet.errors import ResourceError


class WindowInferer(Inferer):
    """Class probabilities of a whole volume, windows blended with Gaussian weights (as nnU-Net).

    Args:
        patch_size: the window in voxels; two numbers for a 2D network, which then runs slice by slice along z.
        overlap: fraction of a window shared with the next.
        batch_size: windows per forward pass; halved when the device runs out of memory.
        mirror_axes: spatial axes to average over mirrored inputs (test-time augmentation); none by default.

    Shapes: (1, channels, x, y, z) -> (1, classes, x, y, z) float32 probabilities that sum to one, or (1, 1, ...) of
    the foreground when the network has one output.

    Raises:
        ResourceError: one window alone does not fit the memory.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        overlap: float = 0.5,
        batch_size: int = 4,
        mirror_axes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.patch_size, self.overlap, self.batch_size = tuple(patch_size), float(overlap), int(batch_size)
        self.mirror_axes = tuple(mirror_axes)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        volume = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        total = self._logits(volume, network)
        flips = [f for n in range(1, len(self.mirror_axes) + 1) for f in combinations(self.mirror_axes, n)]
        for flip in flips:
            dims = [axis + 2 for axis in flip]
            total = total + self._logits(volume.flip(dims), network).flip(dims)
        return probabilities(total / (1 + len(flips)))

    def _logits(self, volume: Tensor, network: Callable[..., Tensor]) -> Tensor:
        while True:
            try:
                return self._run(volume, network)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    raise ResourceError(
                        f"one window of {list(self.patch_size)} voxels does not fit the memory of {volume.device}; "
                        f"close other programs, use --device cpu, or plan a smaller patch_size"
                    ) from error
                self.batch_size //= 2

    def _run(self, volume: Tensor, network: Callable[..., Tensor]) -> Tensor:
        flat = len(self.patch_size) == 2
        windows = SlidingWindowInferer(
            roi_size=self.patch_size, sw_batch_size=self.batch_size, overlap=self.overlap, mode="gaussian"
        )
        if not flat:
            result: Tensor = windows(volume, network)
            return result
        slices = volume[0].permute(3, 0, 1, 2)
        logits = torch.cat([windows(chunk, network) for chunk in torch.split(slices, self.batch_size)])
        return logits.permute(1, 2, 3, 0)[None]


def probabilities(logits: Tensor) -> Tensor:
    """Soft-max over the classes, or a sigmoid where there is one output."""
    return logits.float().sigmoid() if logits.shape[1] == 1 else logits.float().softmax(dim=1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of device or host memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
