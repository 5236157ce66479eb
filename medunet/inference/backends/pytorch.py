"""The network itself as a backend."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medunet.inference.backends.protocol import full_output
from medunet.inference.device import mixed_type

WAYS = ("plain", "channels-last", "compiled")
"""How PyTorch can run a network: as it is; with channels last in memory; so and through ``torch.compile``."""


class TorchBackend:
    """The network as it is: no weight is copied, so later calls see later weights.

    Puts the network on `device` and into evaluation mode; setting it back to training is left to the caller.

    Args:
        network: any module that returns logits, or a list of them with the highest resolution first.
        device: where to run.
        amp: mixed precision where the device has it (`mixed_type`); others stay in float32.
        way: one of WAYS. The last two rearrange the network's weights in memory; ``compiled`` takes a minute or so at
            the first call of a size and, on CUDA, replays graphs. A batch is filled up to a size that ran before.
    """

    streams = 1

    def __init__(self, network: nn.Module, device: torch.device | str, amp: bool = False, way: str = "plain") -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.dtype = mixed_type(self.device) if amp else None
        self.mixed = self.dtype is not None
        self.name = "torch" if way == WAYS[0] else f"torch, {way}"
        self.last = way != WAYS[0]
        self._sizes: set[int] | None = set() if way == WAYS[2] else None  # batches that are compiled
        self._run = torch.compile(self.network, mode="reduce-overhead", dynamic=False) if way == WAYS[2] else network
        if self.last:
            self.arrange()

    def arrange(self) -> None:
        """Lay the weights out in memory as this way wants them; another way may have had the network since."""
        for parameter in self.network.parameters():
            layout = channels_last(parameter) if self.last else torch.contiguous_format
            parameter.data = parameter.data.contiguous(memory_format=layout)

    def __call__(self, windows: Tensor) -> Tensor:
        """(n, channels, *window) -> (n, classes, *window), float32."""
        # no_grad and not inference_mode: callers add and multiply logits in place, outside of it.
        with torch.no_grad(), torch.autocast(self.device.type, dtype=self.dtype, enabled=self.mixed):
            windows = windows.to(self.device, non_blocking=True)
            count = len(windows)
            windows = self._filled(windows)
            if self.last:
                windows = windows.contiguous(memory_format=channels_last(windows))
            logits = full_output(self._run(windows)).float()
            if self._sizes is not None:
                self._sizes.add(len(windows))
            return logits[:count]

    def _filled(self, windows: Tensor) -> Tensor:
        """Windows, and as many zeros as make them a batch of the next size that is compiled, if there is one."""
        larger = [size for size in self._sizes or () if size > len(windows)]
        if not larger or len(windows) in (self._sizes or ()):
            return windows
        return torch.cat((windows, windows.new_zeros((min(larger) - len(windows), *windows.shape[1:]))))


def channels_last(tensor: Tensor) -> torch.memory_format:
    """The order in memory that has the channels of a 2D or 3D tensor last."""
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim, torch.contiguous_format)
