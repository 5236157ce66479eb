"""What keeps a run from going astray, and says so where it did."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim import Optimizer

from medunet.errors import TrainingError


class Guards:
    """Shorten gradients whose norm over all weights exceeds `clip`, and end a run whose loss is not a number.

    Clipping acts in the optimiser, behind the unscaling of mixed precision. The loss is looked at after every step on
    the CPU, on other devices after every epoch, before a checkpoint is written.

    Args:
        clip: largest norm (nnU-Net: 12); 0: gradients stay as they are.

    Raises:
        TrainingError: (while training) the loss is not finite.
    """

    def __init__(self, optimizer: Optimizer, clip: float = 12.0) -> None:
        self.optimizer, self.clip = optimizer, float(clip)
        self._broken: Tensor | None = None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer; before the handler of checkpoints."""
        if self.clip > 0:
            self.optimizer.register_step_pre_hook(self._shorten)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._require_finite)

    def _shorten(self, optimizer: Optimizer, *args: object) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, self.clip)

    def _note(self, engine: Engine) -> None:
        broken = ~torch.isfinite(engine.state.output["loss"].detach()).all()
        self._broken = broken if self._broken is None else self._broken | broken
        if broken.device.type == "cpu":
            self._require_finite(engine)

    def _require_finite(self, engine: Engine) -> None:
        if self._broken is not None and bool(self._broken):
            raise TrainingError(
                f"step {engine.state.iteration}: the loss is not a number, the checkpoints are from before; train on "
                f"with --resume and a smaller learning rate (--set optimizer::lr=...), or without amp"
            )
