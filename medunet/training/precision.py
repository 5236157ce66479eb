"""Mixed precision of a training step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medunet.inference.device import mixed_type

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class MixedInferer(Inferer):
    """The network's logits, in float32; on processors that multiply bfloat16, convolutions compute in it.

    Weights, normalisation, loss and optimiser stay in float32, and bfloat16 has float32's range: nothing is scaled. On
    CUDA the trainer's own `amp` sets the precision. A network with convolutions that see less than their kernel, or one
    that does not pass on the meta device, computes in float32: see `sees_less`.

    Args:
        device: where the network runs.
        amp: mixed precision; where the processor has none, everything is float32.
    """

    def __init__(self, device: torch.device, amp: bool = False) -> None:
        super().__init__()
        self.dtype = mixed_type(device) if amp and device.type == "cpu" else None
        self._mixes: dict[torch.Size, bool] = {}

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.dtype is None or not self._may_mix(network, inputs.shape):
            return network(inputs, *args, **kwargs)
        with torch.autocast("cpu", dtype=self.dtype):
            logits = network(inputs, *args, **kwargs)
        return logits.float() if isinstance(logits, Tensor) else [output.float() for output in logits]

    def _may_mix(self, network: Any, shape: torch.Size) -> bool:
        if shape not in self._mixes:
            try:
                self._mixes[shape] = not sees_less(network, shape)
            except Exception:  # whatever a foreign network raises there
                self._mixes[shape] = False
        return self._mixes[shape]


def sees_less(network: nn.Module, shape: torch.Size) -> bool:
    """Whether a convolution gets fewer voxels along an axis than its kernel spans, for an input of `shape`.

    Of such ones oneDNN (torch 2.13) computes the weights' gradient in bfloat16 from memory that nobody wrote. Outputs
    and the other gradients are right. Nothing of the network is computed or changed: a copy runs without numbers.
    """
    inner = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    twin = copy.deepcopy(inner).to("meta").eval()
    found: list[bool] = []

    def look(module: Any, given: tuple[Tensor, ...]) -> None:
        spans = ((k - 1) * d + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True))
        found.append(any(n < span for n, span in zip(given[0].shape[2:], spans, strict=True)))

    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if isinstance(module, _CONVOLUTIONS):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        twin.forward(torch.empty(shape, device="meta"))
    return any(found)


def precision_of(trainer: Any) -> str:
    """What a trainer's network computes in, for reading; ``mixed precision`` where the trainer itself sets it."""
    if getattr(trainer, "amp", False):
        return "mixed precision"
    return str(getattr(getattr(trainer, "inferer", None), "dtype", None) or torch.float32).removeprefix("torch.")


def by_trainer(device: torch.device, amp: bool = False) -> bool:
    """Whether mixed precision is the trainer's to set, which scales the loss: on CUDA, where the plan has it."""
    return bool(amp) and device.type == "cuda"
