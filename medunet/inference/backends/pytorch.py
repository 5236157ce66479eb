"""The network itself as a backend."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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
        self._lone = way == WAYS[0] and not self.mixed and self.device.type == "cpu" and _has_onednn()
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
            with self._convolutions():
                logits = full_output(self._run(windows)).float()
            if self._sizes is not None:
                self._sizes.add(len(windows))
            return logits[:count]

    def _convolutions(self) -> AbstractContextManager[Any]:
        return LoneConvolutions() if self._lone else nullcontext()

    def _filled(self, windows: Tensor) -> Tensor:
        """Windows, and as many zeros as make them a batch of the next size that is compiled, if there is one."""
        larger = [size for size in self._sizes or () if size > len(windows)]
        if not larger or len(windows) in (self._sizes or ()):
            return windows
        return torch.cat((windows, windows.new_zeros((min(larger) - len(windows), *windows.shape[1:]))))


class LoneConvolutions(TorchFunctionMode):
    """Computes 3D convolutions of a single image by oneDNN, without gradients.

    ATen does so only from 20480 numbers of channels x rows x columns on (torch 2.13, `use_mkldnn`), a bound that was
    found for 2D, and below takes two to six times as long: three of four levels of a network for small patches.
    """

    def __torch_function__(
        self, function: Callable[..., Any], _: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of each of its functions."""
        if function is not torch.conv3d or len(args) != 7:
            return function(*args, **(kwargs or {}))
        image, weight, bias, stride, padding, dilation, groups = args
        matrix = weight[0, 0].numel() == 1  # which is multiplied as one either way
        if len(image) > 1 or matrix or isinstance(padding, str) or not image.dtype == weight.dtype == torch.float32:
            return function(*args)
        return torch.ops.aten.mkldnn_convolution(image, weight, bias, padding, stride, dilation, groups)


def _has_onednn() -> bool:
    """Whether torch has oneDNN's own kernels: on x86; on Arm those for 3D are slow."""
    has: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has and platform.machine().lower() in ("x86_64", "amd64")


def channels_last(tensor: Tensor) -> torch.memory_format:
    """The order in memory that has the channels of a 2D or 3D tensor last."""
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim, torch.contiguous_format)
