"""Gradients of bounded length."""

from __future__ import annotations

import torch
from ignite.engine import Engine
from torch.optim import Optimizer


class ClipGradients:
    """Shorten gradients whose norm over all weights exceeds `norm`, before every step (nnU-Net: 12).

    It acts in the optimiser itself, behind the unscaling of mixed precision.

    Args:
        norm: the largest; 0: gradients stay as they are.
    """

    def __init__(self, optimizer: Optimizer, norm: float = 12.0) -> None:
        self.optimizer, self.norm = optimizer, float(norm)

    def attach(self, engine: Engine) -> None:
        """Register with the optimiser."""
        if self.norm > 0:
            self.optimizer.register_step_pre_hook(self._shorten)

    def _shorten(self, optimizer: Optimizer, *args: object) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, self.norm)
