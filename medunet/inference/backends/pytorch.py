"""The network itself as a backend."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medunet.inference.backends.protocol import full_output


class TorchBackend:
    """The network as it is: nothing is copied, so later calls see later weights.

    Puts the network on `device` and into evaluation mode; setting it back to training is left to the caller.

    Args:
        network: any module that returns logits, or a list of them with the highest resolution first.
        device: where to run.
        amp: mixed precision on CUDA, bfloat16 or (on cards without it) float16; other devices stay in float32.
    """

    name = "torch"

    def __init__(self, network: nn.Module, device: torch.device | str, amp: bool = False) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.mixed = amp and self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.mixed and torch.cuda.is_bf16_supported() else torch.float16

    def __call__(self, windows: Tensor) -> Tensor:
        """(n, channels, *window) -> (n, classes, *window), float32."""
        # no_grad and not inference_mode: callers add and multiply logits in place, outside of it.
        with torch.no_grad(), torch.autocast(self.device.type, dtype=self.dtype, enabled=self.mixed):
            windows = windows.to(self.device, non_blocking=True)
            return full_output(self.network(windows)).float()
