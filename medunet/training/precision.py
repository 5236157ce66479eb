"""Mixed precision of a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from medunet.inference.device import mixed_type


class MixedInferer(Inferer):
    """The network's logits, in float32; on processors that multiply bfloat16, convolutions compute in it.

    Weights, normalisation, loss and optimiser stay in float32, and bfloat16 has float32's range: nothing is scaled. On
    CUDA the trainer's own `amp` sets the precision.

    Args:
        device: where the network runs.
        amp: mixed precision; where the processor has none, everything is float32.
    """

    def __init__(self, device: torch.device, amp: bool = False) -> None:
        super().__init__()
        self.dtype = mixed_type(device) if amp and device.type == "cpu" else None

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.dtype is None:
            return network(inputs, *args, **kwargs)
        with torch.autocast("cpu", dtype=self.dtype):
            logits = network(inputs, *args, **kwargs)
        return logits.float() if isinstance(logits, Tensor) else [output.float() for output in logits]


def by_trainer(device: torch.device, amp: bool = False) -> bool:
    """Whether mixed precision is the trainer's to set, which scales the loss: on CUDA, where the plan has it."""
    return bool(amp) and device.type == "cuda"
